"""Exported policies, run with only NumPy, in C and in onnxruntime, agree with upslope's own on a thousand random
observations. The agents are untrained and have random parameters and statistics."""

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from helpers import fresh_agent, write_run

import upslope
from upslope.cli.main import main
from upslope.config.task import model_of
from upslope.core.distributions import DiagonalGaussian, MultiCategorical, SquashedGaussian
from upslope.errors import UpslopeError
from upslope.learning.iteration import stack
from upslope.models.agent import initialise_agents
from upslope.models.box_heads import BoxHead
from upslope.models.choice_heads import DiscreteHead
from upslope.models.encoders import encoder_of
from upslope.models.heads import with_policy
from upslope.runs.checkpoints import save_checkpoint
from upslope.runs.directory import RunDirectory
from upslope.runs.export import running, writing
from upslope.runs.export.plan import Dense, Plan
from upslope.runs.export.running import compiler, run_c
from upslope.runs.export.samples import random_arrays, random_masks, structured
from upslope.runs.export.walk import plan_of, widened
from upslope.runs.policy import Policy, spaces_of

EPISODES, STEPS, COLUMNS = 8, 4, 32
"""Their product is the number of observations, about a thousand. Each column has eight episodes, and the memory
restarts between them."""
FORMATS = ("numpy", "c", "onnx")
VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)
EVERYTHING = spaces.Dict(
    {
        "arm": spaces.Tuple([spaces.Box(-1, 1, (2, 2)), spaces.Discrete(4, start=-1)]),
        "buttons": spaces.MultiBinary((2, 2)),
        'gripper"""\n*/': spaces.MultiDiscrete([2, 3], start=[1, 5]),
        "action": spaces.Box(-1, 1, ()),
        "board": spaces.Box(0, 255, (6, 6), np.uint8),
    }
)
VECTORS = spaces.Dict({"angles": spaces.Box(-1, 1, (2, 2)), "buttons": spaces.MultiBinary(3)})
BOX = spaces.Box(np.array([-2.0, 0.0, -np.inf]), np.array([2.0, 10.0, 3.0]), dtype=np.float64)
MOVES = spaces.Dict(
    {
        "arm": spaces.Tuple([BOX, spaces.MultiBinary(2), spaces.MultiDiscrete([2, 3], start=[1, 5], dtype=np.int16)]),
        'kind"""*/': spaces.Discrete(3, start=-1),
        "a/b": spaces.Box(-3, 1, (2, 2), np.float32),
        "a": spaces.Dict({"b": spaces.Discrete(2, dtype=np.int32)}),
    }
)
"""A space in which the paths of two parts are equal when written as text."""
BOUNDED = spaces.Dict({"push": spaces.Box(-2, 6, (2,), np.float64), "PUSH": spaces.Discrete(3)})
CASES: dict[str, tuple[spaces.Space, spaces.Space, dict[str, Any]]] = {
    "choice": (VECTOR, spaces.Discrete(3, start=5, dtype=np.uint8), {}),
    "masked choice": (VECTOR, spaces.Discrete(4), {"masks": True, "hidden_sizes": ()}),
    "box": (VECTOR, BOX, {"activation": "silu"}),
    "matrix": (VECTOR, spaces.Box(-3, 1, (2, 2), np.float32), {"normalize": False}),
    "half": (VECTOR, spaces.Box(-1, 1, (2,), np.float16), {}),
    "choices": (VECTORS, spaces.MultiDiscrete([[2, 3], [4, 5]], dtype=np.int16), {"activation": "relu"}),
    "masked choices": (VECTOR, spaces.MultiDiscrete([2, 5], start=[3, -9]), {"masks": True}),
    "switches": (VECTOR, spaces.MultiBinary((2, 3)), {}),
    "masked switches": (VECTOR, spaces.MultiBinary(4), {"masks": True}),
    "a number": (spaces.Discrete(5, start=2), spaces.Discrete(2), {}),
    "everything": (EVERYTHING, spaces.Discrete(3), {"encoders": ("perceptron",), "masks": True}),
    "hybrid": (VECTOR, MOVES, {}),
    "masked hybrid": (VECTORS, MOVES, {"masks": True, "state_std": True}),
    "squashed": (
        VECTOR,
        spaces.Box(np.array([-2.0, 1.0]), np.array([2.0, 7.0]), dtype=np.float32),
        {"kind": "squashed"},
    ),
    "squashed parts": (VECTOR, BOUNDED, {"kind": "squashed", "state_std": True, "memory": "gru"}),
    "state σ": (VECTOR, BOX, {"state_std": True, "log_std_init": 1.5}),
    "one part": (VECTOR, spaces.Tuple([spaces.Discrete(3)]), {"masks": True}),
    "gru": (VECTORS, BOX, {"memory": "gru"}),
    "gru trunk": (VECTOR, spaces.Discrete(3), {"memory": "gru", "shared_trunk": True, "hidden_sizes": ()}),
    "lstm": (EVERYTHING, spaces.Discrete(3), {"memory": "lstm", "encoders": ("perceptron",), "shared_trunk": True}),
    "lru": (VECTOR, BOX, {"memory": "lru", "masks": False}),
    "noise of the state": (VECTOR, BOX, {"kind": "gsde"}),
    "noise of the state in a trunk": (VECTOR, MOVES, {"kind": "gsde", "memory": "gru", "shared_trunk": True}),
    "nature": (spaces.Box(0, 255, (3, 37, 36), np.uint8), spaces.Discrete(3), {"encoders": ("nature",)}),
    "impala": (spaces.Box(0, 255, (18, 9, 2), np.uint8), spaces.Discrete(3), {"encoders": ("impala",)}),
    "board": (EVERYTHING, BOX, {"shared_trunk": True}),
    "maps": (spaces.Box(-1, 1, (2, 5, 6), np.float32), spaces.Discrete(3), {}),
}
CONVOLVED = {"nature", "impala", "board", "maps"}
IN_NUMPY = [name for name in CASES if name not in CONVOLVED]
IN_C = [name for name in IN_NUMPY if name not in ("half", "a number", "everything", "lstm", "lru")]


def policy_of(observation_space: Any, action_space: Any, *, normalize=True, masks=False, **settings: Any) -> Policy:
    """Create an untrained policy with random parameters and random statistics."""
    settings = {"hidden_sizes": (16,), "log_std_init": -0.5} | settings
    if "memory" in settings:
        settings["memory_size"] = 7
    normalised = ["observations"] if normalize else []
    chosen: Any = {"kind": settings.pop("kind", "gaussian"), "state_std": settings.pop("state_std", False)}
    sizes = settings["hidden_sizes"]
    head = with_policy(upslope.head_of(action_space), "world", **chosen, log_std_init=-0.5, hidden_sizes=sizes)
    agent = fresh_agent(jax.random.key(0), observation_space, action_space, normalize=normalised, head=head, **settings)
    draw = np.random.default_rng(1)
    model = jax.tree.map(lambda x: x + disturbance(x, draw), agent.model)
    statistics = jax.tree.map(lambda x: jnp.asarray(0.3 + draw.random(x.shape), jnp.float32), agent.normaliser)
    agent = replace(agent, model=model, normaliser=statistics)
    return Policy(agent, encoder_of(observation_space, "world"), 0, "best", needs_mask=masks)


def disturbance(x: Any, draw: np.random.Generator) -> np.ndarray:
    """Draw random changes that keep outputs about as large as after training."""
    size = 0.5 / np.sqrt(x[0].size) if x.ndim > 1 else 0.2
    return (size * draw.normal(size=x.shape)).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """A policy, its inputs, and the outputs that upslope computes from them."""

    policy: Policy
    plan: Plan
    arrays: list[np.ndarray]
    """The parts of the observation, each with the shape [EPISODES, STEPS, COLUMNS, …]."""
    masks: np.ndarray | None
    wanted: dict[str, np.ndarray]


@cache
def case(name: str) -> Case:
    """Return a case by name. Its inputs are drawn only once."""
    observation_space, action_space, settings = CASES[name]
    policy = policy_of(observation_space, action_space, **settings)
    plan = plan_of(policy.agent, policy.encoder, has_masks=policy.needs_mask)
    draw, count = np.random.default_rng(2), EPISODES * STEPS * COLUMNS
    arrays = [in_time(x) for x in random_arrays(plan, count, draw)]
    masks = random_masks(plan, count, draw)
    masks = None if masks is None else in_time(masks)
    return Case(policy, plan, arrays, masks, answers(policy, plan, arrays, masks))


def in_time(x: np.ndarray) -> np.ndarray:
    return x.reshape(EPISODES, STEPS, COLUMNS, *x.shape[1:])


def answers(policy: Policy, plan: Plan, arrays: list[np.ndarray], masks: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return the outputs of upslope's policy: the actions that a user's calls return, and the distributions'
    parameters."""
    twin, found = copy.copy(policy), []
    for episode in range(EPISODES):
        policy.reset()
        twin.reset()
        for t in range(STEPS):
            observation = structured(plan, policy.encoder, [x[episode, t] for x in arrays])
            mask = None if masks is None else masks[episode, t]
            if plan.pictures:  # without compilation, convolutions take minutes
                distribution, _ = policy.step(policy.agent, observation, (), np.zeros(COLUMNS, bool), mask)
                action = policy.agent.head.to_environment(np.asarray(distribution.mode()))
            else:
                distribution = twin.distribution(observation, mask)
                action = policy(observation, **({} if mask is None else {"mask": list(mask)}))
            found.append({name: x for path, *each in parts(action, distribution) for name, x in named(path, *each)})
    return {name: in_time(np.concatenate([each[name] for each in found])) for name in found[0]}


def parts(action: Any, distribution: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (path, action, distribution) for each part of an action."""
    if not isinstance(action, dict | tuple):
        yield path, action, distribution
        return
    children = action.items() if isinstance(action, dict) else enumerate(action)
    for (key, inner), leaf in zip(children, distribution.parts, strict=True):
        yield from parts(inner, leaf, f"{path}/{key}")


def named(path: str, action: Any, distribution: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the names and values of a part's action and parameters. If two parts have the same path, the second gets an
    apostrophe."""
    path += "'" if path == "/a/b" and action.ndim > 1 else ""
    yield f"action{path}", action
    if isinstance(distribution, DiagonalGaussian | SquashedGaussian):
        yield f"mean{path}", np.asarray(distribution.mean)
        yield f"log_std{path}", np.broadcast_to(distribution.log_std, distribution.mean.shape)
    elif isinstance(distribution, MultiCategorical):
        yield f"logits{path}", np.concatenate([head.logits for head in distribution.heads], axis=-1)
    else:
        yield f"logits{path}", np.asarray(distribution.logits)


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """Assert that parameters agree within 1e-5 (relative plus absolute) and that actions are equal."""
    for name, x in wanted.items():
        assert found[name].shape == x.shape, name
        if x.dtype.kind == "f":
            tolerance = 1e-3 if x.dtype == np.float16 else 1e-5
            np.testing.assert_allclose(found[name], x, rtol=tolerance, atol=tolerance, err_msg=name)
        if name.startswith("action"):
            assert found[name].dtype == x.dtype
            if x.dtype.kind != "f":
                np.testing.assert_array_equal(found[name], x, name)  # there are no ties between scores in these draws


SCRIPT = """
import json, sys
sys.path.append(sys.argv[1])
import numpy as np
def flat(action, name="action"):
    if not isinstance(action, (dict, tuple)):
        return {name: action}
    inner = action.items() if isinstance(action, dict) else enumerate(action)
    marked = lambda key, x: f"{name}/{key}" + "'" * (key == "a/b" and "a" in action)
    return {n: y for key, x in inner for n, y in flat(x, marked(key, x)).items()}
assert not [name for name in ("jax", "upslope", "equinox") if __import__("importlib.util").util.find_spec(name)]
for folder in sys.argv[2:]:
    sys.path.insert(0, folder)
    sys.modules.pop("policy", None)
    policy = __import__("policy").Policy()
    given = dict(np.load(folder + "/given.npz"))
    paths = json.load(open(folder + "/paths.json"))
    found = []
    episodes, steps = given["x_0"].shape[:2]
    for episode in range(episodes):
        policy.reset()
        for t in range(steps):
            observation = {}
            for k, path in enumerate(paths):
                place, x = observation, given[f"x_{k}"][episode, t]
                if not path:
                    observation = x
                for key in path[:-1]:
                    place = place.setdefault(key, {})
                if path:
                    place[path[-1]] = x
            mask = {"mask": given["mask"][episode, t]} if "mask" in given else {}
            action, parameters = policy.act(observation, **mask)
            found.append({**flat(action), **parameters})
    np.savez(folder + "/found.npz", **{name: np.stack([each[name] for each in found]) for name in found[0]})
    sys.path.pop(0)
"""


@pytest.fixture(scope="module")
def in_numpy(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return the outputs of the generated files, run in a Python that has only NumPy."""
    bare = folder / "bare"
    bare.mkdir()
    installed = Path(np.__file__).parents[1]
    for name in ("numpy", "numpy.libs"):
        if (installed / name).exists():
            (bare / name).symlink_to(installed / name)
    places = {name: folder / name.replace(" ", "_") for name in IN_NUMPY}
    for name, place in places.items():
        place.mkdir()
        made = case(name)
        assert made.policy.export("numpy", place).paths == (place / "policy.py", place / "policy.npz")
        masks = {} if made.masks is None else {"mask": made.masks}
        given: Any = {f"x_{k}": x for k, x in enumerate(made.arrays)} | masks
        np.savez(place / "given.npz", **given)
        (place / "paths.json").write_text(json.dumps([one.path for one in made.plan.inputs]))
    script = [sys.executable, "-I", "-S", "-c", SCRIPT, str(bare), *map(str, places.values())]
    done = subprocess.run(script, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return {name: dict(np.load(place / "found.npz")) for name, place in places.items()}


@pytest.mark.parametrize("name", IN_NUMPY)
def test_in_numpy_alone_a_policy_is_itself(name: str, in_numpy: Any, folder: Path):
    wanted = case(name).wanted
    assert_same({key: x.reshape(wanted[key].shape) for key, x in in_numpy[name].items()}, wanted)
    source = (folder / name.replace(" ", "_") / "policy.py").read_text()
    assert len(source.splitlines()) < 120
    has_gates = CASES[name][2].get("memory") in ("gru", "lstm")
    assert ("sigmoid" in source) == has_gates, "the file contains only what the policy uses"


def test_one_observation_gives_one_action_and_another_shape_is_refused(folder: Path, in_numpy: Any):
    names: dict[str, Any] = {"__file__": str(folder / "box" / "policy.py"), "__name__": "policy"}
    exec((folder / "box" / "policy.py").read_text(), names)
    policy = names["Policy"]()
    np.testing.assert_allclose(policy([0.1, 0.2, 0.3]), case("box").policy([0.1, 0.2, 0.3]), rtol=1e-5)
    for wrong in (np.zeros(4), np.zeros((3, 1)), np.zeros((2, 2, 3)), 1.0):
        with pytest.raises(ValueError, match=r"must be \(3,\)"):
            policy(wrong)


@pytest.mark.parametrize("name", ["choice", "hybrid", "choices", "switches"])
def test_actions_of_a_policy_and_of_its_file_are_in_the_space(name: str, folder: Path, in_numpy: Any):
    observation_space, action_space, _ = CASES[name]
    observation_space.seed(0)
    names: dict[str, Any] = {"__file__": str(folder / name / "policy.py"), "__name__": "policy"}
    exec((folder / name / "policy.py").read_text(), names)
    observation = observation_space.sample()
    for policy in (case(name).policy, names["Policy"]()):
        assert action_space.contains(policy(observation))


def test_a_policy_reads_only_what_its_spaces_hold():
    choices = policy_of(spaces.Discrete(4, start=1), spaces.Discrete(2))
    choices(4)
    for wrong in (0, 5, -1, 1.5, [1, 9]):
        with pytest.raises(UpslopeError, match="This policy reads Discrete"):
            choices(wrong)
    several = policy_of(spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(3)}), spaces.Discrete(2))
    with pytest.raises(UpslopeError, match="reads observations of shape"):
        several({"a": [[0.0, 0.0], [1.0, 1.0]], "b": [1, 2, 0]})
    masked = policy_of(VECTOR, spaces.Discrete(2), masks=True)
    with pytest.raises(UpslopeError, match="2 observations but 0 masks"):
        masked([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], mask=1)


def written(policy: Policy, folder: Path) -> Any:
    """Export a policy, and return an instance of the class in the generated file."""
    policy.export("numpy", folder)
    names: dict[str, Any] = {"__file__": str(folder / "policy.py"), "__name__": "policy"}
    exec((folder / "policy.py").read_text(), names)
    return names["Policy"]()


def test_one_number_is_an_action_too(tmp_path: Path):
    policy = policy_of(VECTOR, spaces.Box(-2.0, 3.0, (), np.float64))
    assert written(policy, tmp_path)([0.1, 0.2, 0.3]) == pytest.approx(policy([0.1, 0.2, 0.3]), rel=1e-5)


def test_a_mask_or_a_memory_that_does_not_fit_is_refused(tmp_path: Path):
    switches = spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(1)])
    policy = written(policy_of(VECTOR, switches, masks=True, memory="gru"), tmp_path)
    one, batch, mask = np.zeros(3), np.zeros((2, 3)), np.asarray([0, 1, 1, 1, 1])
    policy(one, mask)
    for given, wrong in ((one, np.stack([mask, mask])), (one, mask[:3])):
        with pytest.raises(ValueError, match="The mask must have the shape"):
            policy(given, wrong)
    for nothing in ([0, 0, 0, 1, 1], [1, 1, 1, 0, 0]):
        with pytest.raises(ValueError, match="allows no choice"):
            policy(one, nothing)
    with pytest.raises(ValueError, match="call reset"):
        policy(batch, np.stack([mask, mask]))
    policy.reset()
    with pytest.raises(ValueError, match="The mask must have the shape"):
        policy(batch, mask)
    policy.reset()
    policy(batch, np.stack([mask, mask]))


@pytest.mark.skipif(compiler() is None, reason="no C compiler")
@pytest.mark.parametrize("name", IN_C)
def test_in_c_a_policy_is_itself(name: str, tmp_path: Path):
    made = case(name)
    done = made.policy.export("c", tmp_path / "my-policy.h")
    # The episodes follow one another, and the memory must restart with each.
    arrays = [np.concatenate(x, axis=1) for x in made.arrays]
    masks = None if made.masks is None else np.concatenate(made.masks, axis=1)
    found, seconds = run_c(done.paths[0], made.plan, arrays, masks, ("-Wall", "-Wextra", "-Werror"))
    assert_same(found, {key: np.concatenate(x, axis=1) for key, x in made.wanted.items()})
    assert 0 < seconds < 1 and done.seconds_per_step and "bytes of constants" in done.notes[-1]
    source = done.paths[0].read_text()
    assert source.count("static const") and not any(word in source for word in ("malloc", "stdlib"))


def test_sizes_are_those_counted_by_hand(tmp_path: Path):
    """By hand, the constants are 2·7 statistics; the weights, namely 7·7 + 7 before the memory, the memory's own, and
    7·16 + 16 and 16·3 + 3 after it; and for each of three actions, the centre, half range and log σ as floats and two
    bounds as doubles."""
    done = case("gru").policy.export("c", tmp_path)
    numbers = 2 * 7 + (7 * 7 + 7) + (2 * 21 * 7 + 21 + 7) + (7 * 16 + 16) + (16 * 3 + 3)
    assert done.constant_bytes == 4 * numbers + 3 * (3 * 4 + 2 * 8)
    assert done.state_bytes == 4 * (7 + 2 * 16)


@pytest.mark.parametrize("name", CASES)
def test_in_onnx_a_policy_is_itself(name: str, tmp_path: Path):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    made = case(name)
    path = made.policy.export("onnx", tmp_path).paths[0]
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 17)]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    carries = [one.name for one in session.get_inputs() if one.name.startswith("memory")]
    names = [one.name for one in session.get_inputs() if one.name not in (*carries, "action_mask")]
    assert {one.name for one in session.get_outputs()} == {*made.wanted, *(f"next_{name}" for name in carries)}
    outputs = [*made.wanted, *(f"next_{name}" for name in carries)]
    found: list[Any] = []
    for episode in range(EPISODES):
        carry: Any = {name: np.zeros((COLUMNS, 7), np.float32) for name in carries}
        for t in range(STEPS):
            given = {n: x[episode, t] for n, x in zip(names, made.arrays, strict=True)} | carry
            if made.masks is not None:
                given["action_mask"] = made.masks[episode, t]
            found.append(session.run(outputs, given))
            carry = dict(zip(carries, found[-1][len(made.wanted) :], strict=True))
    each = zip(*(step[: len(made.wanted)] for step in found), strict=True)
    assert_same(
        {key: np.stack(x).reshape(made.wanted[key].shape) for key, x in zip(made.wanted, each, strict=True)},
        made.wanted,
    )


def test_the_inputs_of_a_graph_are_named_after_the_keys_and_keep_their_kinds(tmp_path: Path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    path = case("lstm").policy.export("onnx", tmp_path).paths[0]
    found = {one.name: (one.type, one.shape) for one in onnxruntime.InferenceSession(str(path)).get_inputs()}
    assert found == {
        "observation/action": ("tensor(float)", ["batch"]),  # because the output is called `action`
        "arm/0": ("tensor(float)", ["batch", 2, 2]),
        "arm/1": ("tensor(int64)", ["batch"]),
        "board": ("tensor(uint8)", ["batch", 6, 6]),
        "buttons": ("tensor(int8)", ["batch", 2, 2]),
        'gripper"""\n*/': ("tensor(int64)", ["batch", 2]),
        "memory_hidden": ("tensor(float)", ["batch", 7]),
        "memory_cell": ("tensor(float)", ["batch", 7]),
    }


REFUSED = [
    ("maps", "numpy", "`observation` with convolutions", "as onnx"),
    ("maps", "c", r"`observation` \(Box\)", "as onnx"),
    ("lstm", "c", "LSTM memory", "numpy or onnx"),
    ("everything", "c", r"`arm/1` \(Discrete\)", "numpy or onnx"),
    ("half", "c", "actions of float16", "numpy or onnx"),
]


@pytest.mark.parametrize(("name", "format", "what", "remedy"), REFUSED)
def test_what_a_format_cannot_hold_is_refused_by_name(name: str, format: str, what: str, remedy: str, tmp_path: Path):
    with pytest.raises(UpslopeError, match=f"(?s){what}.*{remedy}"):
        case(name).policy.export(format, tmp_path)
    assert not list(tmp_path.iterdir())


def small() -> Policy:
    return policy_of(VECTOR, spaces.Discrete(2))


def with_head(policy: Policy, head: Any) -> Policy:
    policy.agent = replace(policy.agent, head=head)
    return policy


@dataclass(frozen=True)
class Squashed(BoxHead):
    """A head that is not one of upslope's."""


@dataclass(frozen=True)
class Widened(DiscreteHead):
    """A head with a known name, and with a field that a later version added."""

    temperature: float = 1.0


def test_a_part_that_is_not_known_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from upslope.runs.export import walk

    with pytest.raises(UpslopeError, match="has a Squashed, which cannot be exported"):
        with_head(small(), Squashed((1,), (-1.0,), (1.0,))).export("numpy", tmp_path)
    monkeypatch.setitem(walk.FIELDS, Widened, ("n", "start"))
    with_head(small(), Widened(2)).export("numpy", tmp_path)  # a new field at its default changes nothing
    with pytest.raises(UpslopeError, match=r"Widened with temperature=2\.0"):
        with_head(small(), Widened(2, temperature=2.0)).export("numpy", tmp_path / "another.py")
    policy = small()
    policy.agent = replace(policy.agent, model=jax.tree.map(lambda x: x * np.nan, policy.agent.model))
    with pytest.raises(UpslopeError, match="not finite"):
        policy.export("numpy", tmp_path / "another.py")


def test_a_first_layer_that_reads_some_features_has_rows_of_zero_for_the_others():
    """By hand: a, b and c have 2, 3 and 1 features. Only features 1 and 5 are read, so b is not an input. An image adds
    a row."""
    layer = Dense(np.array([[1.0], [2.0], [3.0]], np.float32), np.zeros(1, np.float32), None)
    wide = widened(layer, [("a", 2), ("b", 3), ("c", 1)], {"a", "c"}, [(1, 2), (5, 6)])
    np.testing.assert_array_equal(wide.weight, [[0], [1], [2], [3]])


def test_a_file_that_is_there_is_kept_and_names_are_checked(tmp_path: Path):
    policy = small()
    (tmp_path / "policy.npz").write_text("mine")
    with pytest.raises(UpslopeError, match=r"policy\.npz already exists"):
        policy.export("numpy", tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("policy.npz", "mine")]
    for output, words in (("policy.onnx", "needs a .py file"), ("nowhere/", "There is no folder")):
        with pytest.raises(UpslopeError, match=words):
            policy.export("numpy", f"{tmp_path}/{output}")
    with pytest.raises(UpslopeError, match='There is no format "torch"'):
        policy.export("torch", tmp_path)
    assert policy.export("numpy", tmp_path / "walker").paths[0].name == "walker.py"


@pytest.mark.parametrize(
    "name", ["numpy", "json", "sys", "class", "1", "my-policy", "a.b", "two words", "\ufb01", "__main__"]
)
def test_a_file_that_python_could_not_import_is_refused_before_anything_is_read(name: str, tmp_path: Path):
    with pytest.raises(UpslopeError, match="Python could not import that file") as caught:
        upslope.export(tmp_path / "no run", "numpy", tmp_path / f"{name}.py")
    assert "such as policy.py" in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(compiler() is None, reason="no C compiler")
@pytest.mark.parametrize("name", ['q"uo', "two\nlines", "back\\slash", "-dash"])
def test_a_header_is_checked_whatever_its_name(name: str, tmp_path: Path):
    done = small().export("c", tmp_path / f"{name}.h")
    assert done.largest_difference is not None and done.seconds_per_step


@pytest.mark.skipif(compiler() is None, reason="no C compiler")
@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"#include <math.h>", b"#error planted", "does not compile.*planted"),
        (b"_step(", b"_stride(", "does not compile"),
        (b"state->", b"((small_state *)0)->", "fails when it is run"),
    ],
)
def test_a_header_that_does_not_compile_or_run_is_never_left(
    old: bytes, new: bytes, words: str, tmp_path: Path, monkeypatch: Any
):
    writer = writing.WRITERS["c"]

    def faulty(plan: Plan, path: Path) -> dict[Path, bytes]:
        return {at: text.replace(old, new) for at, text in writer(plan, path).items()}

    monkeypatch.setitem(writing.WRITERS, "c", faulty)
    with pytest.raises(UpslopeError, match=f"{words}.*a bug in upslope"):
        small().export("c", tmp_path / "small.h")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(running, "compiler", lambda: "false")  # a command that always fails
    done = small().export("c", tmp_path / "small.h")
    assert done.largest_difference is None and "does not work" in done.notes[-1]


def without_normaliser(plan: Plan) -> Plan:
    """Remove the statistics from a plan."""
    return replace(plan, inputs=tuple(replace(one, coding=type(one.coding)()) for one in plan.inputs))


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_computes_something_else_is_never_left(format: str, tmp_path: Path, monkeypatch: Any):
    if format == "onnx":
        pytest.importorskip("onnx")
    if format == "c" and compiler() is None:
        pytest.skip("no C compiler")
    writer = writing.WRITERS[format]
    monkeypatch.setitem(writing.WRITERS, format, lambda plan, path: writer(without_normaliser(plan), path))
    with pytest.raises(UpslopeError, match="differs from upslope's own by"):
        case("box").policy.export(format, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(compiler() is None, reason="no C compiler")
def test_a_reset_that_forgets_the_carry_is_noticed(tmp_path: Path, monkeypatch: Any):
    def forgetful(plan: Plan, path: Path) -> dict[Path, bytes]:
        whole = c_files(plan, path)
        return {at: text.replace(b"state->memory[k] = 0.0f;", b"(void)state;") for at, text in whole.items()}

    c_files = writing.WRITERS["c"]
    monkeypatch.setitem(writing.WRITERS, "c", forgetful)
    with pytest.raises(UpslopeError, match="differs from upslope's own by"):
        case("gru").policy.export("c", tmp_path)


class Own(equinox.Module):
    """A user's model with one layer."""

    layer: jax.Array
    head: Any = equinox.field(static=True)

    def __init__(self, observation_space: Any, action_space: Any, *, key: jax.Array):
        self.head = upslope.head_of(action_space)
        self.layer = jax.random.normal(key, (observation_space.shape[0], self.head.num_outputs))

    def prepare(self, observation: Any) -> Any:
        return observation

    def start(self, num: int) -> Any:
        return ()

    def step(self, features: Any, carry: Any, fresh: Any) -> Any:
        outputs = features @ self.layer
        return upslope.Outputs(self.head.distribution(outputs, jnp.zeros(0)), outputs[:, 0]), carry

    def groups(self) -> dict[str, Any]:
        return {"shared": self}


class OwnWithGraph(Own):
    """A user's model that defines its own ONNX graph."""

    def to_onnx(self, policy: Policy) -> Any:
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        inputs = [helper.make_tensor_value_info("observation", TensorProto.FLOAT, ["batch", 3])]
        outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])]
        node = helper.make_node("MatMul", ["observation", "layer"], ["logits"])
        layer = numpy_helper.from_array(np.asarray(self.layer), "layer")
        graph = helper.make_graph([node], "own", inputs, outputs, [layer])
        return helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])


def own_policy(own: type) -> Policy:
    from upslope.models.build import ModelSpec

    encoder, head = encoder_of(VECTOR, "world"), upslope.head_of(spaces.Discrete(2))
    agents = initialise_agents([jax.random.key(0)], ModelSpec(encoder, head, {}, own))
    return Policy(agents[0], encoder, 0, "best")


def test_a_model_of_ones_own_is_exported_if_it_says_how(tmp_path: Path):
    with pytest.raises(UpslopeError, match=r"The model Own is custom.*to_onnx"):
        own_policy(Own).export("onnx", tmp_path)
    with pytest.raises(UpslopeError, match=r"The model OwnWithGraph is custom.*as onnx"):
        own_policy(OwnWithGraph).export("numpy", tmp_path)
    pytest.importorskip("onnx")
    assert own_policy(OwnWithGraph).export("onnx", tmp_path).paths[0].is_file()


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """Write a run of two seeds whose checkpoints hold untrained agents, with the second seed better than the first."""
    path = write_run(folder, episodes={s: [(10, 1.0)] for s in (3, 4)}, steps=320, hidden_sizes=(4,))
    directory = RunDirectory(path)
    config, (encoder, head) = directory.config(), spaces_of(directory)
    keys = [jax.random.key(s) for s in config.seed_list()]
    asked = {"normalize_observations": config.normalize_observations, "normalize_rewards": config.normalize_rewards}
    agents = stack(initialise_agents(keys, model_of(config, encoder, head, None), **asked))
    save_checkpoint(directory.best, agents, {}, {"best_return": [1.0, 2.0], "best_step": [10, 10]})
    return path


def test_the_command_writes_into_the_run_and_says_what_it_wrote(run: Path, capsys: Any, monkeypatch: Any):
    main(["export", str(run), "--format", "numpy"])
    said = capsys.readouterr().out
    assert "policy.py" in said and "policy.npz" in said and "the same actions" in said
    policy = upslope.load(run)
    assert policy.seed == 4
    layers = dict(np.load(run / "policy.npz"))
    np.testing.assert_array_equal(layers["weight_0"], policy.agent.model.actor.network.weights[0])
    for path, words in ((run, "already exists"), (run.parent / "nowhere", "nowhere")):
        with pytest.raises(SystemExit, match="2"):
            main(["export", str(path), "--format", "numpy"])
        assert words in capsys.readouterr().err
    monkeypatch.setattr(writing, "compiler", lambda: None)
    main(["export", str(run), "--format", "c", "--seed", "3", "-o", str(run / "three")])
    said = " ".join(capsys.readouterr().out.split())
    assert "three.h" in said and "bytes of constants" in said and "was not measured" in said


def test_exporting_a_strangers_run_runs_nothing_and_writes_through_no_link(run: Path, tmp_path: Path, monkeypatch: Any):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    description = json.loads((run / "config.json").read_text())
    description["config"] |= {"environment": "planted:make", "wrappers": ["planted:make"]}
    stranger = tmp_path / "stranger"
    (stranger / "checkpoints").mkdir(parents=True)
    (stranger / "checkpoints" / "best.npz").write_bytes((run / "checkpoints" / "best.npz").read_bytes())
    (stranger / "config.json").write_text(json.dumps(description))
    assert upslope.export(stranger, "numpy").largest_difference == pytest.approx(0, abs=1e-5)
    (stranger / "policy.h").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UpslopeError, match="a symbolic link"):
        upslope.export(stranger, "c")
    description["config"] |= {"model": "planted:make"}
    (stranger / "config.json").write_text(json.dumps(description))
    with pytest.raises(UpslopeError, match="trust=True"):
        upslope.export(stranger, "numpy", tmp_path)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_a_key_is_text_and_never_code(format: str, tmp_path: Path, monkeypatch: Any):
    """This holds even for keys that would end a docstring or a comment if their quotes or signs were doubled, escaped
    or halved."""
    if format == "onnx":
        pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    code = 'open("ran", "w")'
    keys = [f"{quotes}; {code}; {quotes}" for quotes in ('"""', '""""', '\\"""', '\'""""')]
    keys += [f"*/ int ran(void) {{ return {code}; }} /*", f"**//; {code} //**", f"]; {code}; x['", f"\n{code}\n"]
    policy = policy_of(spaces.Dict(dict.fromkeys(keys, VECTOR)), spaces.Discrete(3))
    assert policy.export(format, tmp_path).paths[0].exists()
    assert not (tmp_path / "ran").exists()


PAGE = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.fixture
def robot(tmp_path: Path, monkeypatch: Any) -> Path:
    """Create a folder with a policy for CartPole, as docs/export.md describes."""
    policy = policy_of(spaces.Box(-np.inf, np.inf, (4,), np.float32), spaces.Discrete(2))
    for format in FORMATS[:2]:
        policy.export(format, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "policy", raising=False)
    return tmp_path


def shown(language: str, word: str) -> str:
    """Return the page's code block in this language that contains this word."""
    blocks = PAGE.read_text("utf-8").split(f"```{language}\n")[1:]
    (found,) = [block.split("```")[0] for block in blocks if word in block.split("```")[0]]
    return found


def test_the_loops_of_the_page_run(robot: Path):
    names: dict[str, Any] = {}
    exec(shown("python", "from policy import Policy"), names)
    assert names["terminated"] or names["truncated"]
    if compiler() is not None:
        (robot / "main.c").write_text(shown("c", "int main"))
        built = [str(compiler()), "-std=c99", "-Wall", "-Wextra", "-Werror", "main.c", "-lm", "-o", "main"]
        subprocess.run(built, cwd=robot, check=True)
        lines = subprocess.run([str(robot / "main")], capture_output=True, text=True, check=True).stdout.split()
        policy = names["policy"]
        assert lines == 100 * [str(policy(np.zeros(4)))]


def test_the_graph_of_the_page_runs(robot: Path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    vector = spaces.Box(-np.inf, np.inf, (4,), np.float32)
    policy = policy_of(vector, spaces.Discrete(2))
    policy.export("onnx", robot)
    names: dict[str, Any] = {}
    exec(shown("python", "InferenceSession"), names)
    assert names["action"] == policy(np.zeros((1, 4)))
