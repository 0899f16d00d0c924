"""Adapt Chinese pages: remove spaces caused by line breaks, set the language, and translate the theme's interface."""

from __future__ import annotations

import re
from functools import partial

from pages import outside_fences

SIGN = r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef“”]"
LINE_END = re.compile(rf"(?<={SIGN})\n *(?={SIGN})")
WORDS = {
    "Table of contents": "目录",
    "Previous": "上一页",
    "Next": "下一页",
    "Back to top": "回到顶部",
    "Search": "搜索",
}
"""Translations for the theme's interface, since the theme is built in only one language."""


def joined(markdown: str) -> str:
    """Join lines of a paragraph where both sides of the break are Chinese. A browser would show a space there."""
    return outside_fences(markdown, partial(LINE_END.sub, ""))


def interface(html: str) -> str:
    """Set the language of the page (for hyphenation, fonts and screen readers) and translate the theme's interface."""
    html = html.replace('<html lang="en"', '<html lang="zh-CN"', 1)
    for english, chinese in WORDS.items():
        html = re.sub(rf'(>\s*|(?:aria-label|placeholder|title)="){english}(?=\s*<|"|:)', rf"\g<1>{chinese}", html)
    return html
