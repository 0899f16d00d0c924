"""Large observations are stored only once: a successor that is also in the next row is not stored again."""

from typing import Any

import jax
import numpy as np
import pytest
from gymnasium import spaces
from helpers import same, users_jit
from user_environments import Counting

import upslope
from upslope.config.prepare import prepare
from upslope.core.types import Rollout, Successors, first_columns_of, successor_of
from upslope.engines import collect
from upslope.engines.host import HostEngine, columns_of
from upslope.learning.evaluation import evaluate

SMALL: dict[str, Any] = {"num_envs": 3, "rollout_steps": 20, "minibatches": 2, "hidden_sizes": (8,), "preset": False}


def facts(monkeypatch: pytest.MonkeyPatch, large: int, seeds: list[int], algorithm: str = "ppo", **settings: Any):
    """Return the first rollout and the agent of each seed. Observations of at least `large` bytes count as large."""
    monkeypatch.setattr(collect, "LARGE", large)
    preset = settings.pop("preset")
    _, task = prepare(Counting, algorithm, preset=preset, settings={"seeds": len(seeds), **settings})
    engine = HostEngine(task, seeds, columns_of(task, seeds))
    state = engine.start()
    agents = [jax.tree.map(lambda x, s=s: x[s], state.learner.agent) for s in range(len(seeds))]
    keys = np.asarray(engine.keys(state.key, state.iteration))[:, 0, 0]
    rollout, _, _ = engine.collect(jax.device_get(state.learner.agent), state.memory, keys, np.ones(len(seeds), bool))
    engine.close()
    return [engine.rollout_of(rollout, s) for s in range(len(seeds))], agents


@pytest.mark.parametrize("settings", [{}, {"memory": "gru", "memory_size": 4}], ids=["plain", "memory"])
def test_a_rollout_without_its_repetitions_says_the_same(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    compact, agents = facts(monkeypatch, 0, [0, 1], **SMALL, **settings)
    full, _ = facts(monkeypatch, 2**40, [0, 1], **SMALL, **settings)
    for short, long, agent in zip(compact, full, agents, strict=True):
        assert isinstance(short.next_observation, Successors) and not isinstance(long.next_observation, Successors)
        np.testing.assert_array_equal(successor_of(short), long.next_observation)
        # Episodes last 7 steps. The next check covers two of the three columns.
        t = np.arange(20)
        some = successor_of(first_columns_of(short, 2))
        np.testing.assert_array_equal(np.asarray(some)[:, :, 1], np.stack([t % 7 + 1] * 2, axis=1))
        values = [users_jit(evaluate)(agent, rollout) for rollout in (short, long)]
        np.testing.assert_allclose(values[0].next_value, values[1].next_value, rtol=1e-6, atol=1e-6)
        others = [rollout._replace(next_observation=None) for rollout in (short, long)]
        assert same(*others)


def test_the_room_for_successors_does_not_depend_on_other_seeds(monkeypatch: pytest.MonkeyPatch):
    together, _ = facts(monkeypatch, 0, [0, 1], **SMALL)
    alone, _ = facts(monkeypatch, 0, [1], **SMALL)
    places = [np.asarray(rollout.next_observation.place) for rollout in (together[1], alone[0])]
    np.testing.assert_array_equal(*places)
    # For 60 steps, there is initially room for 3 successors, and this room is doubled as needed. Each column needs 3
    # places: two for episode ends and one for its last row.
    assert len(places[0]) == 12 and (places[0] < 60).sum() == 9


def test_whole_episodes_keep_their_last_observations(monkeypatch: pytest.MonkeyPatch):
    whole: list[Rollout] = facts(
        monkeypatch, 0, [0], "reinforce_baseline", num_envs=2, max_episode_steps=9, preset=False
    )[0]
    successor = np.asarray(successor_of(whole[0]))
    np.testing.assert_array_equal(successor[:7, :, 1], np.stack([np.arange(1, 8)] * 2, axis=1))


class Large(Counting):
    """`Counting` with an observation of more than 4 kB."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(-1.0, 1e6, (2, 600), np.float32)

    def reset(self, **options: Any) -> tuple[Any, dict]:
        observation, info = super().reset(**options)
        return np.repeat(observation[:, None], 600, axis=1), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        observation, *others = super().step(action)
        return np.repeat(observation[:, None], 600, axis=1), *others


def test_a_run_with_large_observations_is_judged_and_recorded(tmp_path):
    settings = SMALL | {"steps": 60, "epochs": 1, "max_episode_steps": 9, "folder": tmp_path, "quiet": True}
    run = upslope.train(Large, name="large", **settings)
    assert upslope.evaluate(run.path, environment=Large, episodes=2)["stochastic"].returns.tolist() == [[28.0, 28.0]]
    with np.load(upslope.record(run.path, environment=Large, episodes=2)) as recorded:
        np.testing.assert_array_equal(recorded["final_observation"][:, 1, 0], [7, 7])
