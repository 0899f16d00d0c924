"""Write TensorBoard files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upslope.errors import UpslopeError


def require_tensorboard() -> Any:
    """tensorboardX's SummaryWriter, or an error that says how to install it."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UpslopeError(
            'TensorBoard files need the package tensorboardX: pip install "upslope[tensorboard]", '
            "or leave out --tensorboard."
        ) from error
    return SummaryWriter


class TensorboardWriter:
    """Writes each seed's metrics to its own sub-folder, so that TensorBoard overlays the seeds."""

    def __init__(self, folder: Path, seeds: Sequence[int]) -> None:
        self.writers = [require_tensorboard()(str(folder / f"seed_{seed}")) for seed in seeds]

    def write(self, step_per_seed: Sequence[int], metrics: Mapping[str, Sequence[float]]) -> None:
        """Write one point per metric and seed, at that seed's own environment step; nan is skipped."""
        for index, (writer, step) in enumerate(zip(self.writers, step_per_seed, strict=True)):
            for name, values in metrics.items():
                if not math.isnan(values[index]):
                    writer.add_scalar(name, float(values[index]), int(step))

    def close(self) -> None:
        """Flush and close the files."""
        for writer in self.writers:
            writer.close()
