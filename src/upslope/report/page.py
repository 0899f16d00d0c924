"""The report and the credit page."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from upslope.analysis.compare import compare_records
from upslope.analysis.comparison import Comparison
from upslope.analysis.credit import FILE_NAME, EpisodeCredit, load_credit, save_credit
from upslope.analysis.normalization import Normalize
from upslope.analysis.records import Record, read_records
from upslope.analysis.scores import Score
from upslope.analysis.statistics import WINDOW
from upslope.core.files import AnyPath, safe_path
from upslope.core.messages import shell
from upslope.diagnosis.doctor import diagnosis_of
from upslope.errors import UpslopeError
from upslope.report.credit import credit_view
from upslope.report.curves import diagnostics_part, learning_part
from upslope.report.evaluations import evaluation_part
from upslope.report.figures import DASHES, NUM_COLOURS, Figures, dash
from upslope.report.output import page_path, plotly_script, render, write_page
from upslope.report.tables import comparison_part, settings_part
from upslope.runs.directory import RunDirectory, run_path

REPORT_PICTURES, CREDIT_PICTURES = 1_200_000, 2_500_000
"""Maximum total size, in bytes, of the pictures in a report and in a credit page, for all runs together."""
LINE_STYLES: dict[str, str] = dict(zip(DASHES, ("solid", "dashed", "dotted", "dashed"), strict=True))
"""The CSS line style that corresponds to each of Plotly's dash styles."""


def write_report(
    runs: AnyPath | Sequence[AnyPath],
    output: str | Path = "report.html",
    *,
    credit: bool = False,
    score: Score = "auto",
    normalize: Normalize | None = None,
    metric: str = "return",
    environment: Any = None,
    trust: bool = False,
) -> Path:
    """Write a page about these runs: curves, comparison, evaluations, health, settings, diagnostics, credit.

    Only run directories are read, so this is quick and executes none of their code. Evaluation episodes and credit are
    shown if `upslope evaluate` and `upslope credit` have stored them. With `credit`, an episode is first played for
    each run without stored credit, which takes seconds per run. `score`, `normalize` and `metric` are as in
    `upslope.compare`; "threshold" creates each environment, to measure a random policy. For "threshold" and `credit`,
    `trust` allows the code that a run's config.json names, as in `upslope.evaluate`. For `credit`, pass the runs'
    `environment` if it cannot be found by name.

    Raises:
        UpslopeError: a folder is missing, no run can be read, or the output cannot be written.
    """
    path = page_path(output, "report.html")
    plotly_script()  # fail before reading anything if Plotly is missing
    records, doubts = read_records(runs, with_evaluations=True)
    names = unique_names(records)
    called = {record.path: name for record, name in zip(records, names, strict=True)}
    missing = add_credit([record.path for record in records], environment=environment, trust=trust) if credit else []
    comparison, warnings = compared(records, score, normalize, trust, metric)
    figures = Figures()
    # The parts are made in the order of the page, since figures are numbered as they are added.
    parts = {
        "learning": learning_part(figures, records, names),
        "comparison": comparison_part(figures, comparison, called) if comparison else None,
        "evaluation": evaluation_part(figures, records, names),
        "health": [(name, diagnosis_of(record)) for name, record in zip(names, records, strict=True)],
        "settings": settings_part(records, names),
        "diagnostics": diagnostics_part(figures, records, names),
        "credit": credit_part(figures, records, names, missing),
    }
    html = render(
        "report.html",
        figures,
        title=f"upslope · {', '.join(dict.fromkeys(r.config.environment for r in records))}",
        names=names,
        line_styles=[LINE_STYLES[dash(k)] for k in range(len(names))],
        num_colours=NUM_COLOURS,
        warnings=[*doubts, *warnings, *missing],
        window=WINDOW,
        **parts,
    )
    return write_page(path, html)


def write_credit(
    run: AnyPath,
    *,
    output: str | Path | None = None,
    seed: int | None = None,
    episode_seed: int = 0,
    checkpoint: Literal["last", "best"] = "last",
    max_episode_steps: int | None = None,
    environment: Any = None,
    trust: bool = False,
) -> Path:
    """Play an episode of a run's agent, and write a page about the credit of its actions; by default RUN/credit.html.

    The numbers are stored in RUN/credit.npz, and reports about the run show them too. `max_episode_steps`,
    `environment` and `trust` are as in `upslope.evaluate`.

    Raises:
        UpslopeError: the run, seed or checkpoint does not exist, the output cannot be written, or the environment is
            not trusted.
    """
    from upslope.analysis.episode_credit import credit_of  # this imports JAX, which a report does not need

    run = run_path(run)
    RunDirectory(run).read()
    path = page_path(run if output is None else output, "credit.html")
    plotly_script()
    kept = safe_path(run, run / FILE_NAME)
    options: dict[str, Any] = {"max_episode_steps": max_episode_steps, "environment": environment, "trust": trust}
    credit = credit_of(run, seed=seed, episode_seed=episode_seed, checkpoint=checkpoint, **options)
    save_credit(kept, credit)
    figures = Figures()
    title = f"{credit.algorithm} · {credit.environment}"
    view = credit_view(figures, credit, title, CREDIT_PICTURES)
    return write_page(path, render("credit.html", figures, title=f"upslope · credit · {title}", view=view))


def add_credit(runs: Sequence[Path], *, environment: Any = None, trust: bool = False) -> list[str]:
    """Play an episode of the first seed of each run without credit; return the reasons for any failures."""
    from upslope.analysis.episode_credit import credit_of

    reasons = []
    for path in (run / FILE_NAME for run in runs):
        try:
            if not path.exists():
                save_credit(safe_path(path.parent, path), credit_of(path.parent, environment=environment, trust=trust))
        except UpslopeError as error:
            reasons.append(f"{path.parent} has no credit view: {error}")
    return reasons


def compared(
    records: Sequence[Record], score: Score, normalize: Normalize | None, trust: bool = False, metric: str = "return"
) -> tuple[Comparison | None, Sequence[str]]:
    """Compare the runs that have a score; return the comparison and warnings. If the comparison fails, the reason
    becomes a warning."""
    scored = [r for r in records if len(r.episodes) or len(r.evaluations)]
    warnings = [
        f"{r.path} is not in the comparison: it has no finished training episode and was not evaluated. Run "
        f"{shell('upslope', 'evaluate', r.path)}"
        for r in records
        if r not in scored
    ]
    try:
        comparison = compare_records(scored, score=score, normalize=normalize, trust=trust, metric=metric)
    except UpslopeError as error:
        return None, [*warnings, f"The runs could not be compared. {error}"]
    return comparison, [*warnings, *comparison.warnings]


def credit_part(
    figures: Figures, records: Sequence[Record], names: Sequence[str], missing: list[str]
) -> dict[str, Any]:
    """The credit views stored with the runs, and the runs without one. A line is added to `missing` for each view that
    cannot be read."""
    there: dict[int, EpisodeCredit] = {}
    for k, record in enumerate(records):
        with suppress_into(missing):
            if (record.path / FILE_NAME).exists():
                there[k] = load_credit(record.path / FILE_NAME)
    limit = REPORT_PICTURES // max(len(there), 1)
    views = [credit_view(figures, credit, names[k], limit) for k, credit in there.items()]
    return {"views": views, "without": [r.path for k, r in enumerate(records) if k not in there]}


@contextmanager
def suppress_into(reasons: list[str]) -> Iterator[None]:
    """Record an `UpslopeError` as a reason and continue, so that one damaged file does not prevent the page from being
    written."""
    try:
        yield
    except UpslopeError as error:
        reasons.append(str(error))


def unique_names(records: Sequence[Record]) -> list[str]:
    """Each run's name, with as much of its path as is needed to distinguish it from the others."""
    parts = [r.path.resolve().parts for r in records]
    names = []
    for mine in parts:
        depth = 1
        while sum(other[-depth:] == mine[-depth:] for other in parts) > 1:
            depth += 1
        names.append("/".join(mine[-depth:]))
    return names
