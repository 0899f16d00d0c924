"""A console that prints text literally: no markup, and no control characters except rich's own."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from upslope.core.messages import readable


class PlainTextConsole(Console):
    """A rich console that prints text literally, even markup such as `[b]` and escape sequences from files."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(readable_lines(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            is_safe = segment.control or segment.text.isprintable() or segment.text == "\n"
            yield segment if is_safe else Segment(readable_lines(segment.text), segment.style)


def readable_lines(text: str) -> str:
    """Apply `readable` to each line, keeping the line breaks."""
    return "\n".join(map(readable, text.split("\n")))
