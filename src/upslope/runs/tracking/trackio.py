"""Trackio: a run per seed, in a group named after the training run.

Trackio's own configuration (TRACKIO_DIR, TRACKIO_SPACE_ID, TRACKIO_SERVER_URL) determines where it writes; the default
is a local folder.
"""

import contextvars
import os
from collections.abc import Mapping, Sequence
from typing import Any

from upslope.core.messages import shell
from upslope.runs.tracking.tracker import MetricRow, TrackedRun, imported

REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
"""Environment variables that make Trackio send its logs to another machine."""


class TrackioTracker:
    """A Trackio run per seed, with environment steps as its steps."""

    def begin(self, run: TrackedRun, known: dict[str, Any]) -> dict[str, Any]:
        """Start or continue the runs."""
        if not any(os.environ.get(name) for name in REMOTE):
            os.environ.setdefault("HF_HUB_OFFLINE", "1")  # otherwise, Trackio looks up the name of the user's account
        trackio = imported("trackio")
        project = run.project or "upslope"
        self.runs = {}
        for seed in run.seeds:
            options: dict[str, Any] = {
                "project": project,
                "name": f"{run.name}-seed{seed}",
                "group": run.name,
                "config": run.parameters | {"seed": seed},
                "resume": "must" if known else "never",
                "embed": False,
                "auto_log_gpu": False,
                "auto_log_cpu": False,
            }
            # Trackio ends the current run of a context when another begins, so each run has its own context.
            self.runs[seed] = contextvars.Context().run(lambda given=options: trackio.init(**given))
        return {"project": project, "where": f"{shell('trackio', 'show', '--project', project)} (group {run.name})"}

    def log(self, rows: Sequence[MetricRow]) -> None:
        """Send rows."""
        for row in rows:
            self.runs[row.seed].log(row.values, step=row.step)

    def summarise(self, summary: Mapping[int, Mapping[str, float]], step: int) -> None:
        """Log the results at the end."""
        for seed, values in summary.items():
            self.runs[seed].log(dict(values), step=step)

    def end(self, is_finished: bool) -> None:
        """Flush and close the runs."""
        for run in self.runs.values():
            run.finish()
