"""Values that an environment returns to upslope are never cast silently if the cast would change them."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import user_environments
from gymnasium import spaces
from run_helpers import assert_same_run, before_chunk
from user_environments import Answers, Levers, Panic, Shows, Still, Strict, matrix, narrow_doubles, scalar

import upslope
from upslope.core.arrays import copied
from upslope.diagnosis.contract import fault_of_values
from upslope.engines.border import FIRST, Border, lost_in_float32
from upslope.engines.columns import HostColumns, reset_seed
from upslope.engines.notices import Notices
from upslope.environments.registry import make
from upslope.errors import UpslopeError
from upslope.models.box_heads import BoxHead
from upslope.models.encoders import ObservationEncoder, encoder_of
from upslope.models.heads import head_of

SMALL: dict[str, Any] = {"num_envs": 2, "rollout_steps": 8, "minibatches": 2, "epochs": 1, "hidden_sizes": (8,)}
SMALL |= {"quiet": True, "preset": False, "max_episode_steps": 20}


def walked(create: Any, steps: int = 3) -> tuple[HostColumns, list[str]]:
    """Step one environment with action 0; return its columns and all notices."""
    said: list[str] = []
    world: Any = make(create)
    encoder, head = encoder_of(world.observation_space, "it"), head_of(world.action_space, "it")
    columns = HostColumns(world, encoder, head, [0], 1, None, notices=Notices(lambda kind, words: said.append(words)))
    columns.begin([0])
    for _ in range(steps):
        columns.step(np.zeros((1, *head.sample_shape), np.float32), np.arange(1), copied(columns.flat))
    return columns, said


GOOD: dict[str, Any] = {"a": np.zeros(2, np.float32), "b": 1}


@pytest.mark.parametrize(
    ("late", "words"),
    [
        (GOOD | {"b": 7}, "7 is out of range"),
        (GOOD | {"c": 0}, "requires"),
        ({"a": GOOD["a"]}, "requires"),
        (GOOD | {"a": np.ma.array([0.0, 1.0], mask=[True, False])}, "some of its numbers are masked"),
        (GOOD | {"a": np.zeros(3, np.float32)}, "requires"),
        (np.zeros((), [("c", int)]), "requires"),
        ((GOOD["a"], 1), "requires"),
    ],
)
def test_a_fault_in_a_part_is_found_in_the_first_step_that_has_it(late: Any, words: str):
    space = spaces.Dict({"a": spaces.Box(-9, 9, (2,), np.float32), "b": spaces.Discrete(3)})
    shown = [GOOD]
    columns, _ = walked(lambda: Shows(space, lambda generator: shown[-1]), FIRST + 4)
    shown.append(late)
    act = np.zeros((1, *columns.head.sample_shape), np.float32)
    with pytest.raises(UpslopeError, match=words):
        columns.step(act, np.arange(1), copied(columns.flat))


def box(low: float, high: float, dtype: Any, shape: tuple[int, ...] = (1,)) -> spaces.Box:
    return spaces.Box(low, high, shape, dtype)


@pytest.mark.parametrize(
    ("space", "shown", "words"),
    [
        (box(0, 1, np.uint8), np.array([0.5]), "casting 0.5 to "),
        (box(0, 255, np.uint8), np.array([0.5], np.float32), "casting 0.5 to "),
        (box(0, 255, np.uint8), np.array([-1]), "casting -1 to "),
        (box(0, 255, np.uint8), np.array([300]), "casting 300 to "),
        (box(-100, 100, np.int32), np.array([2.25]), "casting 2.25 to "),
        (box(-100, 100, np.int64), [1.5], "casting 1.5 to "),
        (box(-(2**40), 2**40, np.int64), np.array([2**35]), "does not fit into 32 bits"),
        (box(-np.inf, np.inf, np.float32), np.array([1e300]), "1e.300 is beyond the largest float32"),
        (box(-np.inf, np.inf, np.float32), np.array(["1"]), "dtype is <U1"),
        (box(-np.inf, np.inf, np.float32), np.array([1j]), "dtype is complex128"),
        (box(-9, 9, np.float32), np.ma.array([1.0], mask=[True]), "some of its numbers are masked"),
        (spaces.Discrete(3), 7, "7 is out of range"),
        (spaces.Discrete(3), -1, "-1 is out of range"),
        (spaces.Discrete(3), np.int64(3), "3 is out of range"),
        (spaces.Discrete(3, start=5), 0, "0 is out of range"),
        (spaces.Discrete(3), 1.5, "casting 1.5 to "),
        (spaces.Discrete(3), None, "NoneType, not numbers"),
    ],
)
def test_a_cast_that_changes_a_number_is_refused(space: spaces.Space, shown: Any, words: str):
    with pytest.raises(UpslopeError, match=words) as fault:
        walked(lambda: Shows(space, lambda generator: shown))
    said = str(fault.value)
    assert "test_border" in said
    assert str(space) in said
    assert "environment 0 of seed 0, episode 0" in said


@pytest.mark.parametrize(
    ("space", "shown", "is_in_space"),
    [
        (box(0, 2**62, np.int64), np.array([2**40]), True),
        (box(-np.inf, np.inf, np.float64), np.array([1e300]), True),
        (box(0, 9, np.int64), np.array([2**40]), False),
        (box(-np.inf, np.inf, np.float32), np.array([1e300]), False),
        (box(-np.inf, np.inf, np.float64), np.ma.array([1.0], mask=[True]), False),
    ],
)
def test_a_number_of_the_space_that_needs_64_bits_is_not_blamed_on_the_space(
    space: spaces.Space, shown: Any, is_in_space: bool
):
    with pytest.raises(UpslopeError) as fault:
        walked(lambda: Shows(space, lambda generator: shown))
    for words in ("upslope computes in 32 bits; its space is Box", "Scale the numbers, or subtract an offset"):
        assert (words in str(fault.value)) is is_in_space
    assert ("not in its space" in str(fault.value)) is not is_in_space
    if not np.ma.is_masked(shown):
        told: Any = fault_of_values(space, shown)
        assert ("upslope computes in 32 bits" in told[0]) is is_in_space


@pytest.mark.parametrize(
    ("space", "shown", "kept"),
    [
        (box(0, 255, np.uint8), np.array([200]), 200),
        (box(0, 255, np.uint8), np.array([3.0]), 3),
        (box(-9, 9, np.int64), [-5], -5),
        (box(-9, 9, np.float32), np.array([0.1]), np.float32(0.1)),
        (box(-9, 9, np.float64), np.array([7], np.int8), 7),
        (spaces.Discrete(3), True, 1),
        (spaces.Discrete(3), np.int8(2), 2),
        (spaces.Discrete(3), np.array(2), 2),
        (spaces.Discrete(3), 2.0, 2),
        (spaces.Discrete(3, start=-1), -1, -1),
    ],
)
def test_a_cast_that_keeps_the_number_is_taken(space: spaces.Space, shown: Any, kept: Any):
    columns, said = walked(lambda: Shows(space, lambda generator: shown), FIRST + 40)
    assert columns.flat.ravel()[0] == kept
    assert said == []


@pytest.mark.parametrize("late", [20, FIRST + 200])
def test_an_index_without_a_place_is_refused_at_any_time(late: int):
    def shows_nine_late() -> Shows:
        count = iter(range(10_000))
        return Shows(spaces.Discrete(3), lambda generator: 9 if next(count) >= late else 1)

    with pytest.raises(UpslopeError, match=f"9 is out of range.*step {late}"):
        walked(shows_nine_late, late + 5)


def test_bounds_that_are_exceeded_are_told_once():
    columns, said = walked(lambda: Shows(box(-1, 1, np.float32), lambda generator: np.array([3.5], np.float32)), 150)
    assert len(said) == 1
    assert "3.5" in said[0]
    assert "Box(-1.0, 1.0, (1,), float32)" in said[0]
    assert columns.flat[0, 0] == 3.5
    assert walked(lambda: Shows(box(-0.1, 0.1, np.float64), lambda generator: np.array([0.1], np.float32)))[1] == []


def test_each_array_of_an_observation_is_checked():
    class Encoder(ObservationEncoder):
        shapes = {"a": (1,), "b": (2,), "c": ()}  # noqa: RUF012 - never changed
        normalised, num_features, encode, space = None, 4, None, None

    space = spaces.Dict({"a": box(0, 9, np.uint8), "b": spaces.MultiDiscrete([2, 3]), "c": spaces.Discrete(4)})
    columns, _ = walked(Still)
    border = Border("it", space, Encoder())
    into, sound = border.empty(2), {"a": np.array([3], np.uint8), "b": np.array([1, 2]), "c": 3}
    border.placing(into)(1, sound, columns.episodes[0])
    assert [into[name][1].tolist() for name in "abc"] == [[3], [1, 2], 3]
    assert [into[name].dtype for name in "abc"] == [np.uint8, np.int64, np.int64]
    for name, wrong in (("a", np.array([0.5])), ("b", np.array([1, 3])), ("c", 4)):
        with pytest.raises(UpslopeError, match=rf"observation\['{name}'\]"):
            border.placing(into)(0, sound | {name: wrong}, columns.episodes[0])


@pytest.mark.parametrize(
    ("draw", "dtype", "is_lost"),
    [
        (lambda g: 1.7e9 + g.uniform(-1, 1, 2), np.float64, True),
        (lambda g: -1e5 + 1e-3 * g.uniform(-1, 1, 2), np.float64, True),
        (lambda g: np.array([2**30 + g.integers(3), 0]), np.int64, True),
        (lambda g: 1e3 + g.uniform(-1, 1, 2), np.float16, True),
        (lambda g: 1e3 + g.uniform(-1, 1, 2), np.float64, False),
        (lambda g: 1.7e9 + 1e6 * g.uniform(-1, 1, 2), np.float64, False),
        (lambda g: np.full(2, 1.7e9), np.float64, False),
        (lambda g: 1 + 1e-12 * g.uniform(-1, 1, 2), np.float64, False),
    ],
)
def test_digits_that_floats_cannot_hold_are_told(draw: Any, dtype: Any, is_lost: bool):
    space = spaces.Box(-(2**31), 2**31 - 1, (2,), dtype) if dtype == np.int64 else box(-np.inf, np.inf, dtype, (2,))
    _, said = walked(lambda: Shows(space, draw), FIRST + 10)
    assert len(said) == is_lost
    assert all("Subtract the offset" in words and "feature 0" in words for words in said)
    if dtype != np.float16:
        generator = np.random.default_rng(0)
        assert bool(lost_in_float32(np.stack([draw(generator) for _ in range(200)])).size) is is_lost


class Unreadable:
    """Can neither be converted by NumPy nor be shown in an error message."""

    def __array__(self, *arguments: Any, **options: Any) -> Any:
        raise Panic

    def __repr__(self) -> str:
        raise ValueError("there is no text")


class UnreadableError(Exception):
    """An exception that cannot be converted to text."""

    def __str__(self) -> str:
        raise ValueError("there is no text")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: (a[0], a[1], False, {}), r"returned 4 values \(ndarray, float, bool, dict\) from step.*0\.26"),
        (lambda a: a[:3], r"returned 3 values .* from step\(\), where Gymnasium expects \(observation, reward, term"),
        (lambda a: None, r"returned None from step"),
        (lambda a: np.zeros(5), "returned one ndarray"),
        (lambda a: (a[0], None, *a[2:]), "reward None of type NoneType"),
        (lambda a: (a[0], "1.0", *a[2:]), "reward 1.0 of type str"),
        (lambda a: (a[0], np.ones(2), *a[2:]), r"reward of shape \(2,\).*--wrapper .WeightedReward"),
        (lambda a: (a[0], 1.0, None, False, {}), "`terminated` as None"),
        (lambda a: (a[0], 1.0, False, {}, False), "`truncated` as {}"),
        (lambda a: (a[0], np.ma.masked, *a[2:]), "reward -- of type MaskedConstant"),
        (lambda a: (a[0], 1.0, np.ma.masked, False, {}), "`terminated` as -- of type MaskedConstant"),
        (lambda a: (a[0], Unreadable(), *a[2:]), "reward <Unreadable> of type Unreadable"),
        (lambda a: (a[0], 1.0, Unreadable(), False, {}), "`terminated` as <Unreadable>"),
        (
            lambda a: (*a[:4], None),
            r"`info` as None of type NoneType from step\(\), where Gymnasium expects a dictionary.*Return {} if",
        ),
        (lambda a: (*a[:4], []), r"`info` as \[\] of type list"),
        (lambda a: (*a[:4], "x"), "`info` as x of type str"),
        (lambda a: (Unreadable(), *a[1:]), "observation of type Unreadable"),
        (lambda a: (np.array([np.nan, 0.0], np.float32), *a[1:]), "returned an observation that is not finite"),
    ],
)
def test_an_answer_of_another_form_is_named(change: Any, words: str):
    with pytest.raises(UpslopeError, match=words) as fault:
        walked(lambda: Answers(change))
    assert "raised" not in str(fault.value)
    assert "environment 0 of seed 0, episode 0" in str(fault.value)


@pytest.mark.parametrize("change", [lambda a: a[0], lambda a: None, lambda a: (*a, 1), lambda a: (0.0, 1.0)])
def test_a_reset_of_another_form_is_named(change: Any):
    with pytest.raises(UpslopeError, match=r"from reset\(\), where Gymnasium expects \(observation, info\)"):
        walked(lambda: Answers(lambda a: a, change))


def test_an_info_that_is_none_is_refused_at_reset():
    with pytest.raises(UpslopeError, match=r"`info` as None of type NoneType from reset\(\), where Gymnasium expects"):
        walked(lambda: Answers(lambda a: a, lambda a: (a[0], None)))


@pytest.mark.parametrize(
    "reward", [np.ones(1), np.array(1.0), np.ones((1, 1), np.int8), True, 1, np.int16(1), np.float16(1), np.bool_(True)]
)
def test_one_number_is_a_reward_however_it_is_wrapped(reward: Any):
    columns, _ = walked(lambda: Answers(lambda a: (a[0], reward, *a[2:])), 5)
    assert columns.episodes[0].episode_return == 5.0


def fails_without_text(answer: Any) -> Any:
    raise UnreadableError


def test_an_exception_without_text_is_named_by_its_type():
    with pytest.raises(UpslopeError, match=r"raised UnreadableError in step\(\): <UnreadableError> — environment 0"):
        walked(lambda: Answers(fails_without_text))


def test_a_mask_in_a_masked_array_is_refused():
    head = head_of(spaces.Discrete(3), "it")
    assert head.flat_mask(np.ma.array([1, 0, 1])).tolist() == [True, False, True]
    with pytest.raises(ValueError, match="themselves masked"):
        head.flat_mask(np.ma.array([1, 0, 1], mask=[1, 0, 0]))


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i2"])
def test_a_foreign_byte_order_is_read(dtype: str, tmp_path: Path):
    space = box(-9, 9, np.dtype(dtype), (2,))
    run = upslope.train(lambda: Shows(space, lambda _: np.array([1, 2], dtype)), steps=64, folder=tmp_path, **SMALL)
    assert np.isfinite(run.returns).all()


def test_an_empty_box_is_refused_for_what_it_is():
    with pytest.raises(UpslopeError, match="which contains no number"):
        encoder_of(spaces.Box(-1, 1, (0,)), "it")


def fails(answer: Any) -> Any:
    raise AssertionError


def test_an_exception_of_an_environment_has_a_place_in_its_file():
    with pytest.raises(UpslopeError) as fault:
        walked(lambda: Answers(fails))
    said = str(fault.value)
    assert "raised AssertionError in step() — environment 0" in said
    assert f"({Path(__file__).name}, line {fails.__code__.co_firstlineno + 1}: raise AssertionError)" in said


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bound", [0.1, 1 / 3, 1e-3, 1000.1, np.inf])
def test_actions_are_in_the_space_in_its_dtype(dtype: Any, bound: float):
    space = spaces.Box(-bound, bound, (2,), dtype)
    head: Any = head_of(space, "it")
    taken = head.to_environment(np.array([[0.1, -0.1], [1e9, -1e9], [bound, -bound], [0.0, np.pi]], np.float32))
    assert taken.dtype == dtype
    assert all(space.contains(action) for action in taken)
    assert np.isfinite(taken).all()


def test_integer_boxes_of_actions_are_refused_by_their_dtype():
    with pytest.raises(UpslopeError, match=r"dtype int32.*Discrete or MultiDiscrete"):
        head_of(spaces.Box(0, 5, (2,), np.int32), "it")


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=-1),
        spaces.Discrete(3, dtype=np.uint8),
        spaces.MultiDiscrete([2, 3], dtype=np.int32),
        spaces.MultiBinary(3),
        spaces.Dict({"a": spaces.Discrete(3, dtype=np.uint8), "b": box(-1, 1, np.float32)}),
        spaces.Tuple([spaces.Discrete(3, dtype=np.int32), spaces.MultiBinary(2)]),
    ],
)
def test_whole_actions_are_in_the_space(space: spaces.Space):
    run = partial(walked, lambda: Strict(space))
    assert run(5)[0].episodes[0].length == 5


@pytest.mark.parametrize("create", [narrow_doubles, pytest.param(matrix, marks=pytest.mark.weekly), scalar])
def test_boxes_of_any_shape_and_dtype_train_evaluate_and_resume(create: Any, tmp_path: Path, capsys: Any):
    def stop() -> None:
        raise UpslopeError("Enough.")

    train = partial(upslope.train, f"user_environments:{create.__name__}", steps=192, folder=tmp_path, **SMALL)
    whole = train(name="whole")
    with before_chunk(7, stop), pytest.raises(UpslopeError, match="Enough"):
        train(name="stopped", workers=1)
    for workers in (1, 2):
        resumed = tmp_path / f"resumed by {workers}"
        shutil.copytree(tmp_path / "stopped", resumed)
        upslope.resume(resumed, quiet=True, workers=workers)
        assert_same_run(whole.path, resumed)
    assert upslope.evaluate(whole.path, episodes=2)["stochastic"].lengths.tolist() == [[20, 20]]
    assert capsys.readouterr().err == ""
    env = create()
    policy = whole.load()
    assert env.action_space.contains(policy(np.zeros(2, np.float32), deterministic=False))
    assert all(env.action_space.contains(a) for a in policy(np.zeros((3, 2), np.float32)))


def test_a_description_without_a_dtype_is_that_of_an_earlier_version():
    from upslope.models.description import from_json, to_json
    from upslope.models.heads import HEADS

    described = to_json(head_of(spaces.Box(-0.1, 0.1, (2,), np.float64), "it"))
    assert from_json(described, HEADS) == BoxHead((2,), (-0.1, -0.1), (0.1, 0.1), "float64")
    del described["dtype"]
    assert from_json(described, HEADS).dtype == "float32"
    with pytest.raises(ValueError, match="dtype"):
        from_json(described | {"dtype": "int32"}, HEADS)


def test_reset_seeds_fit_into_signed_integers():
    seeds = [
        reset_seed(seed, index, episode) for seed in (0, 1, 2**32 - 1) for index in range(5) for episode in range(200)
    ]
    assert max(seeds) < 2**31
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("action", ["evaluate", "record", "resume"])
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"observation_space": spaces.Box(-1.0, 1.0, (3,), np.float32)},
            r"shape of its observations was \(2,\), and is now \(3",
        ),
        ({"observation_space": spaces.Discrete(3)}, "observations were Box, and are now Discrete"),
        (
            {"action_space": spaces.Box(-2.0, 1.0, (1,), np.float32)},
            r"low of its actions was \(-1.0,\), and is now \(-2.0,\)",
        ),
        ({"action_space": spaces.Discrete(2)}, "actions were Box, and are now Discrete"),
    ],
)
def test_another_environment_than_the_runs_is_refused(
    action: str, changed: dict[str, Any], words: str, tmp_path: Path, monkeypatch: Any
):
    monkeypatch.setattr(user_environments.Still, "action_space", spaces.Box(-1.0, 1.0, (1,), np.float32))
    run = upslope.train("user_environments:Still", steps=32, folder=tmp_path, name="run", **SMALL).path
    before = sorted(path.name for path in run.iterdir())
    for name, space in changed.items():
        monkeypatch.setattr(user_environments.Still, name, space)
    with pytest.raises(UpslopeError, match=words):
        getattr(upslope, action)(run)
    assert sorted(path.name for path in run.iterdir()) == before


def test_an_id_means_in_workers_what_it_means_here(tmp_path: Path):
    original = gymnasium.registry["CartPole-v1"]
    try:
        gymnasium.register("CartPole-v1", entry_point="user_environments:Walk", max_episode_steps=7)
        train = partial(
            upslope.train, "CartPole-v1", seeds=2, steps=192, folder=tmp_path, **SMALL | {"max_episode_steps": None}
        )
        alone, several = train(name="alone", workers=1), train(name="several", workers=2)
    finally:
        gymnasium.registry["CartPole-v1"] = original
    assert_same_run(alone.path, several.path)
    assert several.episodes()["length"].max() == 7


def test_a_space_that_needs_levers_still_trains(tmp_path: Path):
    space = spaces.MultiDiscrete([2, 3], dtype=np.int32)
    assert upslope.train(lambda: Levers(space), steps=32, folder=tmp_path, **SMALL).path.exists()
