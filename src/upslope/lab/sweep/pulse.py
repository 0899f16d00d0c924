"""Signs of life: record which process is training a trial, and find out whether that process is still alive."""

import math
import os
import platform
import threading
import time
from collections.abc import Mapping
from typing import Any

from upslope.lab.sweep.samplers import require_optuna

PULSE_SECONDS, LOST_SECONDS = 60.0, 600.0
"""Seconds between two signs of life of a trial, and seconds without one after which its process on another machine is
considered dead."""


def this_process() -> str:
    """The machine and the id of this process."""
    return f"{platform.node()}:{os.getpid()}"


class Pulse:
    """Periodically records in the storage that the trials of this process are still in progress."""

    def __init__(self, storage: Any):
        self.storage, self.trials, self.lock = storage, set(), threading.Lock()
        self.thread: threading.Thread | None = None

    def add(self, trial: int) -> None:
        """Start recording signs of life for this trial."""
        self.write(trial)
        with self.lock:
            self.trials.add(trial)
            if self.thread is None:
                self.thread = threading.Thread(target=self.beat, daemon=True)
                self.thread.start()

    def beat(self) -> None:
        """Keep recording signs of life until the process ends."""
        while True:
            time.sleep(PULSE_SECONDS)
            with self.lock:
                trials = set(self.trials)
            for trial in trials:
                if not self.write(trial):
                    self.trials.discard(trial)

    def write(self, trial: int) -> bool:
        """Record a sign of life now if the storage can be reached; return False if the trial has ended."""
        try:
            self.storage.set_trial_user_attr(trial, "alive", time.time())
        except (require_optuna().exceptions.UpdateFinishedTrialError, KeyError):
            return False
        except Exception:  # each database driver has its own errors, and a server may be back next time
            pass
        return True


def was_put_back(trial: Any) -> bool:
    """Whether a trial was returned to the study. A trial that ended differently in the meantime was not."""
    return bool(trial.user_attrs.get("put_back")) and trial.state.name == "FAIL"


def is_gone(attributes: Mapping[str, Any], first_seen: float = math.inf) -> bool:
    """Whether the process that was training a trial has ended. The answer depends on its signs of life and, if it ran
    on this machine, also on its process id, which may have been reused. If a trial has never given a sign of life, its
    process is considered dead some time after the trial was first seen."""
    if time.time() - float(attributes.get("alive", first_seen)) > LOST_SECONDS:
        return True
    machine, _, number = str(attributes.get("process", "")).rpartition(":")
    if machine != platform.node() or os.name != "posix" or not number.isdigit() or int(number) == os.getpid():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False
