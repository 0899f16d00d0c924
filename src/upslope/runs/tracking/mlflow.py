"""MLflow: a parent run with a nested run per seed.

MLflow's own configuration (MLFLOW_TRACKING_URI etc.) determines where it writes; the default is a SQLite file in the
current folder.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from time import time
from typing import Any

import numpy as np

from upslope.runs.tracking.tracker import MetricRow, TrackedRun, imported, words

METRICS, PARAMETERS = 1000, 100
"""Maximum number of items that MLflow accepts in one call."""
LONGEST_VALUE, LONGEST_KEY = 6000, 250
"""MLflow's maximum lengths of parameters and names, in characters."""


class MlflowTracker:
    """Nested MLflow runs. Steps are environment steps and timestamps are training times, so sending a row twice
    produces identical entries."""

    def begin(self, run: TrackedRun, known: dict[str, Any]) -> dict[str, Any]:
        """Create the runs, or reopen them."""
        mlflow = imported("mlflow")
        self.metric, self.parameter = mlflow.entities.Metric, mlflow.entities.Param
        self.client, self.started = mlflow.MlflowClient(), round(1000 * run.created)
        if not known:
            known = self.create(run)
        self.parent, self.runs = known["parent"], {seed: known["runs"][str(seed)] for seed in run.seeds}
        for identity in (self.parent, *self.runs.values()):
            self.client.update_run(identity, status="RUNNING")
        return known | {"where": f"{mlflow.get_tracking_uri()} (parent run {run.name})"}

    def create(self, run: TrackedRun) -> dict[str, Any]:
        """Create new runs with their parameters."""
        experiment = self.experiment(run.project)
        tags = {"mlflow.source.name": "upslope", "mlflow.source.type": "LOCAL"}

        def new(name: str, more: dict[str, str], parameters: dict[str, Any]) -> str:
            made = self.client.create_run(experiment, start_time=self.started, tags=tags | more, run_name=name)
            pairs = [self.parameter(key_of(n), words(x)[:LONGEST_VALUE]) for n, x in parameters.items()]
            for some in batches(pairs, PARAMETERS):
                self.client.log_batch(made.info.run_id, params=some)
            return made.info.run_id

        parent = new(run.name, {}, run.parameters)
        runs = {
            str(seed): new(f"{run.name}-seed{seed}", {"mlflow.parentRunId": parent}, run.parameters | {"seed": seed})
            for seed in run.seeds
        }
        return {"parent": parent, "runs": runs}

    def experiment(self, project: str | None) -> str:
        """Return the id of the experiment named by the user or by MLflow's environment variables, or else of
        `upslope`."""
        if project is None and (identity := os.environ.get("MLFLOW_EXPERIMENT_ID")):
            return identity
        name = project or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "upslope"
        there = self.client.get_experiment_by_name(name)
        return self.client.create_experiment(name) if there is None else there.experiment_id

    def log(self, rows: Sequence[MetricRow]) -> None:
        """Send rows, in as few calls as MLflow allows."""
        for seed, identity in self.runs.items():
            points = (
                self.metric(key_of(name), value, self.started + round(1000 * row.elapsed), row.step)
                for row in rows
                if row.seed == seed
                for name, value in row.values.items()
            )
            for some in batches(points, METRICS):
                self.client.log_batch(identity, metrics=some)

    def summarise(self, summary: Mapping[int, Mapping[str, float]], step: int) -> None:
        """Log each seed's results in its run, and their means over seeds in the parent."""
        names = dict.fromkeys(name for values in summary.values() for name in values)
        means = {name: float(np.mean([x[name] for x in summary.values() if name in x])) for name in names}
        for identity, values in ((self.parent, means), *((self.runs[s], x) for s, x in summary.items())):
            now = round(1000 * time())
            self.client.log_batch(identity, metrics=[self.metric(key_of(n), x, now, step) for n, x in values.items()])

    def end(self, is_finished: bool) -> None:
        """Set the status of the runs."""
        for identity in (*self.runs.values(), self.parent):
            self.client.set_terminated(identity, status="FINISHED" if is_finished else "KILLED")


def key_of(name: str) -> str:
    """Reduce a name to the characters that MLflow allows, without the path components that it refuses."""
    parts = re.sub(r"[^\w\-. :/]", "_", name[:LONGEST_KEY]).split("/")
    return "/".join(part if part.strip(".") else "_" for part in parts)


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of at most `size` items."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some
