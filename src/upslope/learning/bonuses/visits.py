"""Visits within the running episode of each column."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from upslope.errors import UpslopeError

MAX_NUMBERS = 1 << 28
"""Maximum number of values stored about the running episodes."""


class EpisodeVisits(NamedTuple):
    """The visits to C cells in the running episode of each of N columns.

    The number of the episode is stored with each count, so the table does not need to be cleared for a new episode.
    """

    episode: Int[Array, "N"]
    number: Int[Array, "N C"]
    """The number of the episode in which a cell was last visited."""
    times: Int[Array, "N C"]
    """The number of visits to the cell in that episode."""

    @staticmethod
    def start(num_envs: int, cells: int) -> "EpisodeVisits":
        """Return the state before any visit."""
        if num_envs * cells > MAX_NUMBERS:
            raise UpslopeError(
                f"Counting the visits to {cells:,} cells in the episodes of {num_envs:,} environments takes too much "
                "memory. Lower the bonus's `cells` or --num-envs."
            )
        none = jnp.zeros((num_envs, cells), jnp.int32)
        return EpisodeVisits(jnp.zeros(num_envs, jnp.int32), none, none)


def visits_in_episode(
    state: EpisodeVisits,
    now: Int[Array, "T N"],
    after: Int[Array, "T N"],
    begins: Bool[Array, "T N"],
    valid: Bool[Array, "T N"],
) -> tuple[Int[Array, "T N"], EpisodeVisits]:
    """The number of visits to each successor's cell in its episode, including this one, and the state after the
    rollout.

    The first state of an episode is its first visit.
    """
    column = jnp.arange(now.shape[1])

    def visit(state: EpisodeVisits, cell: Array, happens: Array) -> tuple[EpisodeVisits, Array]:
        earlier = jnp.where(state.number[column, cell] == state.episode, state.times[column, cell], 0)
        place = jnp.where(happens, cell, state.times.shape[1])
        number = state.number.at[column, place].set(state.episode, mode="drop")
        return state._replace(number=number, times=state.times.at[column, place].set(earlier + 1, mode="drop")), earlier

    def step(state: EpisodeVisits, row: tuple[Array, ...]) -> tuple[EpisodeVisits, Array]:
        now, after, begins, valid = row
        state = state._replace(episode=state.episode + (begins & valid))
        state, _ = visit(state, now, begins & valid)
        state, earlier = visit(state, after, valid)
        return state, earlier + 1

    state, count = jax.lax.scan(step, state, (now, after, begins, valid))
    return count, state
