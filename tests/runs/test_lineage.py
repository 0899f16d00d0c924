"""Runs that start from another run's agent: what they inherit, what is refused, and resuming."""

import json
import re
import shlex
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from run_helpers import (
    SEGMENTS,
    Killed,
    arrays_of,
    assert_same_run,
    before_chunk,
    config_of,
    metrics_of,
    rewrite_meta,
)

import upslope
from upslope.analysis.compare import compare_records
from upslope.analysis.lineage import beginning_of
from upslope.analysis.records import read_record
from upslope.cli.main import main
from upslope.runs import train as training
from upslope.runs.directory import RunDirectory

pytestmark = pytest.mark.usefixtures("compiled_for_users")

SMALL: dict[str, Any] = {"hidden_sizes": (8,), "quiet": True, **SEGMENTS}
BOTH = {"normalize_observations": True, "normalize_rewards": True}


@pytest.fixture(scope="module")
def source(folder: Path) -> Path:
    """Train two seeds with normalisation and a learning rate that is not the default."""
    settings = {**SMALL, **BOTH, "steps": 4000, "seeds": 2, "learning_rate": 3e-3}
    return upslope.train("jax:CartPole-v1", folder=folder, name="source", **settings).path


def kill() -> None:
    raise Killed


def beginning(source: Path, name: str, **settings: Any) -> Path:
    """Start a run and kill it before its first step, so that its checkpoint holds its initial state."""
    with before_chunk(0, kill), pytest.raises(Killed):
        upslope.train(folder=source.parent, name=name, quiet=True, start_from=source, **settings)
    return source.parent / name


def state_of(run: Path, part: str, checkpoint: str = "last") -> dict[str, bytes]:
    found = arrays_of(run / "checkpoints" / f"{checkpoint}.npz")
    return {name: x for name, x in found.items() if name.startswith(f"state{part}")}


def lineage_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "config.json").read_text())["lineage"]


def test_it_begins_with_the_agent_and_goes_on_without_its_source(source: Path, folder: Path):
    copy = folder / "copy"
    shutil.copytree(source, copy)
    first = beginning(copy, "first", steps=2000)
    for part in (".learner.agent", ".learner.optimisers"):
        assert state_of(first, part) == state_of(source, part) != {}
    with np.load(first / "checkpoints" / "last.npz") as arrays:
        assert arrays["state.steps"].tolist() == arrays["state.iteration"].tolist() == [0, 0]
    config = RunDirectory(first).config()
    assert config.environment == "jax:CartPole-v1" and config.learning_rate == 3e-3 and config.hidden_sizes == (8,)
    whole = upslope.train(folder=folder, name="whole", quiet=True, start_from=copy, steps=2000).path
    shutil.rmtree(copy)
    words = ["--from", str(copy), "--steps", "2000", "--name", first.name, "--folder", str(folder)]
    with pytest.raises(SystemExit):  # the settings differ from the source's
        main(["train", *words, "--resume", "--quiet", "--epochs", "9"])
    main(["train", *words, "--resume", "--quiet"])
    assert_same_run(whole, first)
    assert metrics_of(whole) != metrics_of(source)[: len(metrics_of(whole))]
    # A seed that is trained alone equals the same seed trained with others.
    one = {"seed": 1, "seeds": 1}
    alone = upslope.train(folder=folder, name="alone", quiet=True, start_from=source, steps=2000, **one)
    assert [row for row in metrics_of(whole) if row["seed"] == 1] == metrics_of(alone.path)
    assert lineage_of(alone.path)["seeds"] == [1] and lineage_of(whole)["seeds"] == [0, 1]


class Picture(gymnasium.Env):
    """An environment with episodes of two steps, whose observations are pictures of five by five bytes."""

    observation_space = gymnasium.spaces.Box(0, 255, (5, 5), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, **options: Any) -> Any:
        super().reset(**options)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return self.observation_space.sample(), float(action), self.t == 2, False, {}


KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "a memory": ("jax:CartPole-v1", {"memory": "gru", "memory_size": 4}),
    "images": (Picture, {}),
    "a model of one's own": ("jax:CartPole-v1", {"model": "own_models:Recurrent", "model_kwargs": {"hidden": 3}}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_every_kind_are_taken_over(kind: str, folder: Path):
    """The run starts with exactly the source's agent, and training continues from there."""
    environment, settings = KINDS[kind]
    options: dict[str, Any] = {"folder": folder, "quiet": True, "steps": 32}
    small = SEGMENTS | ({} if "model" in settings else {"hidden_sizes": (4,)})
    old = upslope.train(environment, name=f"{kind}, old", **settings, **small, **options)
    given = {"environment": environment} if environment is Picture else {}
    with before_chunk(0, kill), pytest.raises(Killed):
        upslope.train(start_from=old, name=f"{kind}, new", **given, **options)
    new = folder / f"{kind}, new"
    for part in (".learner.agent", ".learner.optimisers"):
        assert state_of(new, part) == state_of(old.path, part) != {}
    mine, its = RunDirectory(new).config(), RunDirectory(old.path).config()
    assert all(getattr(mine, name) == getattr(its, name) for name in ("memory", "model", "model_kwargs", "encoder"))
    upslope.resume(new, quiet=True, environment=given.get("environment"))
    assert [row["step"] for row in metrics_of(new)] == [16, 32]


def test_what_is_begun_anew_is_new_and_recorded(source: Path, folder: Path):
    best = beginning(Path(f"{source}@best"), "from best")
    assert state_of(best, ".learner.agent") == {
        name.replace("state.", "state.learner.agent.", 1): x for name, x in state_of(source, ".", "best").items()
    }
    with np.load(source / "checkpoints" / "best.npz") as arrays:
        steps = json.loads(str(arrays["meta"]))["best_step"]
    assert lineage_of(best)["steps"] == steps
    assert lineage_of(best)["begun_anew"] == ["optimiser of policy", "optimiser of value"]
    new = beginning(source, "anew", fresh_normalisers=True, fresh_optimiser=True, seeds=3, from_seed=1)
    with np.load(new / "checkpoints" / "last.npz") as mine, np.load(source / "checkpoints" / "last.npz") as theirs:
        for name in mine.files:
            if name.startswith("state.learner.agent.model"):
                assert all(np.array_equal(row, theirs[name][1]) for row in mine[name])
            if "num_samples" in name or name.endswith(".count"):
                assert not mine[name].any() and theirs[name].any(), name
    assert lineage_of(new)["seeds"] == [1, 1, 1] and lineage_of(new)["taken_over"] == ["networks"]
    assert lineage_of(best)["before"] is None


def test_a_clone_goes_on_in_another_environment_with_the_same_spaces(source: Path, folder: Path, capsys):
    """Imitate, then improve on the host. The networks come from the clone, and the settings from the new algorithm."""
    data = upslope.record(source, episodes=6, output=folder / "shown.npz")
    settings = {**SMALL, "steps": 400, "minibatches": 2, "epochs": 1}
    del settings["num_envs"], settings["rollout_steps"]
    clone = upslope.train("jax:CartPole-v1", "clone", folder=folder, name="clone", data=str(data), **settings).path
    options = {"start_from": clone, "steps": 480, "rollout_steps": 8, "num_envs": 2, "minibatches": 2, "preset": False}
    run = upslope.train("CartPole-v1", "ppo", folder=folder, name="improved", **options)
    said = capsys.readouterr().out
    assert f"starts from {clone}@last (clone) at step" in said and "inherited: networks" in said
    assert run.config.data is None and run.config.objective == "clip" and run.config.hidden_sizes == (8,)
    record = read_record(run.path)
    assert re.match(rf"{re.escape(str(clone))}@last at step \d+, seed 0; inherited: networks", beginning_of(record))
    assert any("are not counted in its budget" in words for words in compare_records([record]).warnings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"environment": "jax:GridWorld-v0"}, "needs the spaces that it was trained with: its observations"),
        ({"environment": "jax:Acrobot-v1"}, "actions"),
        ({"hidden_sizes": (16,)}, r"--hidden-sizes was \(8,\), and is now \(16,\)"),
        ({"normalize_observations": False}, "read normalised observations"),
        ({"seeds": 3}, "has the seeds 0 to 1 and no seed 2. Seed k starts from seed k"),
        ({"from_seed": 7}, "no seed 7. Change --from-seed"),
        ({"start_from": "@best"}, "does not name a checkpoint of a run"),
        ({"start_from": "nowhere"}, "nowhere is not a run directory"),
    ],
)
def test_what_does_not_fit_is_refused(source: Path, folder: Path, settings: dict[str, Any], words: str):
    before = set(folder.iterdir())
    request = {"start_from": source, **settings}
    with pytest.raises(upslope.UpslopeError, match=words):
        upslope.train(folder=folder, quiet=True, **request)
    assert set(folder.iterdir()) == before


@pytest.mark.parametrize("role", ["start_from", "reference"])
def test_networks_larger_than_the_checkpoint_are_refused_before_they_are_made(
    role: str, source: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    description = json.loads((copy / "config.json").read_text())
    description["config"]["hidden_sizes"] = [65536] * 256
    (copy / "config.json").write_text(json.dumps(description))
    for name in ("last", "best"):  # without what they record, the edit shows only in the sizes
        rewrite_meta(copy / "checkpoints" / f"{name}.npz", lambda meta: meta.pop("settings"))
    monkeypatch.setattr(training, "engine_for", lambda *_: pytest.fail("it would allocate 32 GiB"))
    settings = {"start_from": copy} if role == "start_from" else {"reference": str(copy), "reference_kl": 0.1}
    settings |= {} if role == "start_from" else {**SMALL, "hidden_sizes": (65536,) * 256, "reference_seed": 0}
    settings |= {"normalize_observations": True} if role == "reference" else {"seeds": 2}
    with pytest.raises(upslope.UpslopeError, match=r"last\.npz does not match this run's config"):
        upslope.train("jax:CartPole-v1", folder=folder, name=f"too large {role}", steps=4000, **settings)


def test_names_of_checkpoints(source: Path, folder: Path):
    with pytest.raises(upslope.UpslopeError, match="has no checkpoint middle; it has best, last"):
        upslope.train(folder=folder, quiet=True, start_from=f"{source}@middle")
    with pytest.raises(upslope.UpslopeError, match="--fresh-optimiser applies only to runs with --from"):
        upslope.train("jax:CartPole-v1", folder=folder, quiet=True, fresh_optimiser=True)
    with pytest.raises(upslope.UpslopeError, match="No environment was given"):
        upslope.train()


def test_the_command_line_inherits_what_is_left_out(source: Path, tmp_path: Path):
    config = config_of(["--from", str(source), "--steps", "99"])
    assert (config.start_from, config.steps, config.learning_rate) == (str(source), 99, 3e-3)
    copy = tmp_path / "split"
    shutil.copytree(source, copy)
    text = (copy / "config.json").read_text().replace('"devices_per_seed": 1', '"devices_per_seed": 2', 1)
    (copy / "config.json").write_text(text)
    assert config_of(["--from", str(copy)]).devices_per_seed == 1  # as if another machine had fewer devices
    other = config_of(["--from", f"{source}@best", "--algorithm", "a2c"])
    assert other.learning_rate != 3e-3 and other.hidden_sizes == (8,) and other.normalize_rewards
    file = tmp_path / "settings.yaml"
    file.write_text(f"from: {source}\nsteps: 98\n")
    assert config_of(["--config", str(file)]).start_from == str(source)


def test_an_archive_repeats_a_run_and_what_it_began_with(source: Path, folder: Path, tmp_path: Path, monkeypatch: Any):
    changed = beginning(source, "changed", steps=99, epochs=1, fresh_optimiser=True)
    other = beginning(source, "other", algorithm="a2c", steps=400, from_seed=1)
    assert RunDirectory(changed).config().preset is None, "its settings are those of the source, which had no preset"
    held = beginning(source, "held", steps=99, reference=f"{source}@best")
    runs = [changed, source, other, held]
    with zipfile.ZipFile(upslope.bundle(runs, tmp_path / "runs.zip")) as archive:
        archive.extractall(tmp_path / "runs", [n for n in archive.namelist() if n.startswith("source/")])
        commands = [shlex.split(run["command"]) for run in json.loads(archive.read("bundle.json"))["runs"]]
    monkeypatch.chdir(tmp_path)
    for run, (_, train, *words) in zip(runs, commands, strict=True):
        assert train == "train" and words[-2:] == ["--name", run.name]
        wanted, found = RunDirectory(run).config(), config_of(words)
        begins_with = wanted.start_from and f"runs/{Path(wanted.start_from).name}@last"
        reference = wanted.reference and "runs/source@best"
        assert found == replace(wanted, start_from=begins_with, reference=reference)
    # An archive with only that run states which other run is needed.
    with zipfile.ZipFile(upslope.bundle(held, tmp_path / "one.zip")) as archive:
        text = archive.read("REPEAT.md").decode()
        assert text.count(f"It needs the run {source}, which is not in this archive.") == 1


def test_code_that_only_the_source_names_needs_trust(source: Path, folder: Path):
    foreign = folder / "foreign"
    shutil.copytree(source, foreign)
    text = (foreign / "config.json").read_text().replace('"objective": "clip"', '"objective": "os:system"', 1)
    (foreign / "config.json").write_text(text)
    with pytest.raises(upslope.UpslopeError, match="asks to run the objective os:system"):
        upslope.train(folder=folder, quiet=True, start_from=foreign)
    # Code that the run does not inherit needs no trust.
    beginning(foreign, "not inherited", algorithm="a2c", steps=100, minibatches=1)
