"""Insert content from the source code into pages when the site is built, so that pages are never out of date.

    <!-- source: upslope.core.estimators.GAE.__call__ -->   the source code of that name
    <!-- lab: variance -->                             the verdicts and figures of a lab experiment
    <!-- metrics: analysis.metrics.METRICS -->         a description of each metric
    <!-- help -->                                      the --help output of every command
    <!-- api -->                                       the public names

The build fails if a name does not exist.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import api_reference
import chinese
import code_of
import command_help
import lab_figures
import metric_tables
from mkdocs.exceptions import PluginError
from mkdocs.utils import get_relative_url

DIRECTIVE = re.compile(r"^<!-- (?P<name>source|lab|metrics|help|api)(?:: (?P<argument>\S+))? -->$", re.MULTILINE)
FILL: dict[str, Callable[[str, str], str]] = {
    "source": code_of.block,
    "lab": lab_figures.section,
    "metrics": metric_tables.tables,
    "help": command_help.all_commands,
    "api": api_reference.all_names,
}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace each directive in a page with its content."""

    def fill(found: re.Match[str]) -> str:
        try:
            return FILL[found["name"]](found["argument"] or "", language_of(page.file.src_uri))
        except LookupError as error:
            raise PluginError(f"{page.file.src_uri}: {found[0]}: {error}") from error

    language = language_of(page.file.src_uri)
    return DIRECTIVE.sub(fill, chinese.joined(markdown) if language == "zh" else markdown)


def language_of(uri: str) -> str:
    """Return the language of a page: Chinese for pages in the folder zh, and English for all others."""
    return "zh" if uri.startswith("zh/") else "en"


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Load Plotly on pages that show figures from the lab."""
    if 'class="lab"' not in html:
        return html
    scripts = (get_relative_url(script, page.url) for script in (lab_figures.SCRIPT, "assets/figures.js"))
    return "".join(f'<script src="{script}"></script>' for script in scripts) + html


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Translate the interface of Chinese pages."""
    return chinese.interface(output) if language_of(page.file.src_uri) == "zh" else output


def on_post_build(config: Any, **_: Any) -> None:
    """Copy Plotly's script into the site, for the lab's figures."""
    lab_figures.write_script(Path(config.site_dir))
