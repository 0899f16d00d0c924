"""One self-contained page: it opens without a network or a server, and is sent as one file."""

import base64
import gzip
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Any, Literal

from upslope.analysis.compare import compare_records
from upslope.analysis.comparison import Comparison
from upslope.analysis.credit import FILE_NAME, EpisodeCredit, load_credit, save_credit
from upslope.analysis.normalization import Normalize
from upslope.analysis.records import Record, read_records
from upslope.analysis.scores import Score
from upslope.core.files import own_path
from upslope.core.messages import spelled_out
from upslope.core.storage import write_atomically
from upslope.errors import UpslopeError
from upslope.report.credit import credit_view
from upslope.report.curves import diagnostics_section, learning_section
from upslope.report.evaluations import evaluation_section
from upslope.report.figures import DASHES, NUM_COLOURS, Figures
from upslope.report.health import health_section
from upslope.report.output import MARK, page_path
from upslope.report.tables import comparison_section, settings_section
from upslope.runs.directory import RunDirectory, versions

UNREADABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters from files that no page may hold: controls, those that turn the direction of writing, halves of pairs."""
REPORT_PICTURES, CREDIT_PICTURES = 1_200_000, 2_500_000
"""Bytes of pictures in a page, all runs together."""


def write_report(
    runs: str | Path | Sequence[str | Path],
    output: str | Path = "report.html",
    *,
    credit: bool = False,
    score: Score = "auto",
    normalize: Normalize | None = None,
    environment: Any = None,
    trust: bool = False,
) -> Path:
    """Write a page about these runs: curves, comparison, evaluations, health, settings, diagnostics, credit.

    It reads run directories and nothing else, so it is quick and executes nothing of theirs. Evaluation episodes and
    credit are shown where `upslope evaluate` and `upslope credit` have left some. With `credit`, an episode is played
    first for each run that keeps none, which takes seconds a run. `score` and `normalize` are those of
    `upslope.compare`; "threshold" makes each environment, to see what a random policy gets. For these two `trust`
    allows the code that a run's config.json names, as in `upslope.evaluate`. For `credit`, pass the runs'
    `environment` where it cannot be found again by its name.

    Raises:
        UpslopeError: there is no such folder, no run at all, or an output that cannot be written.
    """
    path = page_path(output, "report.html")
    script = plotly_script()
    records, left_out = read_records(runs, with_evaluations=True)
    names = unique_names(records)
    missing = add_credit([record.path for record in records], environment=environment, trust=trust) if credit else []
    comparison, warnings = compared(records, score, normalize, trust)
    warnings = [*left_out, *warnings]
    figures = Figures()
    sections = {
        "Learning": learning_section(figures, records, names),
        "Comparison": comparison_section(figures, comparison) if comparison else "<p>See the warning above.</p>",
        "Evaluation": evaluation_section(figures, records, names),
        "Health": health_section(records, names),
        "Settings": settings_section(records, names),
        "Diagnostics": diagnostics_section(figures, records, names),
        "Credit": credit_section(figures, records, names, missing),
    }
    title = ", ".join(dict.fromkeys(r.config.environment for r in records))
    html = page_of(f"upslope · {title}", sections, figures, script, names=names, warnings=[*warnings, *missing])
    return write_page(path, html)


def write_credit(
    run: str | Path,
    *,
    output: str | Path | None = None,
    seed: int | None = None,
    episode_seed: int = 0,
    checkpoint: Literal["last", "best"] = "last",
    max_episode_steps: int | None = None,
    environment: Any = None,
    trust: bool = False,
) -> Path:
    """Play an episode of a run's agent, and write a page of who is blamed in it; by default RUN/credit.html.

    The numbers are kept in RUN/credit.npz, from which a report shows them too. `max_episode_steps`,
    `environment` and `trust` are those of `upslope.evaluate`.

    Raises:
        UpslopeError: no such run, seed or checkpoint, an output that cannot be written, or an environment that is not
            trusted.
    """
    from upslope.analysis.episode_credit import credit_of  # it brings JAX's programs, which a report does without

    RunDirectory(run).read()
    path = page_path(run if output is None else output, "credit.html")
    script = plotly_script()
    kept = own_path(Path(run), Path(run) / FILE_NAME)
    options: dict[str, Any] = {"max_episode_steps": max_episode_steps, "environment": environment, "trust": trust}
    credit = credit_of(run, seed=seed, episode_seed=episode_seed, checkpoint=checkpoint, **options)
    save_credit(kept, credit)
    figures = Figures()
    title = f"{credit.algorithm} · {credit.environment}"
    sections = {"Credit": explanation() + credit_view(figures, credit, title, CREDIT_PICTURES)}
    return write_page(path, page_of(f"upslope · credit · {title}", sections, figures, script))


def add_credit(runs: Sequence[Path], *, environment: Any = None, trust: bool = False) -> list[str]:
    """Play an episode of each run that keeps no credit yet, of its first seed; why it could not be done, where so."""
    from upslope.analysis.episode_credit import credit_of

    reasons = []
    for path in (run / FILE_NAME for run in runs):
        try:
            if not path.exists():
                save_credit(own_path(path.parent, path), credit_of(path.parent, environment=environment, trust=trust))
        except UpslopeError as error:
            reasons.append(f"{path.parent} has no credit view: {error}")
    return reasons


def compared(
    records: Sequence[Record], score: Score, normalize: Normalize | None, trust: bool = False
) -> tuple[Comparison | None, Sequence[str]]:
    """The comparison of the runs that have a score, and its warnings; where there is none, the reason is a warning."""
    scored = [r for r in records if len(r.episodes) or len(r.evaluations)]
    warnings = [
        f"{r.path} is not in the comparison: it has no finished training episode and was not evaluated. Run "
        f"upslope evaluate {r.path}"
        for r in records
        if r not in scored
    ]
    try:
        comparison = compare_records(scored, score=score, normalize=normalize, trust=trust)
    except UpslopeError as error:
        return None, [*warnings, f"The runs could not be compared. {error}"]
    return comparison, [*warnings, *comparison.warnings]


def credit_section(figures: Figures, records: Sequence[Record], names: Sequence[str], missing: list[str]) -> str:
    """The credit views that are kept with the runs, and how to add those that are not; `missing` gets a line for each
    that cannot be read."""
    there: dict[int, EpisodeCredit] = {}
    for k, record in enumerate(records):
        with suppress_into(missing):
            if (record.path / FILE_NAME).exists():
                there[k] = load_credit(record.path / FILE_NAME)
    parts = []
    if there:
        parts.append(explanation())
        limit = REPORT_PICTURES // len(there)
        parts += [credit_view(figures, credit, names[k], limit) for k, credit in there.items()]
    without = "\n".join(f"upslope credit {r.path}" for k, r in enumerate(records) if k not in there)
    if without:
        which = "another" if there else "a"
        parts.append(
            f"<p>Who is blamed in an episode of {which} run? That takes playing one: a report only reads, unless it is "
            f"made with <code>--credit</code>. Afterwards it is shown here too.</p><pre>{escape(without)}</pre>"
        )
    return "\n".join(parts)


@contextmanager
def suppress_into(reasons: list[str]) -> Iterator[None]:
    """Keep what is refused as a reason, and go on: one damaged file must not cost the page."""
    try:
        yield
    except UpslopeError as error:
        reasons.append(str(error))


def explanation() -> str:
    """How a credit view is read."""
    more, less = (f'<span style="color:var(--{which})">■</span>' for which in ("up", "down"))
    return (
        "<p>Each row of the strip is an estimator, each column an action of the episode. The colour is the weight Ψ "
        f"that the gradient of log π(a|s) gets, over the largest of its row: {more} made more probable, {less} made "
        "less probable. The learner's batch is centred and scaled besides, where its settings say so. <i>Actions "
        "sharing it</i>: (Σ|Ψ|)²/ΣΨ², 1 where one action takes all credit and T where all take the same. Move the "
        "slider, or click a column.</p>"
    )


def unique_names(records: Sequence[Record]) -> list[str]:
    """Each run's own name; with as much of its path as tells it from the others."""
    parts = [r.path.resolve().parts for r in records]
    names = []
    for mine in parts:
        depth = 1
        while sum(other[-depth:] == mine[-depth:] for other in parts) > 1:
            depth += 1
        names.append("/".join(mine[-depth:]))
    return names


def plotly_script() -> str:
    """Plotly's own script, from its Python package."""
    if find_spec("plotly") is None:
        raise UpslopeError('A page needs Plotly, which is not installed: pip install "upslope[report]"')
    return (files("plotly") / "package_data" / "plotly.min.js").read_text("utf-8")


def page_of(
    title: str,
    sections: dict[str, str],
    figures: Figures,
    script: str,
    *,
    names: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> str:
    """The page as HTML: the text is plain, the script and the numbers are compressed."""
    assets = files("upslope.report") / "assets"
    body = "".join(f'<section id="{n.lower()}"><h2>{n}</h2>{html}</section>' for n, html in sections.items())
    links = "".join(f'<a href="#{n.lower()}">{n}</a>' for n in sections) if len(sections) > 1 else ""
    page = Template((assets / "page.html").read_text("utf-8")).substitute(
        mark=MARK,
        title=escape(title),
        links=links,
        legend="".join(chip(k, name) for k, name in enumerate(names)) if len(names) > 1 else "",
        warnings="".join(f"<li>{escape(text)}</li>" for text in warnings),
        sections=body,
        written=f"upslope {versions()['upslope']}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        style=(assets / "page.css").read_text("utf-8"),
        code=(assets / "page.js").read_text("utf-8"),
        plotly=packed(script),
        data=packed(json.dumps(figures.found, allow_nan=False, separators=(",", ":"))),
    )
    return UNREADABLE.sub(lambda found: spelled_out(found[0]), page)


def chip(run: int, name: str) -> str:
    """A run in the legend; pressed, its curves disappear."""
    line = DASHES[run // NUM_COLOURS % len(DASHES)].replace("dashdot", "dash")
    style = {"solid": "solid", "dash": "dashed", "dot": "dotted"}[line]
    mark = f'<i style="border-top:3px {style} var(--run-{run % NUM_COLOURS})"></i>'
    return f'<button class="chip" data-run="{run}" aria-pressed="true">{mark}{escape(name)}</button>'


def packed(text: str) -> str:
    """gzip in base64: a third of the size, and free of anything that HTML could read."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def write_page(path: Path, html: str) -> Path:
    """Write it whole or not at all."""
    write_atomically(path, html.encode())
    return path
