"""Stop cleanly: the first signal requests a stop, the second ends the process; a hanging call is ended by the first."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

SAME_WISH = 0.5
"""Seconds within which a repeated signal counts as the same request: `timeout` signals the process and then its group,
which reaches the process again."""


class Interrupted(BaseException):
    """A signal arrived while an environment was hanging."""


@contextmanager
def stop_on_signal(hangs: Callable[[], bool]) -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one ends the process as usual.

    Raises:
        Interrupted: the first signal arrived while `hangs()` was true.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {s: signal.getsignal(s) for s in signals}
    asked: list[float] = []

    def handle(number: int, frame: Any) -> None:
        asked.append(monotonic())
        stop.set()
        if len(asked) == 1 and hangs():
            raise Interrupted
        if asked[-1] - asked[0] > SAME_WISH:
            for s in signals:
                signal.signal(s, before[s])
            signal.raise_signal(number)

    for s in signals:
        signal.signal(s, handle)
    try:
        yield stop
    finally:
        for s in signals:
            signal.signal(s, before[s])
