"""Write TensorBoard event files to `tensorboard/seed_…` in the run directory, so that TensorBoard overlays the
seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

from upslope.core.files import safe_path
from upslope.core.messages import shell
from upslope.runs.tracking.tracker import MetricRow, TrackedRun, imported, words


class TensorboardTracker:
    """A folder of event files per seed."""

    def begin(self, run: TrackedRun, known: dict[str, Any]) -> dict[str, Any]:
        """Open a file per seed. TensorBoard reads all files in a folder as one run."""
        board = run.path / "tensorboard"
        folders = {seed: safe_path(run.path, board / f"seed_{seed}", is_folder=True) for seed in run.seeds}
        writer = imported("tensorboard").SummaryWriter
        self.writers = {seed: writer(str(folder)) for seed, folder in folders.items()}
        self.started = run.created
        if not known:
            rows = "\n".join(f"| {name} | {cell(value)} |" for name, value in run.parameters.items())
            for one in self.writers.values():
                one.add_text("parameters", f"| name | value |\n|---|---|\n{rows}", 0)
        return {"where": shell("tensorboard", "--logdir", board)}

    def log(self, rows: Sequence[MetricRow]) -> None:
        """Write one point per metric, at the seed's environment step."""
        for row in rows:
            for name, value in row.values.items():
                self.writers[row.seed].add_scalar(name, value, row.step, self.started + row.elapsed)

    def summarise(self, summary: Mapping[int, Mapping[str, float]], step: int) -> None:
        """Write the results as points at the end."""
        for seed, values in summary.items():
            for name, value in values.items():
                self.writers[seed].add_scalar(name, value, step)

    def end(self, is_finished: bool) -> None:
        """Flush and close the files."""
        for writer in self.writers.values():
            writer.close()


def cell(value: Any) -> str:
    """Format a value for a Markdown table."""
    return " ".join(words(value).replace("|", "\\|").split())
