"""Notices that are shown once, even if many environments raise them."""

from collections.abc import Callable

from upslope.core.messages import warn


class Notices:
    """Shows only the first notice of each kind."""

    def __init__(self, show: Callable[[str, str], None]):
        self.show = show
        self.known: set[str] = set()

    def __call__(self, kind: str, words: str) -> None:
        """Show the notice unless one of this kind was shown before."""
        if kind not in self.known:
            self.known.add(kind)
            self.show(kind, words)


def notices_to(say: Callable[[str], None] = warn) -> Notices:
    """Return notices that are shown by `say`, by default on standard error."""
    return Notices(lambda kind, words: say(words))
