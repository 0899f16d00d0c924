"""Stop cleanly on signals. The first signal requests a stop or interrupts a hanging call, and the second ends the
process."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

from upslope.errors import Interruption

SAME_REQUEST = 0.5
"""Seconds within which a repeated signal counts as the same request. `timeout` signals the process and then its process
group, so the process receives two signals."""


class Interrupted(Interruption):
    """Raised when a signal arrives while an environment is hanging."""


@contextmanager
def stop_on_signal(hangs: Callable[[], bool], notify: Callable[[], None] = lambda: None) -> Iterator[threading.Event]:
    """Yield an event that is set by the first SIGINT or SIGTERM. After each signal, `notify` is called. A second signal
    ends the process as usual.

    Raises:
        Interrupted: the first signal arrived while `hangs()` was true.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {s: signal.getsignal(s) for s in signals}
    times: list[float] = []

    def handle(number: int, frame: Any) -> None:
        times.append(monotonic())
        stop.set()
        notify()
        if len(times) == 1 and hangs():
            raise Interrupted
        if times[-1] - times[0] > SAME_REQUEST:
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


def unless_closed(say: Callable[[str], None]) -> Callable[[str], None]:
    """Wrap `say` so that it does nothing once the reader of the output has exited.

    The next update of the display notices this and stops the run at a point where it can be saved."""

    def said(text: str) -> None:
        with suppress(BrokenPipeError):
            say(text)

    return said
