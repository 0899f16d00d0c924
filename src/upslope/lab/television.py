"""The effect of a noisy television on exploration bonuses: a bonus for prediction error keeps the policy in front of
it, and so does a count-based bonus if the pictures hardly ever repeat."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from upslope.core.estimators import GAE
from upslope.core.objectives import Clip
from upslope.core.types import Transition
from upslope.environments.base import CompiledEnvironment
from upslope.lab.finding import Finding, Interval, Outcome, Panel, mean_share_of, with_intervals
from upslope.lab.play import quick_jit, run_in_threads, small_task
from upslope.learning.bonuses.bonus import Bonus
from upslope.learning.bonuses.count import Count
from upslope.learning.bonuses.icm import ICM
from upslope.learning.intrinsic import Intrinsic
from upslope.learning.iteration import TrainState, initialise_all, iterate
from upslope.models.build import perceptrons_for

ROOMS, BITS, STEPS = 16, 16, 64
ENDLESS = 2**BITS
"""A number of pictures so large that hardly any of them is seen twice."""
HALF_UP: Interval = (0.5, np.inf)
HALF_DOWN: Interval = (-np.inf, 0.5)


@dataclass(frozen=True, eq=False)
class Television(CompiledEnvironment):
    """A corridor of rooms with a television in room `at`. There, action 2 shows one of `screens` pictures, chosen at
    random.

    Actions 0 and 1 lead to the neighbouring rooms, where the screen is dark. There are no rewards. The observation is
    the room and the picture, which has `BITS` bits; picture number k is k times an odd number, in binary.
    """

    screens: Any = 4
    at: int = 0
    max_episode_steps: int | None = STEPS
    observation_space: spaces.Space[Any] = field(
        init=False,
        default_factory=lambda: spaces.Dict({"room": spaces.Discrete(ROOMS), "screen": spaces.MultiBinary(BITS)}),
    )
    action_space: spaces.Space[Any] = field(init=False, default_factory=lambda: spaces.Discrete(3))

    def reset(self, key: PRNGKeyArray) -> tuple[Any, Any]:
        """Begin in the first room, in front of a dark screen."""
        state = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        return state, self.observe(*state)

    def step(self, key: PRNGKeyArray, state: Any, action: Any) -> tuple[Any, Transition]:
        """Walk, or change the channel."""
        room, _ = state
        is_watching = action == 2
        after = jnp.where(is_watching, room, jnp.clip(room + 2 * action - 1, 0, ROOMS - 1))
        shown = jnp.where(is_watching & (room == self.at), jax.random.randint(key, (), 0, self.screens) + 1, 0)
        state = after.astype(jnp.int32), shown.astype(jnp.int32)
        never = jnp.zeros((), bool)
        return state, Transition(self.observe(*state), jnp.zeros(()), never, never)

    def observe(self, room: Int32[Array, ""], screen: Int32[Array, ""]) -> dict[str, Array]:
        """The room, and the picture as bits."""
        bits = (screen * 40503) >> jnp.arange(BITS) & 1
        return {"room": room, "screen": bits.astype(jnp.int8)}

    def episode_info(self, state: Any) -> dict[str, Any]:
        """Whether a picture is shown."""
        return {"watching": state[1] > 0}


def shares_of_watching(
    bonus: Bonus, screens: Sequence[int], seeds: Sequence[int], iterations: int
) -> Float[np.ndarray, "S K I"]:
    """The share of steps that change the channel in each iteration, for televisions with K different numbers of
    pictures."""
    world = Television()
    task = small_task(
        world,
        GAE(0.95),
        Clip(0.2),
        model=perceptrons_for(world, hidden_sizes=(32,)),
        intrinsic=Intrinsic(bonus, coefficient=1.0, gamma=0.9),
        rollout_steps=STEPS,
        learning_rate=0.003,
        entropy_coefficient=0.01,
        epochs=4,
        critic_epochs=4,
        log_info=("watching",),
    )

    def trained(number: Array, state: TrainState) -> Array:
        shown = replace(task, environment=replace(world, screens=number))

        def one(state: TrainState, _: None) -> tuple[TrainState, Array]:
            after, _metrics, finished = iterate(shown, state)
            assert finished.info is not None
            return after, jnp.mean(finished.info)

        return jax.lax.scan(one, state, length=iterations)[1]

    states = initialise_all(task, [seed for seed in seeds for _ in screens])
    numbers = jnp.tile(jnp.asarray(screens, jnp.int32), len(seeds))
    found = quick_jit(lambda *rows: jax.lax.map(lambda one: trained(*one), rows))(numbers, states)
    return np.asarray(found, np.float64).reshape(len(seeds), len(screens), iterations)


def television(seed: int = 0, seeds: int = 6, iterations: int = 120, screens: int = 4) -> Outcome:
    """A television with few pictures traps a policy that seeks prediction error, but not one that counts visits. If the
    pictures hardly ever repeat, it traps both."""
    each = range(seed, seed + seeds)
    error = ICM(features=16, width=32, epochs=2)
    counted, random, icm = run_in_threads(
        [
            partial(shares_of_watching, Count(cells=ROOMS * ENDLESS), (screens, ENDLESS), each, iterations),
            partial(shares_of_watching, replace(error, random_features=True), (screens,), each, iterations),
            partial(shares_of_watching, error, (screens,), each, iterations),
        ]
    )
    shares = {
        "random_few": random[:, 0],
        "icm_few": icm[:, 0],
        "count_few": counted[:, 0],
        "count_endless": counted[:, 1],
    }
    late = {name: share[:, -iterations // 4 :].mean(axis=1) for name, share in shares.items()}
    steps = [8 * STEPS * (k + 1) for k in range(iterations)]
    return Outcome(
        findings=(
            Finding("prediction", mean_share_of(late["random_few"]), HALF_UP),
            Finding("icm", mean_share_of(late["icm_few"]), HALF_UP),
            Finding("counts", mean_share_of(late["count_few"]), HALF_DOWN),
            Finding("endless", mean_share_of(late["count_endless"]), HALF_UP),
        ),
        panels=(
            Panel(
                "watching",
                tuple(with_intervals(name, steps, list(map(mean_share_of, x.T))) for name, x in shares.items()),
            ),
        ),
        numbers={"seeds": seeds, "steps": steps[-1], "screens": screens, "endless": ENDLESS, "rooms": ROOMS},
    )
