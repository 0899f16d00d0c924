"""`count`: reward a step more if its successor has rarely been visited."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from upslope.core.types import Metrics, Rollout, successor_of
from upslope.errors import UpslopeError
from upslope.learning.bonuses.bonus import Bonus, Setting
from upslope.learning.bonuses.visits import EpisodeVisits, visits_in_episode
from upslope.models.cells import WORD, Cells, cells_of
from upslope.models.networks import generator_of

SCOPES = ("lifelong", "episodic", "both")


class Counts(NamedTuple):
    """The state of `Count`."""

    cells: Cells
    visits: Int[Array, "C"]
    """The number of visits to each cell since training began."""
    in_episode: EpisodeVisits | None
    """The visits in the running episode of each column, if they are counted; otherwise None."""


@dataclass(frozen=True)
class Count(Bonus):
    """r_t = 1/√n(s_{t+1}), where n is the number of visits to a state, including this one.

    `scope` selects the visits since training began (lifelong, the default), the visits in the running episode
    (episodic), or the product of both rewards. States are assigned to cells: exactly if there are at most `cells`
    states, otherwise by a hash, which for real numbers uses the signs of `bits` random projections. Several visits in a
    batch are counted in order of time, then of column. Source: Strehl & Littman (2008), An Analysis of Model-Based
    Interval Estimation for Markov Decision Processes; with hashing: Tang et al. (2017), #Exploration,
    https://arxiv.org/abs/1611.04717.
    """

    scope: str = "lifelong"
    cells: int = 1 << 16
    bits: int = 32
    has_unit: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_hash(self.cells, self.bits)
        if self.scope not in SCOPES:
            raise UpslopeError(
                f"The scope of counts must be {', '.join(SCOPES[:-1])} or {SCOPES[-1]}, not {self.scope!r}."
            )

    def start(self, setting: Setting, key: PRNGKeyArray) -> Counts:
        space, encoder = setting.observation_space, setting.model.encoder
        cells = cells_of(encoder, space, self.cells, self.bits, generator_of(key))
        in_episode = None if self.scope == "lifelong" else EpisodeVisits.start(setting.num_envs, cells.count)
        return Counts(cells, jnp.zeros(cells.count, jnp.int32), in_episode)

    def __call__(
        self, rollout: Rollout, begins: Bool[Array, "T N"], state: Counts, key: PRNGKeyArray
    ) -> tuple[Float[Array, "T N"], Counts]:
        now, after = state.cells(rollout.observation), state.cells(successor_of(rollout))
        lifelong, visits = visits_in_order(state.visits, now, after, begins, rollout.valid)
        if state.in_episode is None:
            return 1 / jnp.sqrt(lifelong), state._replace(visits=visits)
        episodic, in_episode = visits_in_episode(state.in_episode, now, after, begins, rollout.valid)
        count = episodic if self.scope == "episodic" else lifelong * episodic.astype(jnp.float32)
        return 1 / jnp.sqrt(count), state._replace(visits=visits, in_episode=in_episode)

    def measured(self, state: Counts) -> Metrics:
        return {"bonus/states_visited": jnp.sum(state.visits > 0).astype(jnp.float32)}


def check_hash(cells: int, bits: int) -> None:
    """Raise an error if the sizes of a hash are invalid."""
    if type(cells) is not int or not 2 <= cells <= 1 << 24:
        raise UpslopeError(f"The number of cells must be from 2 to 2^24, not {cells!r}.")
    if type(bits) is not int or bits % WORD or not WORD <= bits <= 1 << 12:
        raise UpslopeError(f"The number of bits must be a multiple of {WORD}, at most 4096, not {bits!r}.")


def visits_in_order(
    visits: Int[Array, "C"],
    now: Int[Array, "T N"],
    after: Int[Array, "T N"],
    begins: Bool[Array, "T N"],
    valid: Bool[Array, "T N"],
) -> tuple[Int[Array, "T N"], Int[Array, "C"]]:
    """The number of visits to each successor's cell, including this one, and the counts after the rollout.

    The first state of an episode counts as a visit too, although no step is rewarded for it.
    """
    nowhere = visits.size
    arrivals = jnp.stack([jnp.where(begins & valid, now, nowhere), jnp.where(valid, after, nowhere)], axis=1).ravel()
    order = jnp.argsort(arrivals, stable=True)
    in_order: Any = arrivals[order]
    earlier_here = jnp.arange(arrivals.size) - jnp.searchsorted(in_order, in_order)
    number = jnp.zeros_like(arrivals).at[order].set(earlier_here) + visits.at[arrivals].get(mode="fill", fill_value=0)
    steps, columns = now.shape
    return number.reshape(steps, 2, columns)[:, 1] + 1, visits.at[arrivals].add(1, mode="drop")
