"""What is told once, whichever of many environments it is found in."""

from collections.abc import Callable

from upslope.core.messages import warn


class Notices:
    """Tells the first words of each kind."""

    def __init__(self, tell: Callable[[str, str], None]):
        self.tell = tell
        self.known: set[str] = set()

    def __call__(self, kind: str, words: str) -> None:
        """Tell the words, unless others of their kind were told before."""
        if kind not in self.known:
            self.known.add(kind)
            self.tell(kind, words)


def notices_to(say: Callable[[str], None] = warn) -> Notices:
    """Notices that a display shows; by default they go to the standard error."""
    return Notices(lambda kind, words: say(words))
