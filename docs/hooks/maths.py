"""Convert formulas (`$…$` and ```math blocks) to MathML, which browsers render natively."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor

INLINE = r"(?<![\\$])\$(?P<formula>[^$\n]+)\$(?!\$)"
ABOVE_ESCAPES = 185
"""Priority of inline formulas: below that of code (190), so that `$HOME` in code is left alone, and above that of
backslash escapes (180), since LaTeX needs its backslashes."""


def mathml(formula: str, display: str) -> str:
    """Convert LaTeX to MathML. The build fails if a formula cannot be parsed."""
    # The converter does not support `aligned`, but it does support `align*`, which has the same layout.
    known = formula.strip().replace("{aligned}", "{align*}")
    drawn = convert(known, display=display)
    # A superscript prime inside an index is too small to read, and the plain character is already raised.
    drawn = re.sub(r"<msup>(<mi>[^<]*</mi>)<mi>&#x02032;</mi></msup>", r"<mrow>\1<mtext>′</mtext></mrow>", drawn)
    drawn = re.sub(r"<mi>log</mi>(?!<mo stretchy)", '<mi>log</mi><mspace width="0.17em"/>', drawn)
    ElementTree.fromstring(drawn)
    if "\\" in drawn:
        raise ValueError(f"latex2mathml does not support a command in this formula: {formula}")
    return drawn


def block(source: str, *_: Any, **__: Any) -> str:
    """Format a fenced block with a formula. Superfences calls this function."""
    return f'<div class="formula">{mathml(source, "block")}</div>'


class Inline(InlineProcessor):
    """A processor for `$…$` in running text and in tables."""

    def handleMatch(self, m: Any, data: str) -> tuple[str, int, int]:  # noqa: N802 - Markdown's name
        return self.md.htmlStash.store(mathml(m["formula"], "inline")), m.start(0), m.end(0)


class Formulas(Extension):
    """A Markdown extension for inline formulas."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - Markdown's name
        md.inlinePatterns.register(Inline(INLINE, md), "formula", ABOVE_ESCAPES)


def on_config(config: Any) -> Any:
    """Register inline formulas and fenced blocks with MkDocs."""
    config.markdown_extensions.append(Formulas())
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {}).setdefault("custom_fences", [])
    fences.append({"name": "math", "class": "formula", "format": block})
    return config
