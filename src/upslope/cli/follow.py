"""The commands `track` and `watch`, which read a run's directory during training or afterwards."""

from typing import Annotated

import tyro

from upslope.cli.terminal import say
from upslope.cli.train import Run, Track
from upslope.core.messages import shell


def track(
    run: Run, to: Track, project: Annotated[str | None, tyro.conf.arg(aliases=["--track-project"])] = None
) -> None:
    """Send a run to experiment trackers: all metric rows by environment step, the settings, the results and the
    evaluation.

    The run directory records what was sent, so running the command again sends only new data.

    Args:
        run: The run directory.
        to: wandb, trackio, mlflow, tensorboard (each an extra), or module:Name; repeatable.
        project: The trackers' project (MLflow: experiment); by default the one in their own configuration.
    """
    from upslope.errors import UpslopeError
    from upslope.runs.tracking.sending import send_run
    from upslope.runs.tracking.tracker import require_trackers

    if not to:
        raise UpslopeError(
            f"No tracker was given. Name one with --to, e.g. {shell('upslope', 'track', run, '--to', 'wandb')}"
        )
    require_trackers(to, "--to")
    for name in to:
        say(send_run(run, name, project))


def watch(run: Run) -> None:
    """Show a run that is training in another terminal or on a machine that shares its folder.

    This only reads the run directory. It ends when the run ends, or on Ctrl-C, and reports when the run seems to have
    stopped. For a finished run, it shows the final state.

    Args:
        run: The run directory.
    """
    from upslope.diagnosis.doctor import Watch
    from upslope.runs.display import choose
    from upslope.runs.watching import watch

    try:
        watch(run, choose(quiet=False), Watch(run, seconds=0.0).look)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"No longer watching {run}; the run itself was not affected.") from None
