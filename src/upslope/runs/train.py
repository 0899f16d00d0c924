"""Train a task from scratch or from its last checkpoint: combine an engine, a run directory and the loop."""

import json
import math
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from upslope.config.command import command_of
from upslope.config.config import MAX_STEPS, Config, recorded_preset
from upslope.config.presets import words_of
from upslope.config.task import check_own_parts
from upslope.config.trust import allow, requested
from upslope.core.jax_settings import settings_in_words
from upslope.core.memory import memory_in_words
from upslope.core.messages import counted, shell
from upslope.core.numbers import UNKNOWN, number, range_of
from upslope.core.reading import brief
from upslope.core.storage import load_arrays
from upslope.core.types import Rollout
from upslope.engines.base import EVERYTHING, Engine, Resources
from upslope.engines.calls import calls_in
from upslope.engines.collect import LARGE, STEPS_PER_SUCCESSOR
from upslope.engines.selection import engine_of
from upslope.engines.stored_programs import stored_programs
from upslope.engines.transport import MAX_LOSSES, ClusterGrownError, WorkerLostError
from upslope.environments.names import parse_wrapper, without_batching
from upslope.environments.packages import registered_version
from upslope.environments.registry import lost
from upslope.errors import UpslopeError
from upslope.learning.devices import computing
from upslope.learning.iteration import Task, TrainState
from upslope.models.box_limits import warnings_of
from upslope.models.build import unusual_parts
from upslope.models.encoders import ImageEncoder
from upslope.models.heads import head_of
from upslope.runs.datasets import load_dataset
from upslope.runs.directory import RunDirectory
from upslope.runs.display import Display, closing_words, title_of
from upslope.runs.following import Following, require_calls
from upslope.runs.lineage import Source, lines_of_lineage, require_same_agent, source_of, taken_over
from upslope.runs.loop import Loop, Progress, Stopped, Watch, begin_progress, mean_of
from upslope.runs.notebooks import frame_of, page_of_run
from upslope.runs.policy import Policy, Which, check_checkpoint_size, described_spaces, load, spaces_of
from upslope.runs.reference import require_same_networks, with_reference
from upslope.runs.resume_point import resume_point_of
from upslope.runs.same_settings import require_same_settings
from upslope.runs.same_spaces import require_same_spaces
from upslope.runs.signals import unless_closed
from upslope.runs.tracking.process import Tracking
from upslope.runs.tracking.tracker import require_trackers


@dataclass(frozen=True)
class Session:
    """The display of a training session and the resources that it may use."""

    display: Display
    resources: Resources = EVERYTHING
    watch: Callable[[Path], Watch] | None = None
    """A function that creates the `Watch` for a run, given the path of its directory. The display shows the
    findings."""
    trackers: Sequence[str] = ()
    """Names of the experiment trackers that receive the run."""
    project: str | None = None
    """The trackers' project; if None, their own configuration determines it."""
    on_iteration: Callable[[Following], Any] | None = None
    """The user's function, called between chunks. Unlike the other fields, it may change results."""


@dataclass(frozen=True)
class Run:
    """A finished or interrupted training run."""

    path: Path
    config: Config
    seeds: tuple[int, ...]
    returns: np.ndarray
    """Each seed's mean return over its last 100 training episodes [S]."""

    def __fspath__(self) -> str:
        return str(self.path)  # so that it can be given wherever the folder of a run can

    def load(self, *, seed: int | None = None, checkpoint: Which = "best") -> Policy:
        """Load the trained policy; see `upslope.load`."""
        return load(self.path, seed=seed, checkpoint=checkpoint)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl."""
        return RunDirectory(self.path).metrics()

    def episodes(self) -> np.ndarray:
        """Return every finished training episode, as a structured array."""
        return RunDirectory(self.path).episodes()

    def frame(self, table: Literal["metrics", "episodes", "evaluation"] = "metrics") -> Any:
        """Return a table as a pandas DataFrame (extra `pandas`), with a row per iteration and seed, per training
        episode, or per evaluation episode."""
        return frame_of(RunDirectory(self.path), table)

    def __repr__(self) -> str:
        mean = number(float(np.mean(self.returns)), range_of(self.returns)) if len(self.returns) else UNKNOWN
        config = self.config
        trained = f"{config.algorithm} on {config.environment}, {counted(len(self.seeds), 'seed')}, mean return {mean}"
        return f"Run({str(self.path)!r}: {trained})"

    def _repr_html_(self) -> str:
        return page_of_run(RunDirectory(self.path), self.config, self.returns)


def begin(config: Config, task: Task, directory: RunDirectory, session: Session) -> Run:
    """Train from scratch."""
    return through_losses(partial(begin_once, config, task, directory, session), config, task, directory, session)


def resume_run(
    config: Config, task: Task, directory: RunDirectory, session: Session, notes: list[str], *, trust: bool = False
) -> Run:
    """Resume from the last checkpoint.

    `notes` are shown unless the run is already finished. `trust` allows the calls to environments' methods that the
    checkpoint contains."""
    first = partial(resume_once, config, task, directory, session, notes, trust=trust)
    return through_losses(first, config, task, directory, session, trust=trust)


def through_losses(
    first: Callable[[], Run],
    config: Config,
    task: Task,
    directory: RunDirectory,
    session: Session,
    *,
    trust: bool = False,
) -> Run:
    """Train. If a cluster loses workers or grows, continue from the last checkpoint with the available workers.

    Since a resumed run gives the same results as an uninterrupted one, this does not change the results.
    """
    try:
        again = partial(resume_once, config, task, directory, session, [], trust=trust)
        with settings_in_words(), memory_in_words():
            return attempts(first, again, session, directory)
    finally:
        if session.resources.cluster is not None:
            from upslope.engines.cluster import release

            release(session.resources.cluster)


def attempts(first: Callable[[], Run], again: Callable[[], Run], session: Session, directory: RunDirectory) -> Run:
    """Train until done, or until workers have been lost too often at the same checkpoint.

    Calls made by this process's own `on_iteration` are already trusted. Calls in a checkpoint from elsewhere need the
    user's consent each time."""
    attempt, losses, before = first, 0, ""
    while True:
        try:
            return attempt()
        except WorkerLostError as error:
            place = last_step(directory)
            losses = 1 if place != before or isinstance(error, ClusterGrownError) else losses + 1
            if losses > MAX_LOSSES:
                raise
            before = place
            session.display.message(str(error).partition("; resume with:")[0].rstrip(".") + ". It resumes from there.")
            if directory.path.exists():
                attempt = again


def last_step(directory: RunDirectory) -> str:
    """Return the steps at the last checkpoint as text, or an empty string if there is no checkpoint."""
    return str(load_arrays(directory.last, "checkpoint")[1].get("steps")) if directory.last.exists() else ""


def begin_once(config: Config, task: Task, directory: RunDirectory, session: Session) -> Run:
    """Train from scratch with the available workers."""
    require_trackers(session.trackers)
    check_sources(config, task)
    refuse_lost_statistics(config, task)
    with computing(on_host=is_on_host(config, task)), closing(engine_for(config, task, session)) as engine:
        state, lineage = engine.start(), None
        if config.start_from is not None:
            state, lineage = taken_over(config, task, state)
        about_reference = []
        if config.reference is not None:
            state, line = with_reference(config, task, state)
            about_reference = [line]
        progress = begin_progress(state, config.seed_list())
        head = head_of(task.environment.action_space, config.environment)
        spaces = described_spaces(task.model.encoder, head, has_masks=task.environment.gives_masks)
        parts = unusual_parts(task.model)
        # Anything inherited from another run's agent is stored at the start, since that run may be deleted later.
        takes = lineage or config.reference is not None
        save = partial(save_first, engine, config, session, state, progress) if takes else lambda _: None
        is_mixed = session.resources.is_mixed
        directory.create(config, spaces, task.described(), parts, lineage, save, is_mixed=is_mixed)
        allow(requested(config))  # a run trained on this machine is trusted
        with directory.locked():
            lines = [*opening_lines(config, directory), *lines_of_task(config, task)]
            lines += [*(lines_of_lineage(lineage) if lineage else []), *about_reference]
            for words in warnings_of(head, config.environment):
                session.display.message(words)
            return run_loop(config, engine, directory, session, state, progress, lines)


def normalised_by_wrappers(config: Config, task: Task) -> tuple[str, ...]:
    """Return what the environment's own wrappers scale by running statistics during training."""
    return () if config.data or task.environment.is_compiled else task.environment.normalised


def refuse_lost_statistics(config: Config, task: Task) -> None:
    """Reject an environment that scales observations by statistics that are not saved with the run.

    Raises:
        UpslopeError: the trained policy would later read observations on a different scale.
    """
    if "observations" in normalised_by_wrappers(config, task):
        raise UpslopeError(
            f"{config.environment} scales its observations by running statistics (Gymnasium's NormalizeObservation). "
            "They belong to the environment and are not saved, so evaluate, export and resume would give the trained "
            "policy observations on another scale. Remove this wrapper and use --normalize-observations, whose "
            "statistics are part of the policy; or fix them in the environment (update_running_mean = False)."
        )


def check_sources(config: Config, task: Task) -> None:
    """Check the run to start from and the reference run before memory for their networks is allocated.

    A run is refused if it does not fit, or if its config describes more numbers than its checkpoint contains."""
    if config.start_from is not None:
        source = source_of(config.start_from)
        require_same_agent(source, config, task)
        check_source_size(source, task)
    if config.reference is not None:
        source = source_of(config.reference, "--reference")
        require_same_networks(source, config, task)
        check_source_size(source, task)


def check_source_size(source: Source, task: Task) -> None:
    """Refuse a checkpoint that is too small for the networks. If it is missing, the error lists the existing ones."""
    if source.path.is_file():
        check_checkpoint_size(source.path, source.config, task.model)


def save_first(
    engine: Engine, config: Config, session: Session, state: TrainState, progress: Progress, directory: RunDirectory
) -> None:
    """Write the first checkpoint of a run, before training begins."""
    Loop(engine, directory, config, session.display).save(state, progress)


def resume_once(
    config: Config, task: Task, directory: RunDirectory, session: Session, notes: list[str], *, trust: bool = False
) -> Run:
    """Resume as `resume_run` does, with the available workers."""
    require_trackers(session.trackers)
    require_same_settings(directory, config)
    head = head_of(task.environment.action_space, config.environment)
    require_same_spaces(directory, task.model.encoder, head, task.environment)
    if directory.has_begun:
        check_checkpoint_size(directory.last, config, task.model, task.num_envs)
    with (
        directory.locked(),
        computing(on_host=is_on_host(config, task)),
        closing(engine_for(config, task, session)) as engine,
    ):
        point = resume_point_of(directory, config, task, engine.start(), is_on_host(config, task))
        require_calls(calls_in(point.snapshot), directory.last, trust=trust)
        directory.truncate(point.sizes, point.digests)
        if point.is_finished(config):
            with session.display as display:
                tracking_of(directory, session).close()  # send what the trackers do not have yet
                display.finish(None, finished_lines(config, directory))
            return Run(directory.path, config, tuple(config.seed_list()), np.asarray(mean_of(point.progress, 0)))
        lines = [f"resuming {directory.path} at step {point.step:,} of {config.steps:,}", *notes]
        if aside := directory.set_aside_evaluations(directory.evaluations_at(point.step)):
            lines.append(f"the evaluation of its agent at step {point.step:,} is kept as {aside.name}")
        if point.is_followed and session.on_iteration is None:
            lines.append(
                "on_iteration was passed before but not this time, so no function is called between iterations"
            )
        if point.lost_best:
            session.display.message(point.lost_best)
        if point.snapshot:
            engine.restore(point.snapshot, session.display.message)
        with directory.marked_mixed() if session.resources.is_mixed else nullcontext():
            return run_loop(config, engine, directory, session, point.state, point.progress, lines)


def is_on_host(config: Config, task: Task) -> bool:
    """Return whether environments are stepped in Python, in this process or in workers."""
    return config.data is None and not task.environment.is_compiled


def engine_for(config: Config, task: Task, session: Session) -> Engine:
    """Create the engine that fits the run's source of experience."""
    data = None if config.data is None else read_data(config, task)
    say, stored = unless_closed(session.display.message), stored_programs(config)
    return engine_of(task, config.seed_list(), session.resources, data, say, stored)


def read_data(config: Config, task: Task) -> Rollout:
    """Read the recorded episodes from which the run learns."""
    rollout = load_dataset(
        str(config.data),
        task.model.encoder,
        task.model.head,
        task.update.objective.needs_behaviour or task.estimator.corrects,
        needs_masks=task.environment.gives_masks,
    )
    count = int(rollout.valid.sum())
    if config.minibatches > count:
        raise UpslopeError(
            f"--minibatches {config.minibatches} is more than the {count} steps in {config.data}. Lower it."
        )
    check_own_parts(task, rollout)
    return rollout


def run_loop(
    config: Config,
    engine: Engine,
    directory: RunDirectory,
    session: Session,
    state: Any,
    progress: Any,
    lines: list[str],
) -> Run:
    """Run the loop inside the display. If it is stopped, the exception explains how to resume."""
    seeds, display = config.seed_list(), session.display
    watch = None if session.watch is None or display.is_quiet else session.watch(directory.path)
    tracking = tracking_of(directory, session)
    loop = Loop(engine, directory, config, display, watch, tracking, session.on_iteration)
    try:
        with display:
            with suppress(BrokenPipeError):  # the first update handles this, when there is something to save
                display.start(title_of(config), lines)
            state, progress = loop.run(state, progress)
            onward = f"stopped by on_iteration; resume it:  {call_of('resume', config, directory)}"
            lines = [onward] if progress.is_stopped else []
            lines += lines_of_evaluations(directory)
            display.finish(None, [*closing_lines(config, directory, progress), *lines])
    except Stopped:
        raise KeyboardInterrupt(f"Stopped and saved. Resume with: {call_of('resume', config, directory)}") from None
    except KeyboardInterrupt:
        words = f"Stopped without saving. Resume from the last checkpoint with: {call_of('resume', config, directory)}"
        raise KeyboardInterrupt(words) from None
    finally:
        for line in lines_of_evaluations(directory):  # the agents were evaluated before training ended
            unless_closed(display.message)(line)
        tracking.close()
    return Run(directory.path, config, tuple(seeds), np.asarray(mean_of(progress, 0)))


def lines_of_evaluations(directory: RunDirectory) -> list[str]:
    """Rename evaluation.csv if it was written during training, since the agents in it were trained further. Return the
    lines that report this."""
    if not directory.evaluation_path.exists():
        return []
    try:
        steps = load_arrays(directory.last, "checkpoint")[1]["steps"]
        aside = directory.set_aside_evaluations(directory.path / f"evaluation-up-to-step-{max(steps)}.csv")
    except (UpslopeError, OSError) as error:
        return [f"evaluation.csv contains results of earlier agents, but could not be renamed: {brief(error)}"]
    if aside is None:
        return []
    return [f"evaluations made during training used earlier agents and do not count: kept as {aside.name}"]


def tracking_of(directory: RunDirectory, session: Session) -> Tracking:
    """Start the trackers of a session. Their processes send everything in the run that the trackers do not have yet."""
    display = session.display
    inform = (lambda line: None) if display.is_quiet else display.message
    return Tracking(directory.path, session.trackers, session.project, display.message, inform)


def call_of(command: str, config: Config, directory: RunDirectory) -> str:
    """Return how to call a command on this run: in the shell, or in Python if the environment must be passed."""
    if lost(config.environment):
        argument = json.dumps(str(directory.path), ensure_ascii=False)
        command, argument = ("train", f"start_from={argument}") if "--from" in command else (command, argument)
        return f"upslope.{command}({argument}, environment=…)"
    return shell("upslope", *command.split(), directory.path)


def opening_lines(config: Config, directory: RunDirectory) -> list[str]:
    """Return the notes to show before training begins."""
    lines = [f"writing to {directory.path}", *source_lines(config)]
    if config.preset is not None:
        recorded = recorded_preset(config)
        note = recorded[1].get("note") if recorded else None
        made = words_of(recorded[1].get("making", {})) if recorded else []
        adds = f", with {' '.join(made)}" if made else ""
        # With --from, the preset may be that of the source run.
        adds += "" if config.start_from else "; --no-preset disables it"
        lines.append(f"preset: {config.preset}" + (f" ({note})" if note else "") + f"{adds}")
    if reason := lost(config.environment):
        lines.append(
            f"{config.environment} cannot be found by its name: {reason}. Commands like `upslope evaluate` "
            "cannot use this run. In Python, pass environment= to upslope.resume, evaluate and record. For commands, "
            "define it at the top level of a module and train it as module:Name"
        )
    if config.seeds == 1:
        lines.append("a single seed gives no interval: --seeds 5 shows how reliable the result is")
    return lines


def source_lines(config: Config) -> list[str]:
    """Return the notes on the package that was imported because of the environment's id, and on the meaning of an
    episode."""
    found = {} if ":" in without_batching(config.environment) else registered_version(config.environment)
    lines = [f"{config.environment} comes from {name} {n}, imported because of its id" for name, n in found.items()]
    if any(arguments.get("terminal_on_life_loss") for _, arguments in map(parse_wrapper, config.wrappers)):
        lines.append("each lost life ends an episode (terminal_on_life_loss): returns are per life")
    return lines


def lines_of_task(config: Config, task: Task) -> list[str]:
    """Return the notes on the task to show before training begins."""
    kind = "" if task.environment.is_compiled else task.environment.kind
    batched = [f"batched: {kind}; its episodes cannot be replayed, so a resumed run starts new ones"] if kind else []
    return [
        *batched,
        *lines_of_scaled_rewards(config, task),
        *lines_of_masks(config, task),
        *lines_of_networks(task),
        *lines_of_batch(task),
        *lines_of_one_sample(task),
    ]


def lines_of_scaled_rewards(config: Config, task: Task) -> list[str]:
    """Return the note that returns are not in the environment's units, if its wrapper scales rewards."""
    if "rewards" not in normalised_by_wrappers(config, task):
        return []
    return [
        "the wrapper NormalizeReward scales rewards by statistics that are not saved, so returns are not in the "
        "environment's units; --normalize-rewards scales rewards for learning only"
    ]


LARGE_BATCH = 2**25
"""The size of an iteration's observations is mentioned if it is at least this many bytes."""


def lines_of_batch(task: Task) -> list[str]:
    """Return the note on the memory that an iteration's observations take, if that is a lot."""
    encoder, whole = task.model.encoder, task.estimator.whole_episodes
    parts = (inner for _, inner, _ in encoder.leaves(encoder.shapes))
    one = sum(math.prod(inner.shapes) * (1 if isinstance(inner, ImageEncoder) else 4) for inner in parts)
    steps = (task.max_episode_steps or 0) if whole else task.rollout_steps
    once = not task.environment.is_compiled and one >= LARGE
    copies = 1 + 1 / STEPS_PER_SUCCESSOR if once else 2  # otherwise, each observation is stored with its successor
    size = copies * one * steps * task.num_envs
    if size < LARGE_BATCH:
        return []
    return [f"the observations of an iteration take {size / 2**20:,.0f} MB of memory for each seed"]


def lines_of_masks(config: Config, task: Task) -> list[str]:
    """Return the note that masks are used, or that there are no masks to ignore."""
    if task.environment.gives_masks:
        return ["masks: only actions that the environment allows are taken; --no-masks ignores its masks"]
    if config.masks or task.environment.ignores_masks:
        return []
    return [f"--no-masks has no effect: {config.environment} provides no action masks"]


def lines_of_networks(task: Task) -> list[str]:
    """Return the note that describes the networks, unless they are just two perceptrons."""
    parts = unusual_parts(task.model)
    return [f"networks: {', '.join(parts)}"] if parts else []


def lines_of_one_sample(task: Task) -> list[str]:
    """Return the note that advantages are not standardised if a batch consists of a single step."""
    is_single = not task.estimator.whole_episodes and task.num_envs * task.rollout_steps == 1
    if not (is_single and task.update.normalize_advantage):
        return []
    return ["a batch is a single step, whose advantage cannot be standardised, so it is used unchanged"]


def finished_lines(config: Config, directory: RunDirectory) -> list[str]:
    """Return the note that the run is finished, with advice on how to train longer."""
    longer = replace(config, steps=min(2 * config.steps, MAX_STEPS))
    is_continuous = spaces_of(directory)[1].is_continuous
    stops = "" if config.stop_at_return is None else f" or reached a return of {config.stop_at_return:g}"
    # A run that started from another run takes its defaults from there, so no short command describes it.
    command = [] if config.start_from else [f"    {command_of(longer, is_continuous=is_continuous)}"]
    return [
        f"{directory.path} is finished: each seed has spent its {config.steps:,} steps{stops}, so nothing was changed. "
        "A run's budget is fixed, since schedules depend on it. To train longer, start a new run with more --steps:",
        *command,
        f"or continue from its agents, with a new budget:  {call_of('train --from', config, directory)}",
        f"evaluate it:  {call_of('evaluate', config, directory)}",
    ]


def closing_lines(config: Config, directory: RunDirectory, progress: Any) -> list[str]:
    """Return the results of each seed, and what to do next."""
    returns = None if config.data is not None else mean_of(progress, 0)
    return [
        closing_words(progress.elapsed, config.seed_list(), returns, progress.stopped_at.tolist()),
        f"evaluate it:  {call_of('evaluate', config, directory)}",
    ]
