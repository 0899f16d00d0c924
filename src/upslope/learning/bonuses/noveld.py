"""`noveld`: reward a step if its successor is more novel than its state, at the first visit in an episode."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from upslope.core.types import Rollout, successor_of
from upslope.errors import UpslopeError
from upslope.learning.bonuses.bonus import Setting, flat_rows
from upslope.learning.bonuses.count import check_hash
from upslope.learning.bonuses.distillation import Distilled, distil, floats_of, squared_errors, updated
from upslope.learning.bonuses.rnd import RND
from upslope.learning.bonuses.visits import EpisodeVisits, visits_in_episode
from upslope.models.cells import Cells, cells_of
from upslope.models.networks import generator_of


class Novelty(NamedTuple):
    """The state of `NovelD`."""

    distilled: Distilled
    cells: Cells
    in_episode: EpisodeVisits


@dataclass(frozen=True)
class NovelD(RND):
    """r_t = max(n(s_{t+1}) − α n(s_t), 0) · 1[first visit of s_{t+1} in the episode], n(s) = ‖f̂(s) − f(s)‖₂.

    The novelty n is that of random network distillation, with the fields of `RND`. Only steps that lead from known to
    novel states are rewarded. First visits are detected with `cells` cells, as in `Count`; the first state of an
    episode counts as a visit. Source: Zhang et al. (2021), NovelD: A Simple yet Effective Exploration Criterion,
    https://proceedings.neurips.cc/paper/2021/hash/d428d070622e0f4363fceae11f4a3576-Abstract.html, eq. 3.
    """

    alpha: float = 0.5
    cells: int = 1 << 16
    bits: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_hash(self.cells, self.bits)
        if not 0 <= self.alpha <= 1:
            raise UpslopeError(f"α of NovelD must be in [0, 1], not {self.alpha}.")

    def start(self, setting: Setting, key: PRNGKeyArray) -> Any:
        networks_key, cells_key = jax.random.split(key)
        space, encoder = setting.observation_space, setting.model.encoder
        cells = cells_of(encoder, space, self.cells, self.bits, generator_of(cells_key))
        visits = EpisodeVisits.start(setting.num_envs, cells.count)
        return Novelty(super().start(setting, networks_key), cells, visits)

    def __call__(
        self, rollout: Rollout, begins: Bool[Array, "T N"], state: Any, key: PRNGKeyArray
    ) -> tuple[Float[Array, "T N"], Any]:
        distilled, valid, successor = state.distilled, rollout.valid.reshape(-1), successor_of(rollout)
        now, after = (floats_of(distilled.target, flat_rows(x), valid) for x in (rollout.observation, successor))
        distilled = distilled._replace(statistics=updated(distilled.statistics, after, valid))
        novelty, following = (jnp.sqrt(jnp.sum(squared_errors(distilled, x), axis=-1)) for x in (now, after))
        gain = jnp.maximum(following - self.alpha * novelty, 0.0).reshape(rollout.valid.shape)
        here = state.cells(rollout.observation), state.cells(successor)
        count, visits = visits_in_episode(state.in_episode, *here, begins, rollout.valid)
        plan = {"share": self.share, "epochs": self.epochs, "minibatches": self.minibatches}
        distilled = distil(distilled, after, valid, key, **plan, learning_rate=self.learning_rate)
        return jnp.where(count == 1, gain, 0.0), Novelty(distilled, state.cells, visits)
