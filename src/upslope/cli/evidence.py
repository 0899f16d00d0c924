"""upslope compare | report | credit | ladder | lab: the commands that look at evidence, and their flags.

Heavy imports happen inside the commands, as in `cli.py`.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from upslope.cli.flags import JSON, Quiet, Run, Runs, Trust, Wrappers
from upslope.cli.terminal import answer, console, say
from upslope.config.config import fresh, positive
from upslope.errors import UpslopeError

ScoreFlag = Literal["auto", "stochastic", "deterministic", "training"]
NormalizeFlag = Literal["threshold", "range"] | None
"""As `analysis.scores` and `analysis.normalize` have them, which import too much to be asked for `--help`."""


@dataclass(frozen=True)
class Compare:
    """Compare runs: means with intervals, sample efficiency, and how probable it is that one beats another.

    Runs that share everything but their seeds are pooled. What makes a comparison doubtful is listed below it.
    """

    runs: Runs
    """Run directories."""
    score: ScoreFlag = "auto"
    """What a seed is judged by: evaluation episodes of one mode, by the last checkpoint; the last 100 training
    episodes; or auto: stochastic evaluation where all runs have it, else training."""
    normalize: NormalizeFlag = None
    """Average over several environments, in scores made comparable: 0 is a random policy and 1 the reward threshold, or
    0 and 1 are the lowest and highest score of these runs."""
    trust: Trust = False
    """For --normalize threshold: run the code that a run's config.json names; it may do anything. Without this it is
    shown and asked for, or refused."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print everything as JSON."""


@dataclass(frozen=True)
class Report:
    """Write one self-contained page about runs: curves, comparison, evaluations, settings, diagnostics, credit.

    It only reads, but with --credit. What `upslope evaluate` and `upslope credit` left in the runs is shown too.
    """

    runs: Runs
    """Run directories."""
    score: ScoreFlag = "auto"
    """What a seed is judged by, as in `upslope compare`."""
    normalize: NormalizeFlag = None
    """Also compare over several environments, as in `upslope compare`; threshold makes each of them once."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("report.html")
    """The page to write, or a folder for it; an older page of upslope there is replaced, nothing else is."""
    credit: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """First play an episode of each run that keeps no credit view yet, as `upslope credit` does; some seconds a run."""
    trust: Trust = False
    """For --credit and --normalize threshold: run the code that a run's config.json names; it may do anything. Without
    this it is shown and asked for, or refused."""


@dataclass(frozen=True)
class Credit:
    """Play an episode, and show which action the outcome is blamed on by each estimator, on one self-contained page."""

    run: Run
    """The run directory."""
    seed: int | None = None
    """Which of the run's seeds; by default the first."""
    episode_seed: int = 0
    """Another number gives another episode."""
    checkpoint: Literal["last", "best"] = "last"
    """Which agent."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The page to write, or a folder for it; by default credit.html in the run directory."""
    max_episode_steps: int | None = None
    """Cut the episode after so many steps; by default at the run's or the environment's limit, or at 10,000."""
    trust: Trust = False
    """Run the code that the run's config.json names; it may do anything. Without this it is shown and asked for, or
    refused."""

    def __post_init__(self) -> None:
        fresh(episode_seed=self.episode_seed)
        positive(max_episode_steps=self.max_episode_steps)


@dataclass(frozen=True)
class Ladder:
    """Race all rungs that fit an environment, on the same seeds and budget, and compare them.

    Each is set as `upslope train ENVIRONMENT --algorithm RUNG` sets it.
    """

    environment: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ENVIRONMENT")]
    """A Gymnasium id (`CartPole-v1`), `module:Id`, or a compiled world (`jax:CartPole-v1`)."""
    algorithms: tuple[str, ...] | None = None
    """Only these rungs."""
    steps: int = 50_000
    """Environment steps per seed, the same for every rung."""
    seeds: int = 10
    """How many seeds."""
    seed: int = 0
    """The first seed; the others follow it."""
    name: str | None = None
    """Name of the folder that holds the rungs' run directories. An existing one is refused."""
    folder: Path = Path("runs")
    """Where it is kept."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the race of this --name: finished rungs stay, one that was begun goes on."""
    preset: bool = True
    """Use the environment's tuned settings where there are any, as `upslope train` does."""
    env_kwargs: Annotated[dict[str, Any], JSON] = field(default_factory=dict)
    """Keyword arguments for the environment, as JSON."""
    wrappers: Wrappers = ()
    """A wrapper to put around the environment, repeatable, as in `upslope train`."""
    max_episode_steps: int | None = None
    """Truncate episodes after so many steps; by default at the environment's own limit."""
    workers: int | None = None
    """Processes among which the seeds of a Gymnasium environment are shared out; by default one a core."""
    evaluation_episodes: int = 20
    """Fresh episodes a seed and mode that judge each rung at its end; 0: judge by the last training episodes."""
    quiet: Quiet = False
    """Print nothing but warnings."""

    def __post_init__(self) -> None:
        if self.evaluation_episodes:
            positive(evaluation_episodes=self.evaluation_episodes)
        positive(seeds=self.seeds, steps=self.steps, workers=self.workers, max_episode_steps=self.max_episode_steps)


@dataclass(frozen=True)
class Lab:
    """Run the lecture's claims as experiments, each with a prediction, a measurement and a verdict, into one HTML page.

    Takes one to two minutes on two cores. The exit status is 0 also when a claim is refuted: that is a finding. Needs
    the extra `report`.
    """

    only: tuple[str, ...] = ()
    """Only these experiments: expectation, gradient, variance, advantages, importance, reuse, table1, credit, seeds."""
    language: Literal["en", "zh"] = "en"
    """English or Chinese."""
    output: Path = Path("lab.html")
    """The page to write, or a folder for it; an older page of upslope there is replaced, nothing else is."""
    seed: int = 0
    """Another number draws everything anew."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Small sizes: see that it works, with wide intervals and more that stays undecided."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also print all findings and curves as JSON; what is said besides goes to standard error."""


def compare(flags: Compare) -> None:
    """upslope compare."""
    from upslope.analysis.compare import compare
    from upslope.cli.comparison_tables import comparison_page

    if flags.normalize == "threshold":
        decide(flags.runs, flags.trust)
    found = compare(flags.runs, score=flags.score, normalize=flags.normalize, trust=flags.trust)
    answer(flags.json, found.to_json(), [comparison_page(found)])


def report(flags: Report) -> None:
    """upslope report."""
    from upslope.report.page import write_report

    if flags.credit or flags.normalize == "threshold":
        decide(flags.runs, flags.trust)
    options = {name: value for name, value in vars(flags).items() if name not in ("runs", "output")}
    say_written(write_report(flags.runs, flags.output, **options))


def credit(flags: Credit) -> None:
    """upslope credit."""
    from upslope.report.page import write_credit

    decide([flags.run], flags.trust)
    options = {name: value for name, value in vars(flags).items() if name != "run"}
    say_written(write_credit(flags.run, **options))


def decide(runs: Iterable[Path], trust: bool) -> None:
    """Ask, where a person can answer, for the code that these runs' configs name; what is not allowed is refused or
    left out by whatever needs it."""
    from upslope.config.trust import LEARNING, require
    from upslope.runs.directory import RunDirectory

    for run in runs:
        with suppress(UpslopeError):
            require(RunDirectory(run).config(), run, trust=trust, given=LEARNING, ask=True)


def say_written(path: Path) -> None:
    """Where the page is and how large."""
    say(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser")


def ladder(flags: Ladder) -> None:
    """upslope ladder."""
    from upslope.cli.comparison_tables import comparison_page
    from upslope.lab.race import ladder

    found = ladder(**vars(flags))
    if not flags.quiet:
        console().print(comparison_page(found.comparison))
        say(f"compare again:  upslope compare {found.path}/*/")
        say(f"report:  {found.report or f'upslope report {found.path}/*/'}")


def lab(flags: Lab) -> None:
    """upslope lab."""
    from upslope.core.consoles import PlainTextConsole
    from upslope.learning.devices import computing
    from upslope.report.page import plotly_script

    plotly_script()  # it says what to install, before minutes are spent
    from upslope.core.storage import write_atomically
    from upslope.lab import page, run
    from upslope.report.output import page_path

    output = page_path(flags.output, "lab.html")
    shown = PlainTextConsole(stderr=True) if flags.json else console()
    with computing(on_host=False):
        results = run.run(flags.only, flags.language, flags.seed, flags.quick, shown)
    write_atomically(output, page.page(results, flags.language, flags.seed, flags.quick).encode())
    shown.print(run.verdict_table(results, flags.language))
    shown.print(run.closing(results, flags.language, flags.seed, flags.quick, output), highlight=False)
    if flags.json:
        answer(True, run.as_json(results, flags.language, flags.seed, flags.quick), ())


COMMANDS = {"compare": Compare, "report": Report, "credit": Credit, "ladder": Ladder, "lab": Lab}
DO = {Compare: compare, Report: report, Credit: credit, Ladder: ladder, Lab: lab}
