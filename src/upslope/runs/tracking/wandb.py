"""Weights & Biases: a run per seed, in a group named after the training run.

wandb's own settings and environment variables (WANDB_MODE, WANDB_DIR, …) determine the account, server, mode and
entity. Without an account, runs are written offline, to be uploaded with `wandb sync`.
"""

from collections.abc import Mapping, Sequence
from secrets import token_hex
from typing import Any

from upslope.runs.tracking.tracker import MetricRow, TrackedRun, imported

NO_ACCOUNT = ("api key", "api_key", "log in", "login")
"""Phrases in wandb's error message if there is no account and it cannot ask for one."""


class WandbTracker:
    """A wandb run per seed; the environment step is wandb's own step and thus the x axis."""

    def begin(self, run: TrackedRun, known: dict[str, Any]) -> dict[str, Any]:
        """Start or continue the runs."""
        wandb = imported("wandb")
        ids = known.get("ids") or {str(seed): token_hex(8) for seed in run.seeds}
        project = run.project or wandb.setup().settings.project or "upslope"
        self.mode: str | None = None
        self.runs = {seed: self.start(wandb, run, seed, project, ids[str(seed)], bool(known)) for seed in run.seeds}
        first = next(iter(self.runs.values()))
        where = f"offline in {first.settings.sync_dir}" if first.offline else first.url
        return {"ids": ids, "project": project, "where": f"{where} (group {run.name})"}

    def start(self, wandb: Any, run: TrackedRun, seed: int, project: str, identity: str, is_known: bool) -> Any:
        """Return the wandb run of one seed."""
        options: dict[str, Any] = {
            "project": project,
            "group": run.name,
            "name": f"{run.name}-seed{seed}",
            "id": identity,
            "job_type": "train",
            "config": run.parameters | {"seed": seed},
            "resume": "allow" if is_known else None,
            "reinit": "create_new",
            # Training prints its output in another process, and this process's load is not the run's load.
            "settings": wandb.Settings(console="off", x_disable_stats=True),
        }
        try:
            return wandb.init(**options, mode=self.mode)
        except wandb.errors.UsageError as error:
            if self.mode is not None or not any(word in str(error).lower() for word in NO_ACCOUNT):
                raise
            self.mode = "offline"
            return wandb.init(**options, mode=self.mode)

    def log(self, rows: Sequence[MetricRow]) -> None:
        """Send rows to the history of the runs."""
        for row in rows:
            self.runs[row.seed].log(row.values, step=row.step)

    def summarise(self, summary: Mapping[int, Mapping[str, float]], step: int) -> None:
        """Store each seed's results in the summary of its run."""
        for seed, values in summary.items():
            self.runs[seed].summary.update(dict(values))

    def end(self, is_finished: bool) -> None:
        """Finish the runs, and mark them as failed if training stopped early."""
        for run in self.runs.values():
            run.finish(exit_code=0 if is_finished else 1)
