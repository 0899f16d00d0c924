"""The flags that select the cluster on which a command's workers run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from upslope.errors import UpslopeError

Modules = Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH"), tyro.conf.UseAppendAction]
Mixed = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclass(frozen=True)
class ClusterFlags:
    """A cluster, and the resources of each worker on it."""

    cluster: str | None = None
    """Run the workers on a Ray cluster: its address, or auto for the cluster running on this machine or else this
    machine alone (extra `ray`). The result does not depend on it."""
    worker_cpus: float = 1.0
    """CPUs for each worker on the cluster."""
    worker_gpus: float = 0.0
    """GPUs for each worker on the cluster."""
    py_module: Modules = ()
    """Your own module, package or folder of modules to send to every node of the cluster; repeatable."""
    mixed: Mixed = False
    """Allow nodes with different processors, which round differently; training records it in config.json."""

    def placement(self) -> Any:
        """The `Placement` that these flags describe; None without a cluster.

        Raises:
            UpslopeError: a number is out of range, or other flags are given without a cluster.
        """
        if self.cluster is None:
            if unread := [flag for flag, is_given in self.given().items() if is_given]:
                raise UpslopeError(
                    f"{', '.join(unread)} only matters on a cluster. Also pass --cluster auto or its address."
                )
            return None
        from upslope.engines.base import Placement

        return Placement(self.cluster, self.worker_cpus, self.worker_gpus, tuple(self.py_module), self.mixed)

    def given(self) -> dict[str, bool]:
        """Whether each flag that only matters on a cluster differs from its default."""
        return {
            "--worker-cpus": self.worker_cpus != 1.0,
            "--worker-gpus": self.worker_gpus != 0.0,
            "--py-module": bool(self.py_module),
            "--mixed": self.mixed,
        }


OnCluster = Annotated[ClusterFlags, tyro.conf.OmitArgPrefixes]
HERE = ClusterFlags()
"""The default flags: no cluster."""
