"""Stop cleanly: a first signal asks, a second one ends; where something hangs, the first one ends that."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(BaseException):
    """A signal came while something hung."""


@contextmanager
def stop_on_signal(hangs: Callable[[], bool]) -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one ends the process as usual.

    Raises:
        Interrupted: where whoever is asked to stop `hangs`.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {s: signal.getsignal(s) for s in signals}

    def handle(number: int, frame: Any) -> None:
        stop.set()
        for s in signals:
            signal.signal(s, before[s])
        if hangs():
            raise Interrupted

    for s in signals:
        signal.signal(s, handle)
    try:
        yield stop
    finally:
        for s in signals:
            signal.signal(s, before[s])
