"""Minari datasets are read back as they were written and can be used for cloning and judging, and no code in them is
run."""

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import upslope
from upslope.analysis.judge import judge
from upslope.models.heads import head_of
from upslope.runs.datasets import read_recorded
from upslope.runs.minari_datasets import sampled

minari = pytest.importorskip("minari")
SMALL: dict[str, Any] = {"steps": 64, "num_envs": 2, "rollout_steps": 16, "minibatches": 2, "epochs": 1}
SMALL |= {"hidden_sizes": (8,), "preset": False, "quiet": True}
NAME = "upslope/test-v0"


class Parts(gymnasium.Env):
    """Observations and actions have several parts, and episodes have three steps."""

    observation_space = spaces.Dict({"x": spaces.Box(-9, 9, (2,)), "kind": spaces.Discrete(3, start=1)})
    action_space = spaces.Dict(
        {
            "b": spaces.Box(-1, 1, (1, 2)),
            "d": spaces.Discrete(2, start=5),
            "m": spaces.MultiDiscrete([2, 3], start=[1, 0]),
        }
    )

    def reset(self, **options: Any) -> Any:
        super().reset(**options)
        self.t = 0
        return self.seen(), {}

    def seen(self) -> Any:
        return {"x": np.full(2, self.t, np.float32), "kind": np.int64(1 + self.t % 3)}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.t += 1
        return self.seen(), float(action["b"].sum()), self.t == 3, False, {}


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    return upslope.train(Parts, folder=folder, name="parts", **SMALL).path


@pytest.fixture(autouse=True)
def own_folder(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))


def test_what_is_written_is_what_is_read_by_us_and_by_minari(run: Path):
    ours = upslope.record(run, episodes=60, environment=Parts)
    where = upslope.record(run, episodes=60, output=f"minari:{NAME}", environment=Parts)
    assert where.is_dir()
    expected, _ = read_recorded(ours)
    found, _ = read_recorded(f"minari:{NAME}")
    head = head_of(Parts.action_space)
    for name in set(expected) - {"action", "behaviour_log_prob"}:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    clipped = sampled(head, head.to_environment(expected["action"]))
    np.testing.assert_array_equal(found["action"], clipped)
    theirs = minari.load_dataset(NAME)
    assert theirs.total_episodes == 60 and theirs.action_space == Parts.action_space
    assert Parts.action_space.contains({key: x[0] for key, x in theirs[0].actions.items()})
    judged = judge(run, data=f"minari:{NAME}", iterations=200)
    assert judged.verdict == "fqe" and "probability" in judged.estimates["wdr"].refusal
    cloned = upslope.train(
        Parts, "clone", data=f"minari:{NAME}", folder=run.parent, hidden_sizes=(8,), steps=360, quiet=True
    )
    assert len(cloned.metrics()) == 2
    with pytest.raises(upslope.UpslopeError, match="already"):
        upslope.record(run, episodes=1, output=f"minari:{NAME}", environment=Parts)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"observation_space": None}, "does not create the environment"),
        ({"data_format": "arrow"}, "only hdf5"),
        ({"total_episodes": 70}, "cannot be read"),
    ],
)
def test_a_dataset_that_would_run_code_or_is_damaged_is_refused(run: Path, changes: dict[str, Any], words: str):
    name = f"upslope/changed{len(words)}-v0"
    folder = upslope.record(run, episodes=2, output=f"minari:{name}", environment=Parts)
    path = folder / "data" / "metadata.json"
    metadata = json.loads(path.read_text()) | changes
    metadata["env_spec"] = '{"id": "Evil-v0", "entry_point": "os:abort"}'
    path.write_text(json.dumps({key: x for key, x in metadata.items() if x is not None}))
    with pytest.raises(upslope.UpslopeError, match=words):
        read_recorded(f"minari:{name}")


def test_names_that_are_not_minaris_are_refused():
    for name, words in (("../../etc-v0", "Minari name"), ("nothing-v0", "minari download"), ("noversion", "version")):
        with pytest.raises(upslope.UpslopeError, match=words):
            read_recorded(f"minari:{name}")
