"""upslope train | resume | evaluate | record | compare | report | credit | ladder | lab | doctor | check | probe.

Heavy imports happen inside the commands, so that `--help` answers at once.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from upslope.errors import UpslopeError
from upslope.flags import (
    Compare,
    Credit,
    Evaluate,
    Lab,
    Ladder,
    List,
    Record,
    Report,
    Resume,
    Train,
    parse_train,
)
from upslope.flags_health import Check, Doctor, Probe

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
PIPE_WIDTH = 160
"""Columns of a table that nobody's terminal limits."""

COMMANDS = {
    "train": Train,
    "resume": Resume,
    "evaluate": Evaluate,
    "record": Record,
    "doctor": Doctor,
    "check": Check,
    "probe": Probe,
    "compare": Compare,
    "report": Report,
    "credit": Credit,
    "ladder": Ladder,
    "lab": Lab,
    "list": List,
}


def main(arguments: list[str] | None = None) -> None:
    """The entry point of the `upslope` command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    sys.path.append(str(Path.cwd()))
    try:
        run(arguments)
    except UpslopeError as error:
        print(f"upslope: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt as stop:
        print(f"\n{stop}" if str(stop) else "\nStopped before anything was trained.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def run(arguments: list[str]) -> None:
    """Parse and do."""
    if arguments[:1] == ["train"]:
        train(parse_train(arguments[1:]))
        return
    types = tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in COMMANDS.items())
    one_of: Any = union_of(types)
    command: Any = tyro.cli(tyro.conf.OmitSubcommandPrefixes[one_of], prog="upslope", args=arguments)
    DO[type(command)](command)


def union_of(types: tuple[Any, ...]) -> Any:
    """A typing.Union of annotated types."""
    result = types[0]
    for kind in types[1:]:
        result = result | kind
    return result


def train(flags: Train) -> None:
    """upslope train."""
    from upslope import api
    from upslope.environments.make import make
    from upslope.runs import same_run

    config = flags.settings()
    if flags.resume and flags.name is None:
        raise UpslopeError("--resume goes on with the run of a --name, and none is given. Or: upslope resume RUN")
    if flags.resume and (flags.folder / str(flags.name)).exists():
        api.resume(
            same_run(flags.folder / str(flags.name), config),
            quiet=flags.quiet,
            tensorboard=flags.tensorboard,
            workers=flags.workers,
        )
        return
    world = make(config.environment, config.env_kwargs, config.max_episode_steps)
    api.train_config(
        config,
        world,
        name=flags.name,
        folder=flags.folder,
        quiet=flags.quiet,
        tensorboard=flags.tensorboard,
        workers=flags.workers,
    )


def resume(flags: Resume) -> None:
    """upslope resume."""
    from upslope import api

    api.resume(flags.run, quiet=flags.quiet, tensorboard=flags.tensorboard, workers=flags.workers)


def evaluate(flags: Evaluate) -> None:
    """upslope evaluate."""
    from upslope import evaluation, tables

    found = evaluation.evaluate(
        flags.run,
        episodes=flags.episodes,
        checkpoint=flags.checkpoint,
        environment_seed=flags.environment_seed,
    )
    console().print(tables.evaluation_table(flags.run, flags.checkpoint, found))
    if flags.video is not None:
        from upslope.video import film

        print(f"filmed {film(flags.run, flags.video, flags.checkpoint)}")


def record(flags: Record) -> None:
    """upslope record."""
    from upslope import evaluation

    options = {name: value for name, value in vars(flags).items() if name != "run"}
    path = evaluation.record(flags.run, **options)
    print(f"recorded {flags.episodes} episodes in {path}")
    print(f"learn from them: upslope train ENVIRONMENT --algorithm off_policy --data {path}")


def doctor(flags: Doctor) -> None:
    """upslope doctor."""
    from upslope.analysis.doctor import diagnose
    from upslope.verdicts import diagnosis_view

    found = diagnose(flags.run)
    answer(flags.json, found.to_json(), [diagnosis_view(found)])


def check(flags: Check) -> None:
    """upslope check; the exit status is 1 where there is an error."""
    from upslope import checking
    from upslope.verdicts import check_view

    found = checking.check(flags.environment, env_kwargs=flags.env_kwargs, max_episode_steps=flags.max_episode_steps)
    answer(flags.json, found.to_json(), check_view(found))
    sys.exit(int(found.worst == "error"))


def probe(flags: Probe) -> None:
    """upslope probe; the exit status is 1 where a probe is not solved."""
    from upslope import probing
    from upslope.verdicts import probe_view

    settings = {name: value for name, value in vars(flags).items() if name not in ("json",) and value is not None}
    found = probing.probe(**settings)
    title = " ".join(str(x) for x in (flags.algorithm, flags.estimator, flags.objective) if x)
    answer(flags.json, probing.to_json(found), probe_view(title, found))
    sys.exit(int(not all(one.solved for one in found)))


def answer(as_json: bool, found: dict[str, Any], views: Any) -> None:
    """Print what was found, for a program or for a person."""
    if as_json:
        print(json.dumps(found, indent=1, default=str))
        return
    for view in views:
        console().print(view)


def compare(flags: Compare) -> None:
    """upslope compare."""
    from upslope.analysis.compare import compare
    from upslope.analysis.comparison_tables import comparison_page

    found = compare(flags.runs, score=flags.score, normalize=flags.normalize)
    if flags.json:
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        console().print(comparison_page(found))


def report(flags: Report) -> None:
    """upslope report."""
    from upslope.report.page import write_report

    say_written(write_report(flags.runs, flags.output))


def credit(flags: Credit) -> None:
    """upslope credit."""
    from upslope.report.page import write_credit

    options = {name: value for name, value in vars(flags).items() if name != "run"}
    say_written(write_credit(flags.run, **options))


def say_written(path: Path) -> None:
    """Where the page is and how large."""
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser")


def ladder(flags: Ladder) -> None:
    """upslope ladder."""
    from upslope.analysis.comparison_tables import comparison_page
    from upslope.race import ladder

    found = ladder(**vars(flags))
    if not flags.quiet:
        console().print(comparison_page(found.comparison))
        print(f"compare again:  upslope compare {found.path}/*/")
        print(f"report:  {found.report or f'upslope report {found.path}/*/'}")


def lab(flags: Lab) -> None:
    """upslope lab."""
    from upslope.devices import prepare

    try:
        import plotly  # noqa: F401
    except ImportError as error:
        raise UpslopeError('The lab draws with Plotly: pip install "upslope[report]".') from error
    from rich.console import Console

    from upslope.lab import page, run

    prepare(on_host=False)
    if not flags.output.parent.is_dir():
        raise UpslopeError(f"There is no folder {flags.output.parent} to write {flags.output.name} to.")
    say = Console(stderr=True) if flags.json else console()
    results = run.run(flags.only, flags.language, flags.seed, flags.quick, say)
    flags.output.write_text(page.page(results, flags.language, flags.seed, flags.quick), "utf-8")
    say.print(run.verdict_table(results, flags.language))
    say.print(run.closing(results, flags.language, flags.seed, flags.quick, flags.output), highlight=False)
    if flags.json:
        print(json.dumps(run.as_json(results, flags.language, flags.seed, flags.quick), ensure_ascii=False, indent=1))


def show_list(flags: List) -> None:
    """upslope list."""
    from upslope import tables

    for table in tables.everything():
        console().print(table)


def console() -> Any:
    """Where tables go: as wide as the terminal, and wide enough for every name where there is none."""
    from rich.console import Console

    return Console(width=shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH)


DO = {
    Resume: resume,
    Evaluate: evaluate,
    Record: record,
    Doctor: doctor,
    Check: check,
    Probe: probe,
    Compare: compare,
    Report: report,
    Credit: credit,
    Ladder: ladder,
    Lab: lab,
    List: show_list,
}
