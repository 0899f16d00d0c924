"""The commands `train` and `resume`, which start and continue training.

Heavy imports happen inside the functions, so that `--help` appears immediately.
"""

import contextlib
import inspect
import io
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.constructors import StructConstructorSpec, StructFieldSpec, StructTypeInfo

from upslope.cli.cluster import HERE, ClusterFlags, OnCluster
from upslope.cli.imports import uncollected
from upslope.config.coercion import REGISTRY
from upslope.config.config import Config, canonical, configure, positive
from upslope.config.foreign_names import foreign_setting
from upslope.config.settings_files import read_mapping
from upslope.errors import UpslopeError

Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Quiet = Annotated[bool, tyro.conf.arg(aliases=["-q"])]
Run = tyro.conf.Positional[Path]
Track = Annotated[tuple[str, ...], tyro.conf.arg(metavar="TRACKER"), tyro.conf.UseAppendAction]


@dataclass(frozen=True)
class Train(ClusterFlags, Config):
    """Train an agent on an environment, and write a run directory.

    Omitted flags take the defaults shown here. The defaults depend on the environment's action space, the algorithm and
    the environment's preset. To see them, name the environment and the algorithm, e.g.
    `upslope train HalfCheetah-v5 --help`.
    """

    name: str | None = None
    """Name of the run directory; by default derived from environment and algorithm. An existing name is refused."""
    folder: Path = Path("runs")
    """The folder in which run directories are created."""
    config: Path | None = None
    """A YAML file of settings, which are named like these flags. Flags override it."""
    preset_name: Annotated[str | None, tyro.conf.arg(name="preset", metavar="NAME")] = None
    """Name of one of the environment's presets, e.g. paper; by default the first preset."""
    no_preset: Switch = False
    """Do not use the environment's tuned settings."""
    resume: Switch = False
    """Continue the run with this --name if it exists and has the same config."""
    track: Track = ()
    """Send the run to a tracker during training: wandb, trackio, mlflow, tensorboard (each an extra), or module:Name;
    repeatable."""
    track_project: str | None = None
    """The trackers' project (MLflow: experiment); by default the one in their own configuration."""
    workers: int | None = None
    """Processes that share the seeds of a Gymnasium environment; by default one per core in long runs. The result does
    not depend on it."""
    trust: Switch = False
    """Run the code named by --config or by the run that --from names; it may do anything. Otherwise you are shown its
    name and asked, or it is refused."""
    quiet: Quiet = False
    """Print warnings only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(workers=self.workers)
        self.placement()
        if self.no_preset and self.preset_name is not None:
            raise UpslopeError("--preset and --no-preset contradict each other. Pass only one of them.")


HEADINGS = {
    "environment": "algorithm",
    "steps": "budget",
    "num_envs": "experience",
    "learning_rate": "optimiser",
    "gamma": "estimator and objective",
    "epochs": "update",
    "normalize_advantage": "normalisation",
    "hidden_sizes": "network",
    "cluster": "cluster",
    "name": "run",
}
"""Maps the first field of each group of flags in the help to the group's title."""


class Headings:
    """The type that tyro parses, with the flags of `Train` in the groups of `HEADINGS`."""


@REGISTRY.struct_rule
def group_flags(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Split the flags of `Train` into groups. Each group is a separate type that is parsed into a dictionary."""
    if hasattr(info.type, "flags"):
        return StructConstructorSpec(dict, info.type.flags)  # pyright: ignore[reportAttributeAccessIssue]
    if info.type is not Headings:
        return None
    spec = REGISTRY.get_struct_spec(replace(info, type=Train))
    assert isinstance(spec, StructConstructorSpec)
    groups: dict[str, list[StructFieldSpec]] = {}
    for flag in spec.fields:
        if flag.name in HEADINGS:
            groups[HEADINGS[flag.name]] = []
        groups[next(reversed(groups))].append(replace(flag, helptext=partial(without_breaks, flag.helptext)))
    types = {title: type(title, (), {"flags": tuple(flags)}) for title, flags in groups.items()}
    return StructConstructorSpec(
        lambda **found: Train(**{name: value for group in found.values() for name, value in group.items()}),
        tuple(
            StructFieldSpec(title, tyro.conf.OmitArgPrefixes[kind], tyro.MISSING_NONPROP, "")
            for title, kind in types.items()
        ),
    )


def without_breaks(text: Any) -> str:
    """Remove line breaks from the help text of a flag."""
    return " ".join(str(text() if callable(text) else text or "").split())


def parse(arguments: list[str], default: Config) -> Train:
    """Parse the flags of `train`, with these defaults."""
    kind: Any = Headings
    return tyro.cli(
        kind,
        prog="upslope train",
        description=inspect.getdoc(Train),
        args=arguments,
        default=Train(**vars(default)),
        registry=REGISTRY,
    )


def parse_train(arguments: list[str], *, ask: bool = True) -> tuple[Train, dict[str, Any]]:
    """Parse the flags and collect the requested settings: those in the settings file, overridden by the flags.

    With `ask`, the user is asked whether to trust code that is named only in the file.
    """
    generic = configure("", is_continuous=False, use_preset=False)
    if {"-h", "--help"} & set(arguments):
        return parse(arguments, config_from(arguments) or generic), {}  # this prints the help and exits
    words = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    if foreign := [hint for word in words if (hint := foreign_setting(word))]:
        raise UpslopeError(" ".join(foreign))
    flags = parse(arguments, generic)
    request = read_settings(flags.config) if flags.config else {}
    preset_in_file = request.pop("preset", True)
    given = {word.removeprefix("--").replace("-", "_").removeprefix("no_") for word in words}
    given |= {field for flag, field in (("wrapper", "wrappers"), ("from", "start_from")) if flag in given}
    request |= {f.name: getattr(flags, f.name) for f in fields(Config) if f.name.rstrip("_") in given}
    request["environment"] = flags.environment or request.get("environment", "")
    request["preset"] = not flags.no_preset and (preset_in_file if flags.preset_name is None else flags.preset_name)
    if not request["environment"] and request.get("start_from") is None:
        raise UpslopeError(
            "No environment was given. Name one, e.g. `upslope train CartPole-v1`; see `upslope train --help`."
        )
    if flags.config is not None:
        check_trust_in_file(flags, request, given, ask=ask)
    return flags, request


def check_trust_in_file(flags: Train, request: dict[str, Any], given: set[str], *, ask: bool) -> None:
    """Refuse code that the settings file asks to import or call, unless it is trusted.

    `given` holds the names of the flags on the command line.
    """
    from upslope.config.trust import ROLES, requested, require

    named = {role for role in ROLES if role in given or (role == "environment" and flags.environment)}
    settings = {name: request[name] for name in ROLES if name in request}
    config = configure(settings.pop("environment"), is_continuous=False, use_preset=False, **settings)
    if ask:
        require(config, str(flags.config), trust=flags.trust, given=named, ask=True)
    elif requested(config, named):
        raise UpslopeError("The settings file names code, which is not imported merely to print the help.")


def ask_for_trust(runs: Iterable[Path], trust: bool, *, learns: bool = False) -> None:
    """Ask on a terminal whether to trust the code that these runs' configs name.

    Untrusted code is refused or omitted later, when it is needed.
    """
    from upslope.config.trust import LEARNING, require
    from upslope.runs.directory import RunDirectory

    for run in runs:
        with contextlib.suppress(UpslopeError):
            given = () if learns else LEARNING
            require(RunDirectory(run).config(), run, trust=trust, given=given, ask=True)


def config_from(arguments: list[str]) -> Config | None:
    """The config that the arguments specify, with `--help` ignored; None if they do not specify one."""
    plain = [word for word in arguments if word not in ("-h", "--help")]
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit, UpslopeError):
        request = parse_train(plain, ask=False)[1]
        from upslope.config.prepare import configured

        return configured(**prepare_arguments(request))[0]
    return None


def prepare_arguments(request: dict[str, Any], *, trust: bool = False, ask: bool = False) -> dict[str, Any]:
    """Return the keyword arguments for `prepare` and `configured`.

    Code that is named only by the run given with --from must be trusted or, with `ask`, allowed at a prompt."""
    own = ("environment", "algorithm", "preset")
    settings = {name: value for name, value in request.items() if name not in own}
    if settings.get("start_from") is not None:
        from upslope.runs.lineage import request_from

        named = request["environment"] or None, request.get("algorithm")
        return request_from(*named, settings, preset=request.get("preset", True), trust=trust, ask=ask)
    return {name: request[name] for name in own if name in request} | {"settings": settings}


def train(flags: Train, request: dict[str, Any]) -> None:
    """Run `upslope train`."""
    with uncollected():
        from upslope import api
        from upslope.config.prepare import prepare
        from upslope.engines.stored_programs import allow_storing
        from upslope.runs.directory import check_name, same_run
        from upslope.runs.train import begin

    allow_storing()
    if flags.name is not None:
        check_name(flags.name)
    if flags.resume and flags.name is None:
        raise UpslopeError("--resume needs the --name of the run to continue. Give it, or use: upslope resume RUN")
    path, begun = flags.folder / str(flags.name), None
    if flags.resume and path.exists() and request.get("start_from") is not None:
        begun = changed_by(path, request)  # this does not read the source run, which may have been deleted
    config, task = (begun, None) if begun else prepare(**prepare_arguments(request, trust=flags.trust, ask=True))
    if task is None or (flags.resume and path.exists()):
        run = same_run(path, config)
        options: dict[str, Any] = {"quiet": flags.quiet, "trust": flags.trust, "workers": flags.workers}
        options["cluster"] = flags.placement()
        api.resume(run, track=flags.track, track_project=flags.track_project, **options)
        return
    directory = api.run_directory(flags.folder, flags.name, f"{config.environment}-{config.algorithm}")
    session = api.session_of(flags.quiet, flags.workers, flags.track, flags.track_project, cluster=flags.placement())
    begin(config, task, directory, session)


def changed_by(path: Path, request: dict[str, Any]) -> Config:
    """The config of an existing run, updated with the settings requested now."""
    from upslope.runs.directory import RunDirectory

    named = {
        name: value for name, value in request.items() if name != "preset" and (name, value) != ("environment", "")
    }
    return replace(RunDirectory(path).config(), **canonical(named))


def resume(
    run: Run,
    track: Track = (),
    track_project: str | None = None,
    workers: int | None = None,
    cluster: OnCluster = HERE,
    trust: Switch = False,
    quiet: Quiet = False,
) -> None:
    """Continue a stopped run. The result is the same as if it had not been stopped.

    Args:
        run: The run directory.
        track: Send the run to a tracker, as in `upslope train`. A tracker that already has the run continues it.
            Repeatable.
        track_project: The trackers' project (MLflow: experiment).
        workers: Processes that share the seeds of a Gymnasium environment; by default one per core in long runs.
        trust: Run the code that the run's config.json names; it may do anything. Otherwise you are shown its name
            and asked, or it is refused.
        quiet: Print warnings only.
    """
    positive(workers=workers)
    with uncollected():
        from upslope import api
        from upslope.engines.stored_programs import allow_storing

    allow_storing()
    ask_for_trust([run], trust, learns=True)
    api.resume(
        run,
        quiet=quiet,
        track=track,
        track_project=track_project,
        workers=workers,
        trust=trust,
        cluster=cluster.placement(),
    )


def read_settings(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings, keyed by the names of the flags."""
    settings = read_mapping(path)
    use_preset = settings.pop("preset", True)
    if not isinstance(use_preset, bool | str):
        raise UpslopeError(f"In {path}, preset must be true, false or the name of a preset, not {use_preset!r}.")
    own = {f.name for f in fields(Train)} - {f.name for f in fields(Config)} - {"preset_name"}
    if flags := [str(name) for name in settings if str(name).replace("-", "_") in own]:
        raise UpslopeError(
            f"{path} sets {', '.join(flags)}, but a file contains only the settings of a run, not where or how the "
            f"command runs it. Pass {'it' if len(flags) == 1 else 'them'} on the command line: "
            f"--{flags[0].replace('_', '-')}"
        )
    return canonical(settings) | {"preset": use_preset}
