"""The commands that show and pack the results of runs.

Each is a function whose parameters and docstring define its flags. Heavy imports happen inside it, so that `--help` and
error messages appear immediately.
"""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from upslope.cli.arguments import Checkpoint, Normalize, Output, Runs, Score
from upslope.cli.terminal import answer, only_results, say
from upslope.cli.train import Run, Switch, ask_for_trust
from upslope.config.config import fresh, positive
from upslope.core.messages import shell


def compare(
    runs: Runs,
    score: Score = "auto",
    normalize: Normalize = None,
    metric: str = "return",
    trust: Switch = False,
    json: Switch = False,
) -> None:
    """Compare runs: means with intervals, sample efficiency, and the probability that one beats another.

    Runs that differ only in their seeds are pooled. Reasons to doubt a comparison are listed below it.

    A seed is scored by evaluation episodes of the last checkpoint in one mode, or by the last 100 training episodes.
    With auto, it is scored by stochastic evaluation if all runs have one, otherwise by training. Normalised scores can
    be averaged over environments: 0 and 1 are either a random policy and the reward threshold, or the lowest and
    highest score of these runs.

    Args:
        runs: Run directories.
        score: How a seed is scored.
        normalize: How scores are made comparable across environments.
        metric: The number to compare for each episode: return, length, or a key that every run logged with --log-info.
        trust: For --normalize threshold: run the code that a run's config.json names; it may do anything. Otherwise
            you are shown its name and asked, or it is refused.
        json: Print everything as JSON.
    """
    from upslope.analysis.compare import compare
    from upslope.cli.comparison_tables import comparison_page

    if normalize == "threshold":
        ask_for_trust(runs, trust)
    with only_results(json):
        found = compare(runs, score=score, normalize=normalize, trust=trust, metric=metric)
    answer(json, found.to_json(), [comparison_page(found)])


def report(
    runs: Runs,
    score: Score = "auto",
    normalize: Normalize = None,
    metric: str = "return",
    output: Annotated[str, Output] = "report.html",
    credit: Switch = False,
    trust: Switch = False,
) -> None:
    """Write one self-contained page about runs: curves, comparison, evaluations, settings, diagnostics and credit.

    The runs are only read, unless --credit is given. Results of `upslope evaluate` and `upslope credit` are shown too.

    Args:
        runs: Run directories.
        score: How a seed is scored, as in `upslope compare`.
        normalize: Also compare across environments, as in `upslope compare`; threshold creates each environment once.
        metric: The number to compare for each episode, as in `upslope compare`.
        output: The page to write, or a folder for it. Only an existing upslope page is replaced.
        credit: First play an episode of each run that has no credit view, as `upslope credit` does.
        trust: For --credit: run the code that a run's config.json names; it may do anything. Otherwise you are shown
            its name and asked, or it is refused.
    """
    from upslope.report.page import write_report

    if credit or normalize == "threshold":
        ask_for_trust(runs, trust)
    say_written(write_report(runs, output, score=score, normalize=normalize, metric=metric, credit=credit, trust=trust))


def credit(
    run: Run,
    seed: int | None = None,
    episode_seed: int = 0,
    checkpoint: Checkpoint = "last",
    max_episode_steps: int | None = None,
    output: Annotated[str | None, Output] = None,
    trust: Switch = False,
) -> None:
    """Play an episode and write a self-contained page that shows which actions each estimator credits for the outcome.

    Args:
        run: The run directory.
        seed: One of the run's seeds; by default the first.
        episode_seed: Each number gives a different episode.
        checkpoint: The checkpoint to play.
        max_episode_steps: Steps after which the episode is truncated; by default the limit that the run trained with.
        output: The page to write, or a folder for it; by default credit.html in the run directory.
        trust: Run the code that the run's config.json names; it may do anything. Otherwise you are shown its name
            and asked, or it is refused.
    """
    fresh(episode_seed=episode_seed)
    positive(max_episode_steps=max_episode_steps)
    from upslope.report.page import write_credit

    ask_for_trust([run], trust)
    options: dict[str, Any] = {
        "seed": seed,
        "episode_seed": episode_seed,
        "checkpoint": checkpoint,
        "max_episode_steps": max_episode_steps,
    }
    say_written(write_credit(run, output=output, trust=trust, **options))


def figure(
    runs: Runs,
    output: Annotated[str, Output] = "figure.pdf",
    kind: Literal["curves", "comparison", "profile"] = "curves",
    size: Literal["column", "page", "slide"] = "column",
    metric: str | None = None,
    labels: tuple[str, ...] = (),
    score: Score = "auto",
    normalize: Normalize = None,
    style: Path | None = None,
    trust: Switch = False,
) -> None:
    """Draw a figure for a paper or a slide from the results of `upslope compare` (needs the extra `figure`).

    Runs that differ only in their seeds form one line. Shaded areas and bars are 95 % intervals of the mean over seeds.

    Args:
        runs: Run directories, or archives of `upslope bundle`.
        output: The file to write: .pdf, .svg or .png. Only an existing upslope figure is replaced.
        kind: curves: a metric over environment steps; comparison: each seed's score and the mean; profile: the share of
            seeds whose normalised score exceeds τ.
        size: column: 3.25 inches wide; page: 6.75 inches; slide.
        metric: For curves: a metric of metrics.jsonl; by default the mean return of the last 100 training episodes.
        labels: Names for the groups of runs, in the order of the runs.
        score: How a seed is scored, as in `upslope compare`.
        normalize: For profiles: how scores are made comparable, as in `upslope compare`; by default range.
        style: A Matplotlib style sheet. Only its fonts, colours, lines and sizes are used, and no code is run.
        trust: For --normalize threshold: run the code that a run's config.json names; it may do anything. Otherwise
            you are shown its name and asked, or it is refused.
    """
    options = {name: value for name, value in locals().items() if name not in ("runs", "output")}
    from upslope.report.print_figures import figure

    if normalize == "threshold":
        ask_for_trust(runs, trust)
    drawn = figure(runs, output, **options)
    for note in drawn.notes:
        say(note)
    say(f"wrote {drawn.path} ({drawn.path.stat().st_size:,} bytes)")


def table(runs: Runs, format: Literal["latex", "markdown", "csv"] = "latex", score: Score = "auto") -> None:
    """Print a table of scores for a paper, a page or a spreadsheet: mean, IQM and median with intervals, seeds, and
    steps.

    Reasons to doubt the numbers go to standard error.

    Args:
        runs: Run directories, or archives of `upslope bundle`.
        format: latex (with the booktabs package), markdown, or csv with all digits.
        score: How a seed is scored, as in `upslope compare`.
    """
    from upslope.analysis.compare import compare
    from upslope.report.print_tables import table_of

    found = compare(runs, score=score)
    print(table_of(found, format), end="")
    for warning in found.warnings:
        say(warning, sys.stderr)


def bundle(runs: Runs, output: Annotated[str, Output] = "runs.zip", checkpoints: bool = True) -> None:
    """Pack runs into one archive for sharing, with their versions and the commands that repeat them.

    `upslope report runs.zip` reads the archive directly, and so do compare, figure, table and doctor.

    Args:
        runs: Run directories.
        output: The archive, a .zip file. An existing file is never overwritten.
        checkpoints: Also pack the checkpoints, so that the policies can be loaded after unpacking.
    """
    from upslope.runs.bundles import bundle

    path = bundle(runs, output, checkpoints=checkpoints)
    say(f"wrote {path} ({path.stat().st_size:,} bytes): {shell('upslope', 'report', path)}")


def say_written(path: Path) -> None:
    """Print the path of a page and its size."""
    say(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser")
