"""HTML fragments for notebooks. Text from files or users is always escaped."""

from collections.abc import Iterable, Sequence
from html import escape

from upslope.core.messages import readable


def text(words: object) -> str:
    """Escape text for HTML, and make control characters visible."""
    return escape(readable(str(words)))


def paragraph(words: object, tag: str = "p") -> str:
    """Create a paragraph, or another element that contains text."""
    return f"<{tag}>{text(words)}</{tag}>"


def items(lines: Iterable[object]) -> str:
    """Create a list, or an empty string if there are no lines."""
    inside = "".join(paragraph(line, "li") for line in lines)
    return inside and f"<ul>{inside}</ul>"


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Create a table with a title above it."""
    head = "".join(paragraph(column, "th") for column in columns)
    body = "".join("<tr>" + "".join(paragraph(cell, "td") for cell in row) + "</tr>" for row in rows)
    above = caption and f"<caption style='caption-side: top; text-align: left'>{text(caption)}</caption>"
    return f"<table>{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
