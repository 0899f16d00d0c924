"""What pages repeat of the source is put in when the site is built, and so is never out of date.

    <!-- source: upslope.core.estimators.GAE.__call__ -->   the code of that name
    <!-- lab: variance -->                             the lab's verdicts and figures
    <!-- metrics: analysis.metrics.METRICS -->         what each metric means
    <!-- help -->                                      --help of every command
    <!-- api -->                                       the public names

A name that does not exist ends the build.
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
    """Put in what a page asks for."""

    def fill(found: re.Match[str]) -> str:
        try:
            return FILL[found["name"]](found["argument"] or "", language_of(page.file.src_uri))
        except LookupError as error:
            raise PluginError(f"{page.file.src_uri}: {found[0]}: {error}") from error

    language = language_of(page.file.src_uri)
    return DIRECTIVE.sub(fill, chinese.joined(markdown) if language == "zh" else markdown)


def language_of(uri: str) -> str:
    """English, but Chinese in the folder zh."""
    return "zh" if uri.startswith("zh/") else "en"


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Plotly only where there is a figure to draw."""
    if 'class="lab"' not in html:
        return html
    scripts = (get_relative_url(script, page.url) for script in (lab_figures.SCRIPT, "assets/figures.js"))
    return "".join(f'<script src="{script}"></script>' for script in scripts) + html


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """A page's interface in the page's language."""
    return chinese.interface(output) if language_of(page.file.src_uri) == "zh" else output


def on_post_build(config: Any, **_: Any) -> None:
    """Plotly beside the pages, for the lab's figures."""
    lab_figures.write_script(Path(config.site_dir))
