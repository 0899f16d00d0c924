"""Programs stored between runs give the same bits and are found again; none with user or library code is stored."""

import numpy as np
import pytest

import upslope
from upslope.cli.main import main
from upslope.config.config import configure
from upslope.core.storage import load_arrays
from upslope.engines import stored_programs
from upslope.engines.stored_programs import StoredPrograms

SETTINGS = {"num_envs": 2, "rollout_steps": 8, "minibatches": 2, "epochs": 1, "hidden_sizes": (4,), "steps": 256}
FLAGS = ["--num-envs=2", "--rollout-steps=8", "--minibatches=2", "--epochs=1", "--hidden-sizes", "4", "--steps=256"]


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A folder for stored programs that commands use during the test."""
    (tmp_path / "programs").mkdir()
    monkeypatch.setattr(stored_programs, "own_cache", lambda: tmp_path / "programs")
    monkeypatch.setattr(stored_programs, "is_command", False)
    return tmp_path / "programs"


def train(folder, name, *flags):
    main(["train", "jax:CartPole-v1", *FLAGS, "--no-preset", *flags, "--folder", str(folder), "--name", name, "-q"])
    return load_arrays(folder / name / "checkpoints" / "last.npz", "checkpoint")[0]


def equal(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_a_program_that_is_read_gives_the_same_bits(tmp_path, kept, monkeypatch):
    first = train(tmp_path, "first", "--seeds", "3")
    found = {path: path.read_bytes() for path in kept.iterdir()}
    assert len(found) == 2  # one for one seed per device, and one for the remaining seed on both devices
    traced = []
    monkeypatch.setattr(stored_programs.export, "export", lambda *_: traced.append(1))
    second = train(tmp_path, "second", "--seeds", "3", "--seed", "0")
    plain = upslope.train(
        "jax:CartPole-v1", folder=tmp_path, preset=False, quiet=True, name="plain", seeds=3, **SETTINGS
    )
    assert not traced and equal(first, second)
    assert equal(first, load_arrays(plain.path / "checkpoints" / "last.npz", "checkpoint")[0])
    assert {path: path.read_bytes() for path in kept.iterdir()} == found


def test_a_damaged_program_is_made_anew(tmp_path, kept, monkeypatch):
    first = train(tmp_path, "first")
    (path,) = kept.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert equal(first, train(tmp_path, "second"))
    # Found and used now. Its size says nothing: two exports of one program may differ by some bytes.
    monkeypatch.setattr(stored_programs.export, "export", lambda *_: pytest.fail("the program was not made whole"))
    assert equal(first, train(tmp_path, "third"))


def test_what_programs_are_made_from(kept, monkeypatch):
    monkeypatch.setattr(stored_programs, "is_command", True)

    def key(environment="jax:CartPole-v1", **settings):
        config = configure(environment, is_continuous=False, **settings)
        stored = stored_programs.stored_programs(config)
        return None if stored is None else stored.key("iterate", [], {})

    assert key() == key(seed=7) == key(seeds=3)  # only the state and its shapes depend on these settings
    others = [key(gamma=0.9), key(steps=10_000), key("jax:Acrobot-v1"), key(env_kwargs={"gravity": 3.7})]
    assert len({key(), *others}) == 5
    # Programs that involve user code or other libraries are not stored, because the hash does not cover such code.
    assert key("CartPole-v1") is key("gymnax:Breakout-MinAtar") is key("worlds:Own") is None
    assert key(estimator="mine:Estimator") is key(learning_rate_schedule="mine:schedule") is None
    monkeypatch.setattr(stored_programs, "source_digest", lambda: "another source")
    assert key() not in (None, StoredPrograms(kept, {}).key("iterate", [], {}))


def test_only_commands_keep_programs(tmp_path, kept):
    upslope.train("jax:CartPole-v1", folder=tmp_path, preset=False, quiet=True, **SETTINGS)
    assert not list(kept.iterdir())
