"""Arguments that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

Runs = tyro.conf.Positional[tuple[Path, ...]]
Environment = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ENVIRONMENT")]
Output = tyro.conf.arg(aliases=["-o"])
Checkpoint = Literal["last", "best"]
Wrappers = Annotated[tuple[str, ...], tyro.conf.arg(name="wrapper"), tyro.conf.UseAppendAction]
Keys = Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY"), tyro.conf.UseAppendAction]
Score = Literal["auto", "stochastic", "deterministic", "training"]
Normalize = Literal["threshold", "range"] | None
"""`Score` and `Normalize` are copied from `analysis.scores` and `analysis.normalization`, which are slow to import."""
