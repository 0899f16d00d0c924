"""Vector environments: in every autoreset mode, all recorded steps were actually taken, and none is a reset."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from vector_environments import LENGTHS, Script, columns_of, stepped

import upslope
from upslope.config.config import configure
from upslope.config.prepare import prepare
from upslope.config.trust import requested
from upslope.engines.collect import collect_host_episodes
from upslope.engines.columns import reset_seed
from upslope.engines.host import begun_afresh
from upslope.environments.masks import source_of
from upslope.environments.registry import make
from upslope.errors import UpslopeError
from upslope.learning.iteration import initialise_all

MODES = [mode.value for mode in AutoresetMode]
SMALL: dict[str, Any] = {"num_envs": 3, "rollout_steps": 8, "minibatches": 1, "epochs": 1, "hidden_sizes": (8,)}


def allowed(observation: Any, mask: Any, t: int) -> Any:
    """Choose action 1 wherever it is allowed."""
    return mask[..., 1].astype(int)


@pytest.mark.parametrize("mode", MODES)
def test_no_transition_is_made_up(mode: str):
    columns = columns_of("vector:vector_environments:counting", 3, seeds=(7, 8), mode=mode)
    script = Script(allowed)
    rollout, ends = stepped(columns, script, 30)
    for s in range(2):
        for n, length in enumerate(LENGTHS):
            valid = np.asarray(rollout.valid[s, :, n])
            e, k = divmod(np.arange(valid.sum()), length)
            assert np.array_equal(rollout.observation[s, valid, n], np.stack([e, k], 1)), "every step, once, in order"
            assert np.array_equal(rollout.next_observation[s, valid, n], np.stack([e, k + 1], 1)), "true successors"
            assert np.array_equal(rollout.reward[s, valid, n], k + 1)
            over = {"terminated": rollout.terminated, "truncated": rollout.truncated}
            is_end = k + 1 == length
            assert np.array_equal(over["terminated"][s, valid, n], is_end & (n % 2 == 0))
            assert np.array_equal(over["truncated"][s, valid, n], is_end & (n % 2 == 1))
            assert not over["terminated"][s, ~valid, n].any() and not rollout.reward[s, ~valid, n].any()
            expected = np.tile([True] * length + [False] * (mode == "NextStep"), 30)[:30]
            assert np.array_equal(valid, expected), "only the resets of NEXT_STEP are not steps"
            mine = (ends.seed_index == s) & (ends.length == length)
            assert mine.sum() == is_end.sum() and (ends.episode_return[mine] == length * (length + 1) / 2).all()
    starts = dict.fromkeys(range(6), 0)
    for rows in script.restarted:
        starts |= {row: starts[row] + 1 for row in rows}
    per_end = 2 if mode == "NextStep" else 1  # the memory restarts after the end and, in this mode, after the reset
    first = np.sum(np.asarray(rollout.truncated | rollout.terminated)[0, :, 0])
    assert per_end * first - 1 <= starts[0] <= per_end * first
    columns.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("factory", "kwargs"), [("keyed", {}), ("keyed", {"singly": False}), ("asked", {})], ids=["key", "batch", "method"]
)
def test_masks_are_found_wherever_a_vector_environment_has_them(factory: str, kwargs: dict[str, Any], mode: str):
    expected = stepped(columns_of("vector:vector_environments:counting", 3, mode=mode), Script(allowed), 30)[0]
    name = f"vector:vector_environments:{factory}"
    columns = columns_of(name, 3, mode=mode, **kwargs)
    found: Any = stepped(columns, Script(allowed), 30)[0]
    columns.close()
    for field in ("observation", "next_observation"):
        part = getattr(found, field)
        at = part if factory == "asked" else part["at"]
        assert (part is at or set(part) == {"at"}) and np.array_equal(at, getattr(expected, field)), field
    for field in ("reward", "terminated", "truncated", "valid", "action", "action_mask"):
        assert np.array_equal(getattr(found, field), getattr(expected, field)), field
    described: Any = make(name)
    assert described.gives_masks and not make(name, masks=False).gives_masks
    env = described.create()
    assert ("action_masks()" if factory == "asked" else 'key "action_mask"') in source_of(env)
    env.close()


def test_a_tuple_of_masks_holds_one_for_each_environment():
    name, environments = "vector:vector_environments:called", 2  # as many as there are choices
    columns = columns_of(name, environments)
    found: Any = stepped(columns, Script(allowed), 30)[0]
    expected = stepped(columns_of("vector:vector_environments:counting", environments), Script(allowed), 30)[0]
    assert np.array_equal(found.action_mask, expected.action_mask) and np.array_equal(found.action, expected.action)
    assert make(name).max_episode_steps == 50


@pytest.mark.parametrize("mode", MODES)
def test_whole_episodes_are_one_a_column(mode: str):
    columns = columns_of("vector:vector_environments:counting", 3, mode=mode)
    for _ in range(2):
        rollout, ends = collect_host_episodes(columns, Script(allowed), np.array([True]), {})
        assert np.asarray(rollout.valid)[0].sum(axis=0).tolist() == list(LENGTHS)
        assert np.array_equal(rollout.observation[0, 0, :, 1], [0, 0, 0]), "each column starts with a new episode"
        assert sorted(ends.length.tolist()) == sorted(LENGTHS)
    assert len(set(columns.batches[0].seeds) - {None}) == 2, "each reset of the whole batch has a different seed"


def parts(observation: Any, n: int) -> Any:
    """Return the observation of column `n`."""
    return tuple(x[n] for x in observation) if isinstance(observation, tuple) else observation[n]


def by_hand(name: str, mode: str, num_envs: int, steps: int, action: Any) -> list[list[tuple[Any, ...]]]:
    """Return the transitions of each column, generated with Gymnasium's SyncVectorEnv and without upslope."""
    envs = SyncVectorEnv([lambda: gymnasium.make(name) for _ in range(num_envs)], autoreset_mode=mode)
    observation, _ = envs.reset(seed=reset_seed(7, 0, 0))
    found: list[list[tuple[Any, ...]]] = [[] for _ in range(num_envs)]
    over = np.zeros(num_envs, bool)
    for t in range(steps):
        chosen = action(None, None, t)[0]
        following, reward, terminated, truncated, info = envs.step(np.asarray(chosen))
        was_over, over = over, terminated | truncated
        for n in range(num_envs):
            if not (mode == "NextStep" and was_over[n]):
                final = info["final_obs"][n] if mode == "SameStep" and over[n] else parts(following, n)
                found[n].append((parts(observation, n), final, reward[n], terminated[n], truncated[n]))
        if mode == "Disabled" and over.any():
            following, _ = envs.reset(options={"reset_mask": over.copy()})
        observation = following
    envs.close()
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["CartPole-v1", "Blackjack-v1"])
def test_it_is_what_gymnasium_steps(name: str, mode: str):
    def action(observation: Any, mask: Any, t: int) -> Any:
        return np.random.default_rng(t).integers(0, 2, (1, 3))

    kwargs = {"vectorization_mode": "sync", "vector_kwargs": {"autoreset_mode": mode}}
    columns = columns_of(f"vector:{name}", 3, **kwargs)
    rollout, _ = stepped(columns, Script(action), 60)
    columns.close()
    for n, transitions in enumerate(by_hand(name, mode, 3, 60, action)):
        valid = np.asarray(rollout.valid[0, :, n])
        assert valid.sum() == len(transitions) > 30
        facts = [rollout.observation, rollout.next_observation, rollout.reward, rollout.terminated, rollout.truncated]
        for fact, expected in zip(facts, zip(*transitions, strict=True), strict=True):
            mine = np.stack([x[0, valid, n] for x in fact], -1) if isinstance(fact, tuple) else fact[0, valid, n]
            assert np.array_equal(mine, np.asarray(expected, mine.dtype))


def test_training_resumes_with_new_episodes_and_says_so(tmp_path, monkeypatch, capsys):
    """In NEXT_STEP mode, each reset takes up one row of the rollout but does not count as a step."""
    stopped = train_until_stopped(tmp_path, monkeypatch)
    capsys.readouterr()
    run = upslope.resume(stopped)
    said = " ".join("".join(capsys.readouterr()).split())  # the message may contain line breaks
    assert "cannot restore the 3 episodes in progress" in said
    episodes = run.episodes()
    assert set(episodes["length"]) <= set(LENGTHS)
    assert all(e["return"] == e["length"] * (e["length"] + 1) / 2 for e in episodes)
    steps = [row["step"] for row in run.metrics()]
    assert steps[-1] >= 60 and max(np.diff(steps)) < 24, "some of the 3 × 8 rows of an iteration were resets"
    found = upslope.evaluate(run.path, episodes=4)["deterministic"]
    assert sorted(found.lengths[0].tolist()) == [3, 3, 4, 5]
    assert upslope.record(run.path, episodes=3).exists()


def train_until_stopped(folder: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Start training, interrupt it, and return the path of the unfinished run."""
    from upslope.engines.host import HostEngine
    from upslope.runs import loop

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    advance, calls = HostEngine.advance, []

    def interrupted(self: Any, state: Any, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return advance(self, state, *arguments)

    monkeypatch.setattr(HostEngine, "advance", interrupted)
    name = "vector:vector_environments:counting"
    with pytest.raises(KeyboardInterrupt):
        upslope.train(name, steps=60, memory="gru", memory_size=8, folder=folder, name="run", preset=False, **SMALL)
    monkeypatch.setattr(HostEngine, "advance", advance)
    return folder / "run"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vector:vector_environments:fixed", "takes no argument num_envs"),
        ("vector:vector_environments:silent", "autoreset_mode"),
        ("vector:user_environments:Walk", "num_envs"),
        ("vector:Unheard-v0", "There is no environment"),
        ("envpool:Pong-v5", "pip install envpool"),
    ],
)
def test_what_is_no_vector_environment_is_refused(name: str, said: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(UpslopeError, match=said):
        make(name)


def test_a_lost_final_observation_is_refused():
    columns = columns_of("vector:vector_environments:forgetful", 3)
    with pytest.raises(UpslopeError, match="final_obs"):
        stepped(columns, Script(allowed), 8)


def test_wrappers_go_around_each_environment_of_an_id():
    made: Any = make("vector:CartPole-v1", wrappers=("TimeAwareObservation",), max_episode_steps=9)
    assert made.observation_space.shape == (5,) and made.max_episode_steps == 9 and "SyncVectorEnv" in made.kind
    with pytest.raises(UpslopeError, match="--wrapper would apply inside"):
        make("vector:vector_environments:counting", wrappers=("TimeAwareObservation",))
    masked: Any = make("vector:Taxi-v4")
    assert masked.gives_masks and not make("vector:Taxi-v4", masks=False).gives_masks


def test_an_id_may_name_the_module_that_registers_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = "import gymnasium\ngymnasium.register('Batched-Walk-v0', 'user_environments:Walk', max_episode_steps=7)\n"
    (tmp_path / "registers_a_walk.py").write_text(words)
    monkeypatch.syspath_prepend(tmp_path)
    made: Any = make("vector:registers_a_walk:Batched-Walk-v0")
    assert made.max_episode_steps == 7 and made.batch(3).num_envs == 3
    with pytest.raises(UpslopeError, match=r"^(?!.*\?\.).*Batched-Walk-v0"):  # no full stop after a question mark
        make("vector:registers_a_walk:Batched-Walks-v0")


def test_a_batched_id_needs_no_trust_and_a_factory_does():
    for name, needed in (("vector:CartPole-v1", 0), ("envpool:Pong-v5", 0), ("vector:my_module:make", 1)):
        assert len(requested(configure(name, is_continuous=False))) == needed


class Pool:
    """Has EnvPool's documented Gymnasium interface: single-environment spaces, a reset without a seed, extra info."""

    def __init__(self, num_envs: int, seed: int = 42):
        from vector_environments import Counting

        self.envs, self.seed, self.is_closed = Counting(num_envs), seed, False
        self.observation_space, self.action_space = self.envs.single_observation_space, self.envs.single_action_space
        self.spec = SimpleNamespace(config=SimpleNamespace(max_episode_steps=5))

    def reset(self) -> Any:
        observation, info = self.envs.reset(seed=self.seed)
        return observation, info | {"env_id": np.arange(self.envs.num_envs), "players": {"env_id": np.zeros(3)}}

    def step(self, action: Any) -> Any:
        return self.envs.step(action)

    def close(self) -> None:
        self.is_closed = True


def test_envpool_is_stepped_by_its_documented_interface(monkeypatch: pytest.MonkeyPatch):
    made: list[Pool] = []

    def pool(task_id: str, env_type: str, num_envs: int, **config: Any) -> Pool:
        assert (task_id, env_type) == ("Counting-v0", "gymnasium")
        made.append(Pool(num_envs, **config))
        return made[-1]

    monkeypatch.setitem(sys.modules, "envpool", SimpleNamespace(make=pool))
    columns = columns_of("envpool:Counting-v0", 3)
    assert columns.limit == 5
    rollout, _ = stepped(columns, Script(allowed), 12)
    columns.close()
    assert made[-1].seed == reset_seed(7, 0, 0) and all(pool.is_closed for pool in made)
    expected = np.tile([True, True, True, False], 3)
    assert np.array_equal(np.asarray(rollout.valid)[0, :, 0], expected)


def test_what_begins_afresh_remembers_nothing():
    """Environments that could not be replayed start new episodes, so memory and returns of the old ones are cleared."""
    settings: dict[str, Any] = {**SMALL, "memory": "gru", "memory_size": 8, "bonus": "rnd", "bonus_episodic": True}
    _, task = prepare("vector:vector_environments:counting", preset=False, settings=settings)
    state, fives = initialise_all(task, [0, 1]), np.full((2, 3), 5.0, np.float32)
    running = state._replace(
        memory=state.memory._replace(fresh=np.zeros((2, 3), bool)),
        discounted_return=fives,
        stream=state.stream._replace(discounted_return=fives),
    )
    after = begun_afresh(task, running, [1, 5])
    expected = np.array([[0, 1, 0], [0, 0, 1]], bool)
    assert np.array_equal(after.memory.fresh, expected) and begun_afresh(task, running, []) is running
    assert np.array_equal(after.stream.discounted_return, np.where(expected, 0.0, 5.0))
    assert np.array_equal(after.discounted_return, np.where(expected, 0.0, 5.0))
