"""Custom trackers that tests select by name: one records its calls in a file, and several fail."""

import json
import os
import time
from pathlib import Path


class Noting:
    """Records each call as a line of JSON in the file named by the environment variable NOTES."""

    def note(self, what, value):
        with Path(os.environ["NOTES"]).open("a") as file:
            file.write(json.dumps([what, value]) + "\n")

    def begin(self, run, known):
        self.note("begin", {"known": known, "seeds": run.seeds, "parameters": run.parameters, "project": run.project})
        return {"id": known.get("id", "first"), "where": "noted"}

    def log(self, rows):
        self.note("log", [[row.seed, row.step, row.values] for row in rows])

    def summarise(self, summary, step):
        self.note("summarise", [step, summary])

    def end(self, is_finished):
        self.note("end", is_finished)


class FailingAtOnce(Noting):
    def begin(self, run, known):
        raise ConnectionError("no server\x1b[2J here")


class FailingLater(Noting):
    """Accepts the first call to `log` and fails on the second."""

    calls = 0

    def log(self, rows):
        self.calls += 1
        if self.calls > 1:
            raise ConnectionError("the server is gone")
        super().log(rows)


class Dying(Noting):
    def log(self, rows):
        os._exit(7)


class Hanging(Noting):
    """Hangs in its first call."""

    def begin(self, run, known):
        time.sleep(10**6)
        return {}


class HangingAtTheEnd(Noting):
    """Accepts all rows but hangs in `end`."""

    def end(self, is_finished):
        super().end(is_finished)
        time.sleep(10**6)


class Incomplete:
    def begin(self, run, known):
        return {}
