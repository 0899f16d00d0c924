"""Whatever a file contains, a loader either reads it correctly or refuses it with a single message that names the file.

A loader raises no other exception, executes no code, and does not allocate memory just because a file declares a size.
`UPSLOPE_EXAMPLES=2000` draws 2,000 random malformed files for each loader, and `UPSLOPE_COUNTS=FILE` stores how many
were refused.
"""

import json
import os
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import write_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malformed import (
    declaring,
    npy,
    packed,
    spoiled_bytes,
    spoiled_json,
    spoiled_lines,
    spoiled_npz,
    spoiled_rows,
    unpacked,
)  # fmt: skip

import upslope
from upslope.analysis.credit import EpisodeCredit, load_credit, save_credit
from upslope.analysis.records import read_record
from upslope.cli.train import read_settings
from upslope.config.config import configure
from upslope.config.task import task_of
from upslope.core.storage import load_arrays, save_arrays
from upslope.engines.host import HostEngine, columns_of
from upslope.environments.registry import make
from upslope.report.credit import credit_view
from upslope.report.figures import Figures
from upslope.report.output import WORDS, templates
from upslope.runs.datasets import load_dataset
from upslope.runs.directory import RunDirectory
from upslope.runs.display import QuietDisplay
from upslope.runs.loop import Loop, begin_progress
from upslope.runs.policy import check_checkpoint_size, spaces_of
from upslope.runs.resume_point import resume_point_of

EXAMPLES = int(os.environ.get("UPSLOPE_EXAMPLES", "0"))
DRAWN = settings(
    deadline=None,
    max_examples=EXAMPLES or 40,
    derandomize=not EXAMPLES,
    database=None,
    suppress_health_check=list(HealthCheck),
)
COUNTS: Counter[str] = Counter()
SETTINGS = (
    "environment: CartPole-v1\nlearning-rate: 1e-3\nhidden_sizes: [8, 8]\nenv_kwargs: {a: 1}\nseeds: 2\ndata: x\n"
)
EVALUATIONS = [(s, mode, "last", 0, 9.5, 10, 1) for s in (0, 1) for mode in ("stochastic", "deterministic")]


@pytest.fixture(scope="module", autouse=True)
def counts() -> Iterator[None]:
    yield
    if "UPSLOPE_COUNTS" in os.environ:
        Path(os.environ["UPSLOPE_COUNTS"]).write_text(json.dumps(COUNTS))


class Run:
    """A small run directory with one file of every kind, and everything needed to read them."""

    def __init__(self, folder: Path):
        rows = {s: [(t, 10.0 + s) for t in range(10, 300, 10)] for s in (0, 1)}
        small: dict[str, Any] = {"num_envs": 2, "rollout_steps": 8, "hidden_sizes": (4,), "minibatches": 2}
        self.path = write_run(folder, episodes=rows, steps=320, evaluations=EVALUATIONS, **small)
        self.directory = RunDirectory(self.path)
        self.world: Any = make("CartPole-v1")
        config = self.directory.config()
        self.task = task_of(config, self.world)
        description = json.loads((self.path / "config.json").read_text())
        description["spaces"]["observation"] = {"kind": "BoxEncoder", "shape": [4]}
        (self.path / "config.json").write_text(json.dumps(description))
        engine = HostEngine(self.task, [0, 1], columns_of(self.task, [0, 1]))
        self.state = engine.start()
        state, _ = engine.advance(self.state)
        Loop(engine, self.directory, config, QuietDisplay(), None).save(state, begin_progress(state, [0, 1]))
        self.write_metrics()
        self.write_arrays()
        (self.path / "settings.yaml").write_text(SETTINGS)

    def write_metrics(self) -> None:
        """Write rows with a few metrics."""
        metrics = {"policy/kl": 0.01, "critic/loss": 1.5, "episode/return": 9.0, "health/ratio": None}
        lines = [{"iteration": i, "seed": s, "step": 16 * (i + 1), **metrics} for i in range(12) for s in (0, 1)]
        (self.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def write_arrays(self) -> None:
        """Write a dataset and a credit file."""
        observation = np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4)
        facts = {"observation": observation, "action": np.array([0, 1, 1, 0, 1]), "reward": np.ones(5, np.float32)}
        ends = {"length": np.array([3, 2]), "terminated": np.array([True, False]), "final_observation": observation[:2]}
        behaviour = np.full(5, -0.7, np.float32)
        save_arrays(self.path / "dataset.npz", facts | ends | {"behaviour_log_prob": behaviour}, {"kind": "dataset"})
        credit = EpisodeCredit(
            environment="CartPole-v1", algorithm="ppo", seed=0, checkpoint="last", episode_seed=0, gamma=0.99,
            terminated=True, own="GAE", reward=np.ones(5), value=np.ones(5), td_error=np.ones(5),
            weights={"GAE": np.arange(5.0)}, policy={"probability": np.full((5, 2), 0.5, np.float32)},
            action=facts["action"], picture_steps=np.array([0, 3]), pictures=(b"one", b"two"), picture_note="",
        )  # fmt: skip
        save_credit(self.path / "credit.npz", credit)

    def stand(self) -> Any:
        """Read the files that resuming reads."""
        config = self.directory.config()
        check_checkpoint_size(self.directory.last, config, self.task.model, self.task.num_envs)
        return resume_point_of(self.directory, config, self.task, self.state, needs_snapshot=True)

    def view_credit(self) -> str:
        """Render the credit file as a report does."""
        figures = Figures()
        view = credit_view(figures, load_credit(self.path / "credit.npz"), "title", 1000)
        numbers = json.dumps(figures.found, allow_nan=False)
        fields = dict.fromkeys(("mark", "written", "plotly"), "") | WORDS  # without Plotly's script, which is slow
        return templates().get_template("credit.html").render(fields, title="title", view=view, data=numbers)

    def dataset(self) -> Any:
        """Read the dataset as training does."""
        return load_dataset(self.path / "dataset.npz", *spaces_of(self.directory), True)

    def settings(self) -> Any:
        """Read the settings as `--config` does."""
        options = read_settings(self.path / "settings.yaml")
        use_preset = options.pop("preset", False)
        names = {n: options.pop(n, default) for n, default in (("environment", "X-v0"), ("algorithm", "ppo"))}
        return configure(**names, is_continuous=False, use_preset=bool(use_preset), **options)


LOADERS: dict[str, tuple[str, Callable[[Run], Any]]] = {
    "config": ("config.json", lambda run: (run.directory.config(), spaces_of(run.directory))),
    "config with its checkpoint": ("config.json", lambda run: (upslope.load(run.path), run.stand())),
    "metrics": ("metrics.jsonl", lambda run: (run.directory.metrics(), upslope.diagnose(run.path))),
    "training episodes": ("episodes.csv", lambda run: read_record(run.path)),
    "evaluation episodes": ("evaluation.csv", lambda run: read_record(run.path).evaluations),
    "policy": ("checkpoints/best.npz", lambda run: upslope.load(run.path)),
    "checkpoint": ("checkpoints/last.npz", lambda run: run.stand()),
    "dataset": ("dataset.npz", lambda run: run.dataset()),
    "credit": ("credit.npz", lambda run: run.view_credit()),
    "arrays": ("dataset.npz", lambda run: load_arrays(run.path / "dataset.npz", "dataset")),
    "settings": ("settings.yaml", lambda run: run.settings()),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("runs"))


def spoiled(name: str, content: bytes, planted: Path) -> st.SearchStrategy[bytes]:
    """Draw malformed files of one kind."""
    if name.endswith(".npz"):
        return spoiled_npz(content, planted)
    if name.endswith(".json"):
        return spoiled_bytes(content) | spoiled_json(json.loads(content)).map(lambda x: json.dumps(x).encode())
    text = content.decode()
    rows = spoiled_lines(text) if name.endswith(".jsonl") else spoiled_rows(text)
    return rows | rows | spoiled_bytes(content)


def refusal(run: Run, name: str, loader: str) -> str:
    """Load the file. If it is refused, check that the message is one line that names the file, and return it;
    otherwise, return ""."""
    COUNTS[f"{loader}: files"] += 1
    try:
        LOADERS[loader][1](run)
    except upslope.UpslopeError as error:
        COUNTS[f"{loader}: refused"] += 1
        assert str(run.path) in str(error) or name == "settings.yaml", error
        assert len(str(error)) < 1500 and (name == "settings.yaml" or "\n" not in str(error)), error
        return str(error)
    return ""


@pytest.mark.parametrize("loader", LOADERS)
def test_what_is_sound_is_loaded(loader: str, run: Run):
    LOADERS[loader][1](run)


@pytest.mark.parametrize("loader", LOADERS)
def test_malformed_files_are_loaded_or_refused(loader: str, run: Run, tmp_path: Path):
    name = LOADERS[loader][0]
    path, planted = run.path / name, tmp_path / "planted"
    content = path.read_bytes()

    @DRAWN
    @given(spoiled(name, content, planted))
    def check(new: bytes) -> None:
        path.write_bytes(new)
        refusal(run, name, loader)
        assert not planted.exists()

    try:
        check()
    finally:
        path.write_bytes(content)


MEBIBYTE = 1 << 20
PETABYTE = b"\0" * 8
HUGE = "(140737488355328,)"


def aliases(levels: int = 40) -> bytes:
    """Return a few lines of YAML that expand to 2^40 values."""
    lines = ["a: &a0 [x, x]", *(f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]" for k in range(1, levels))]
    return "\n".join([*lines, f"env_kwargs: {{big: *a{levels - 1}}}"]).encode()


def with_config(run: Run, **changes: Any) -> bytes:
    """Return a config.json with changed settings."""
    description = json.loads((run.path / "config.json").read_text())
    description["config"] |= changes
    return json.dumps(description).encode()


def with_arrays(run: Run, name: str, **changes: bytes) -> bytes:
    """Return an archive with changed members."""
    return packed(unpacked((run.path / name).read_bytes()) | {f"{k}.npy": x for k, x in changes.items()})


def bomb(run: Run) -> bytes:
    """Return an archive with a quarter of a gibibyte of zeros, compressed to a thousandth of that size."""
    zeros = declaring("'|u1'", f"({1 << 28},)", b"\0" * (1 << 28))
    return packed({"reward.npy": zeros}, zipfile.ZIP_DEFLATED)


def wide(run: Run) -> bytes:
    """Return rows whose columns all differ, so that a table of them would be a thousand times as large as the file."""
    rows = [{"iteration": 0, "seed": 0, "step": 1, **{f"{i}/{k}": 1 for k in range(20)}} for i in range(4000)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def uneven(run: Run) -> bytes:
    """Return a dataset with a hundred thousand one-step episodes, and one episode as long as all of these together."""
    many = 100_000
    length = npy(np.concatenate([np.ones(many, int), [many]]))
    steps, ends = 2 * many, many + 1
    facts = {"observation": np.zeros((steps, 4), "f4"), "action": np.zeros(steps, int), "reward": np.zeros(steps, "f4")}
    whole = facts | {"behaviour_log_prob": np.zeros(steps, "f4"), "terminated": np.zeros(ends, bool)}
    whole |= {"final_observation": np.zeros((ends, 4), "f4")}
    return with_arrays(run, "dataset.npz", length=length, **{name: npy(x) for name, x in whole.items()})


DECLARED: dict[str, tuple[str, Callable[[Run], bytes]]] = {
    "a petabyte in an array's header": (
        "dataset",
        lambda run: with_arrays(run, "dataset.npz", reward=declaring("'<f8'", HUGE, PETABYTE)),
    ),
    "text of a gigabyte a letter": (
        "arrays",
        lambda run: with_arrays(run, "dataset.npz", meta=declaring("'<U999999999'", "()", b"{}")),
    ),
    "elements of no size": (
        "arrays",
        lambda run: with_arrays(run, "dataset.npz", reward=declaring("'<U0'", HUGE)),
    ),
    "a zip bomb": ("arrays", bomb),
    "lengths whose sum overflows": (
        "dataset",
        lambda run: with_arrays(run, "dataset.npz", length=npy(np.array([2**62] * 4 + [5]))),
    ),
    "one episode as long as all others": ("dataset", uneven),
    "many seeds": ("config with its checkpoint", lambda run: with_config(run, seeds=2**31 - 1)),
    "as many seeds as are allowed": ("config with its checkpoint", lambda run: with_config(run, seeds=2**16)),
    "as many seeds as are allowed, and rows": ("metrics", lambda run: with_config(run, seeds=2**16)),
    "wide networks": ("config with its checkpoint", lambda run: with_config(run, hidden_sizes=[2**16] * 9)),
    "deep networks": ("config with its checkpoint", lambda run: with_config(run, hidden_sizes=[8] * 10**4)),
    "a column a row": ("metrics", wide),
    "nested JSON": ("config", lambda run: b"[" * 10**6),
    "nested rows": ("metrics", lambda run: b"[" * 10**6 + b"\n"),
    "nested YAML": ("settings", lambda run: b"a: " + b"[" * 600),
    "YAML that unfolds": ("settings", lambda run: aliases()),
}


@pytest.mark.parametrize("case", DECLARED)
def test_a_declared_size_takes_no_memory(case: str, run: Run):
    loader, make_content = DECLARED[case]
    name = "config.json" if "seeds" in case else LOADERS[loader][0]
    path = run.path / name
    content, new = path.read_bytes(), make_content(run)
    path.write_bytes(new)
    tracemalloc.start()
    try:
        assert refusal(run, name, loader), "it was loaded"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        path.write_bytes(content)
    assert peak < 64 * MEBIBYTE + 20 * len(new)


def test_a_letter_on_which_the_parser_of_tables_dies(run: Run):
    # NumPy's loadtxt looks up the characters of a numeric column in a C table with 256 entries, so U+10FFFF would crash
    # the process.
    path = run.path / "evaluation.csv"
    content = path.read_bytes()
    path.write_bytes(content + "0,\U0010ffff,last,\U0010ffff,9.5,10,1\n".encode())
    try:
        assert "characters" in refusal(run, path.name, "evaluation episodes")
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "episodes.csv", "evaluation.csv", "dataset.npz"])
def test_what_is_no_plain_file_is_not_read(name: str, run: Run, tmp_path: Path):
    loader = next(loader for loader, (file, _) in LOADERS.items() if file == name)
    path, kept = run.path / name, tmp_path / "kept"
    path.rename(kept)
    try:
        path.symlink_to("/dev/zero")
        assert refusal(run, name, loader)
        path.unlink()
        path.mkdir()
        assert refusal(run, name, loader)
        path.rmdir()
        path.symlink_to(path)
        assert refusal(run, name, loader) or name == "evaluation.csv"
        path.unlink()
        path.symlink_to(kept)
        assert not refusal(run, name, loader)
    finally:
        if path.is_symlink():
            path.unlink()
        kept.rename(path)
