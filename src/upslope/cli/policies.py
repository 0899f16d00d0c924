"""The commands that use a policy: `evaluate`, `record`, `judge`, `export`.

Each is a function whose parameters and docstring define its flags. Heavy imports happen inside it, so that `--help` and
error messages appear immediately.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from upslope.cli.arguments import Checkpoint, Output
from upslope.cli.cluster import HERE, OnCluster
from upslope.cli.terminal import answer, console, only_results, say
from upslope.cli.train import Run, Switch, ask_for_trust
from upslope.config.config import configure, fresh, positive
from upslope.core.messages import counted


def evaluate(
    run: Run,
    episodes: int = 20,
    checkpoint: Checkpoint = "last",
    environment_seed: int = 0,
    max_episode_steps: int | None = None,
    video: Path | None = None,
    cluster: OnCluster = HERE,
    trust: Switch = False,
) -> None:
    """Run trained agents, both stochastically and deterministically, in fresh environments, and store every return.

    Args:
        run: The run directory.
        episodes: Episodes per seed and mode.
        checkpoint: The checkpoint to evaluate.
        environment_seed: Each number gives different episodes.
        max_episode_steps: Steps after which an episode is truncated; by default the limit that the run trained with.
            Returns under another limit are shown but not stored, since they are not the run's score.
        video: Also record a video of one deterministic episode of the first seed in this .mp4 file (needs the extra
            `video`).
        trust: Run the code that the run's config.json names; it may do anything. Otherwise you are shown its name
            and asked to confirm, or it is refused.
    """
    positive(episodes=episodes, max_episode_steps=max_episode_steps)
    fresh(environment_seed=environment_seed)
    from upslope.cli.evaluation_tables import evaluation_view
    from upslope.report.video import film, video_path
    from upslope.runs import evaluation

    if video is not None:
        video_path(video)
    ask_for_trust([run], trust)
    options: dict[str, Any] = {
        "checkpoint": checkpoint,
        "environment_seed": environment_seed,
        "max_episode_steps": max_episode_steps,
        "trust": trust,
    }
    found = evaluation.evaluate(run, episodes=episodes, cluster=cluster.placement(), **options)
    console().print(evaluation_view(run, checkpoint, found))
    if video is not None:
        say(f"filmed {film(run, video, **options)}")


def record(
    run: Run,
    episodes: int = 100,
    output: str | None = None,
    checkpoint: Checkpoint = "last",
    seed: int | None = None,
    environment_seed: int = 0,
    max_episode_steps: int | None = None,
    trust: Switch = False,
) -> None:
    """Record episodes of a trained agent, with the probabilities of its actions, for the rungs off_policy and clone.

    Args:
        run: The run directory.
        episodes: Number of episodes.
        output: The file to write, or minari:NAME (needs the extra `minari`); by default dataset.npz in the run
            directory.
        checkpoint: The checkpoint to record.
        seed: One of the run's seeds; by default the first.
        environment_seed: Each number gives different episodes.
        max_episode_steps: Steps after which an episode is truncated; by default the limit that the run trained with.
        trust: Run the code that the run's config.json names; it may do anything. Otherwise you are shown its name
            and asked to confirm, or it is refused.
    """
    positive(episodes=episodes, max_episode_steps=max_episode_steps)
    fresh(environment_seed=environment_seed)
    options: dict[str, Any] = {
        "checkpoint": checkpoint,
        "seed": seed,
        "environment_seed": environment_seed,
        "max_episode_steps": max_episode_steps,
        "trust": trust,
    }
    from upslope.config.command import command_of
    from upslope.config.task import made_with
    from upslope.runs import evaluation
    from upslope.runs.directory import RunDirectory
    from upslope.runs.minari_datasets import is_minari
    from upslope.runs.policy import spaces_of

    ask_for_trust([run], trust)
    path = evaluation.record(run, episodes=episodes, output=output, **options)
    say(f"recorded {counted(episodes, 'episode')} in {path}")
    rung, data = ("clone", str(output)) if output is not None and is_minari(output) else ("off_policy", str(path))
    directory = RunDirectory(run)
    config, is_continuous = directory.config(), spaces_of(directory)[1].is_continuous
    arguments = made_with(vars(config))
    learner = configure(config.environment, rung, is_continuous=is_continuous, data=data, **arguments)
    say(f"to learn from them:  {command_of(learner, is_continuous=is_continuous)}")


def judge(
    run: Run,
    data: Annotated[str, tyro.conf.arg(metavar="FILE")],
    seed: int | None = None,
    checkpoint: Checkpoint = "last",
    gamma: float | None = None,
    horizon: int | None = None,
    iterations: int | None = None,
    trust: Switch = False,
    json: Switch = False,
) -> None:
    """Estimate the return of a trained agent from episodes that another policy recorded, without acting.

    This is off-policy evaluation (OPE): importance sampling, fitted Q evaluation and doubly robust estimates with
    intervals, or the reason why the data are not sufficient.

    Args:
        run: The run directory.
        data: The recorded episodes: a file of `upslope record`, or minari:NAME (needs the extra `minari`).
        seed: One of the run's seeds; by default the first.
        checkpoint: The checkpoint to judge.
        gamma: γ of the estimated return; by default that of the run. 1 gives the undiscounted return that
            `upslope evaluate` reports.
        horizon: Number of steps to count from the start of each episode. By default, all steps count, and the fitted Q
            estimates the rest of a truncated episode.
        iterations: Number of regressions for the fitted Q; by default four times the horizon 1/(1−γ), but at least
            200 and at most 1,000.
        trust: Run the model code named in the run's config.json; it may do anything. Otherwise you are shown its name
            and asked to confirm, or it is refused. upslope's own networks need no trust.
        json: Print everything as JSON.
    """
    positive(horizon=horizon, iterations=iterations)
    from upslope.analysis.judge import judge
    from upslope.cli.evaluation_tables import judgement_view
    from upslope.config.trust import ROLES, require
    from upslope.runs.directory import RunDirectory

    require(RunDirectory(run).config(), run, trust=trust, given=set(ROLES) - {"model"}, ask=True)
    options: dict[str, Any] = {"seed": seed, "checkpoint": checkpoint, "gamma": gamma, "horizon": horizon}
    with only_results(json):
        found = judge(run, data=data, iterations=iterations, trust=trust, **options)
    answer(json, found.to_json(), [judgement_view(found)])


def export(
    run: Run,
    format: Literal["onnx", "numpy", "c"],
    output: Annotated[str | None, Output] = None,
    seed: int | None = None,
    checkpoint: Checkpoint = "best",
    trust: Switch = False,
) -> None:
    """Export a trained policy to a file that runs without upslope, for a robot, a microcontroller or another program.

    The file computes the deterministic action in the environment's own units, and the parameters of the distribution.
    It includes the normaliser, masks, memory and action bounds. It is kept only if it agrees with the policy.

    Args:
        run: The run directory.
        format: numpy: a Python file and its arrays; c: a C99 header; onnx: a graph (needs the extra `onnx`).
        output: The file to write, or a folder for it; by default policy.py, .h or .onnx in the run directory.
        seed: One of the run's seeds; by default the one with the best training return.
        checkpoint: The checkpoint to export.
        trust: Run the model code named in the run's config.json; it may do anything. Otherwise you are shown its name
            and asked to confirm, or it is refused. upslope's own networks need no trust.
    """
    from upslope.config.trust import ROLES, require
    from upslope.runs.directory import RunDirectory
    from upslope.runs.export.writing import export

    require(RunDirectory(run).config(), run, trust=trust, given=set(ROLES) - {"model"}, ask=True)
    for note in export(run, format, output, seed=seed, checkpoint=checkpoint, trust=trust).notes:
        say(note)
