"""Faults planted between acting and learning are detected, with memory, masks, images and dictionaries.

Before the first update, the learner's policy is the policy that acted, so log π(a|s) equals the recorded log μ(a|s).
The successor of an episode's last step is the observation that ended the episode, not the next episode's first frame.
"""

from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import user_environments as own
from gymnasium import spaces

from upslope.core.types import Credit, Transition
from upslope.engines import collect as on_the_host
from upslope.engines.collect import Act, collect_host
from upslope.engines.columns import HostColumns
from upslope.environments.base import CompiledEnvironment
from upslope.environments.registry import make
from upslope.learning import collect as compiled
from upslope.learning import evaluation
from upslope.learning.batch import batch_of
from upslope.learning.evaluation import evaluate
from upslope.models import model as models
from upslope.models.agent import Agent, initialise_agent
from upslope.models.build import ModelSpec
from upslope.models.encoders import encoder_of
from upslope.models.heads import head_of
from upslope.models.memories import Gated
from upslope.models.model import start_memory

STEPS, COLUMNS = 20, 3


class Turns(CompiledEnvironment):
    """Shows the same random sign in all four steps of an episode. One action is forbidden in each step, in turn."""

    observation_space, action_space = spaces.Box(-1, 1, (1,), np.float32), spaces.Discrete(3)
    max_episode_steps = 4

    def reset(self, key: Any) -> Any:
        sign = jax.random.rademacher(key, (1,), jnp.float32)
        return (sign, jnp.int32(0)), sign

    def step(self, key: Any, state: Any, action: Any) -> Any:
        sign, t = state
        return (sign, t + 1), Transition(sign, jnp.float32(1), jnp.zeros((), bool), jnp.zeros((), bool))

    def action_mask(self, state: Any) -> Any:
        return state[1] % 3 != jnp.arange(3)


def agent_for(world: Any, **settings: Any) -> Agent:
    spec = ModelSpec(encoder_of(world.observation_space, "it"), head_of(world.action_space, "it"), settings)
    return initialise_agent(jax.random.key(0), spec)


def facts_of(world: Any, agent: Agent, limit: int) -> Any:
    """Return a rollout [T, N] that starts with new episodes and contains several ends."""
    if world.is_compiled:
        start = compiled.begin(world, agent, jax.random.key(1), COLUMNS)
        return compiled.collect(world, agent, start, jax.random.key(2), STEPS, limit)[1]
    encoder, head = encoder_of(world.observation_space, "it"), head_of(world.action_space, "it")
    columns = HostColumns(world, encoder, head, [0], COLUMNS, limit)
    columns.begin(range(COLUMNS))
    memory = jax.tree.map(lambda x: x[None], start_memory(agent.model, COLUMNS))
    choose = Act().bind(jax.tree.map(lambda x: x[None], agent), jax.random.split(jax.random.key(2), 1), memory)
    rollout, _ = collect_host(columns, choose, STEPS, {})
    return jax.tree.map(lambda x: jnp.asarray(x[0]), rollout)


def forgotten_in_acting(patch: pytest.MonkeyPatch) -> None:
    """Plant a fault: at the start of an episode, keep the carry of the previous one."""
    patch.setattr(on_the_host.ActCompiled, "restart", lambda self, rows: None)
    whole = compiled.where_rows
    patch.setattr(
        compiled, "where_rows", lambda done, begun, after: whole(done, begun, after)._replace(carry=after.carry)
    )


def forgotten_in_the_update(patch: pytest.MonkeyPatch) -> None:
    goes = Gated.over_time
    patch.setattr(Gated, "over_time", lambda self, x, carry, fresh: goes(self, x, carry, jnp.zeros_like(fresh)))


def of_another_row(policy: Any, mask: Any) -> Any:
    return policy if mask is None else policy.masked(jnp.roll(mask, 1, axis=0))


FAULTS: dict[str, Any] = {
    "nothing": (None, None),
    "no restart in acting": (forgotten_in_acting, None),
    "no restart in the update": (None, forgotten_in_the_update),
    "no mask in the update": (None, lambda patch: patch.setattr(models, "allowed", lambda policy, mask: policy)),
    "the mask of another row": (
        None,
        lambda patch: patch.setattr(models, "allowed", of_another_row),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["host", "compiled"])
def test_the_policy_that_learns_is_the_one_that_acted_with_memory_and_masks(kind: str, fault: str):
    world = make(own.Fenced) if kind == "host" else Turns()
    agent = agent_for(world, hidden_sizes=(6,), memory="gru", memory_size=5)
    # With large weights, the policy depends strongly on its inputs, so a wrong carry gives a different policy.
    agent = jax.tree.map(lambda x: x * 3, agent)
    acting, learning = FAULTS[fault]
    with pytest.MonkeyPatch.context() as patch:
        _ = acting and acting(patch)
        rollout = facts_of(world, agent, limit=4)
    assert 9 <= int((rollout.terminated | rollout.truncated).sum()) < STEPS * COLUMNS
    if fault in ("nothing", "no restart in acting"):
        head = head_of(world.action_space, "it")
        assert head.permits(np.asarray(rollout.action_mask).reshape(-1, 3), np.asarray(rollout.action).ravel()).all()
    credit = Credit(rollout.reward, rollout.reward)
    with pytest.MonkeyPatch.context() as patch:
        _ = learning and learning(patch)
        batch = batch_of(agent, rollout, credit, start_memory(agent.model, COLUMNS), 5, vmapped=False)
        mismatch = np.abs(batch.old_policy.log_prob(batch.action) - batch.behaviour_log_prob)
    assert (mismatch.max() < 1e-5) == (fault == "nothing"), mismatch.max()
    if fault != "nothing":
        assert mismatch.max() > 1e-2


FRAMES = spaces.Dict({"count": spaces.Box(0, 1e6, (2,), np.float32), "frame": spaces.Box(0, 255, (4, 5), np.uint8)})


def shown(episode: Any, step: Any) -> Any:
    """Return the observation at this step of this episode; no two observations are alike."""
    xp = np if isinstance(step, int) else jnp
    count = xp.stack([xp.asarray(episode, xp.float32), xp.asarray(step, xp.float32)])
    return {"count": count, "frame": xp.full((4, 5), 16 * episode + step, xp.uint8)}


class Frames(gymnasium.Env):
    """Episodes of 3 steps; every second one terminates, and the others reach the limit."""

    observation_space, action_space = FRAMES, spaces.Discrete(2)
    episode = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.episode, self.steps = self.episode + 1, 0
        return shown(self.episode, 0), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return shown(self.episode, self.steps), 1.0, self.steps == 3 and self.episode % 2 == 1, False, {}


class CompiledFrames(CompiledEnvironment):
    """A compiled `Frames` in which the episode number is random; episodes with odd numbers terminate."""

    observation_space, action_space, max_episode_steps = FRAMES, spaces.Discrete(2), 3

    def reset(self, key: Any) -> Any:
        episode = jax.random.randint(key, (), 0, 10)
        return (episode, jnp.int32(0)), shown(episode, jnp.int32(0))

    def step(self, key: Any, state: Any, action: Any) -> Any:
        episode, step = state[0], state[1] + 1
        is_over = (step == 3) & (episode % 2 == 1)
        return (episode, step), Transition(shown(episode, step), jnp.float32(1), is_over, jnp.zeros((), bool))


def next_frame(patch: pytest.MonkeyPatch) -> None:
    """Plant a fault: read the successor of an episode's last step only after the next episode has started."""
    writes = on_the_host.HostRollout.rollout

    def late(self: Any) -> Any:
        seen, after = self.facts["observation"], self.facts["next_observation"]
        self.facts["next_observation"] = [*seen[1:], after[-1]]
        return writes(self)

    patch.setattr(on_the_host.HostRollout, "rollout", late)
    goes = compiled.advance

    def advance(world: Any, agent: Any, columns: Any, chance: Any, *more: Any) -> Any:
        after, row, finished = goes(world, agent, columns, chance, *more)
        begun = compiled.begin_episodes(world, agent, chance.keys).observation
        return (
            after,
            row._replace(next_observation=compiled.where_rows(finished.done, begun, after.observation)),
            finished,
        )

    patch.setattr(compiled, "advance", advance)


@pytest.mark.parametrize("is_planted", [False, True])
@pytest.mark.parametrize("kind", ["host", "compiled"])
def test_the_successor_of_a_last_frame_is_no_first_frame(kind: str, is_planted: bool):
    world: Any = make(Frames) if kind == "host" else CompiledFrames()
    agent = agent_for(world, hidden_sizes=(6,))
    with pytest.MonkeyPatch.context() as patch:
        _ = is_planted and next_frame(patch)
        rollout = facts_of(world, agent, limit=3)
    episode, step = np.moveaxis(np.asarray(rollout.observation["count"]), -1, 0)
    assert (step == np.arange(STEPS)[:, None] % 3).all()
    assert (rollout.terminated == (step == 2) * (episode % 2 == 1)).all() and rollout.terminated.any()
    for number, name in enumerate(("count", "frame")):
        expected = [np.stack([episode, step + 1], axis=-1), (16 * episode + step + 1)[..., None, None]][number]
        is_true = (np.asarray(rollout.next_observation[name]) == expected).reshape(STEPS, COLUMNS, -1).all(axis=-1)
        assert is_true[step < 2].all()
        assert (~is_true if is_planted else is_true)[:-1][step[:-1] == 2].all()


@pytest.mark.parametrize("memory", [None, "gru"])
def test_the_value_after_a_last_frame_is_the_last_frames(memory: str | None, monkeypatch: pytest.MonkeyPatch):
    world = CompiledFrames()
    agent = agent_for(world, hidden_sizes=(6,), memory=memory, memory_size=4)
    rollout = facts_of(world, agent, limit=3)

    def following() -> np.ndarray:
        return np.asarray(evaluate(agent, rollout).next_value)

    found, expected = following(), np.zeros((STEPS, COLUMNS), np.float32)
    carry = agent.model.start(COLUMNS)
    for t in range(STEPS):
        now, after = (jax.tree.map(lambda x, t=t: x[t], x) for x in (rollout.observation, rollout.next_observation))
        carry = agent.model.start(COLUMNS) if t % 3 == 0 else carry
        _, carry = agent.step(now, carry, jnp.full(COLUMNS, t % 3 == 0))
        expected[t] = agent.step(after, carry, jnp.zeros(COLUMNS, bool))[0].value
    np.testing.assert_allclose(found, expected, atol=1e-5)
    if memory is None:  # plant a fault: always use the value of the next row
        monkeypatch.setattr(evaluation, "differs", lambda *seen: jnp.zeros((STEPS - 1, COLUMNS), bool))
        assert np.abs(following() - expected).max() > 1e-2
