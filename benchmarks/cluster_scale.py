"""What limits a run on 10, 100 and 1,000 nodes? A simulation with measured times and sizes.

    python benchmarks/cluster_scale.py    # compare the simulation with measurements, and write docs/scale.md's tables

The main process is modelled as a single server. It sends a request to one worker after another and receives their
answers one at a time, as they arrive. A worker starts when its request arrives and computes for a time that varies
between workers. If the main process waits for all workers (seeds, slices), the next round begins once the last answer
has been received. In a sweep, each worker gets its next trial as soon as the result of its previous one has been
received.

Four quantities were measured by benchmarks/cluster.py and are read from benchmarks/results/cluster.json: the cost of a
call for the main process, by message size and number of workers; the main process's own share of an iteration; the
sizes of messages; and the time that a trial takes in the main process. Other quantities are assumed, such as the
duration of the work itself and the speed of the main process's network link.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cluster import DOCS, SECONDS, WORKERS, stored
from pages import fill

NODES, CORES = (10, 100, 1000), 16
"""The numbers of nodes, and the number of CPUs per node. A worker takes one CPU."""
LINK = 1.25e9
"""The bytes per second that the main process's machine can receive (10 Gbit/s)."""
DELAY = 0.2e-3
"""The one-way latency of a message within a data centre, in seconds."""
SPREAD = 0.05
"""How much the workers' times vary, as the standard deviation of their logarithm."""
ROUNDS = 5


@dataclass(frozen=True)
class Costs:
    """What each worker costs the main process per round, in seconds."""

    send: float
    take: float
    rate: float = LINK
    """The rate at which answers arrive, in bytes per second."""
    delay: float = DELAY


def rounds(workers: int, work: Sequence[float], size: float, costs: Costs, own: float = 0.0) -> float:
    """Return the mean duration of a round in which the main process sends a request to every worker and waits for all
    answers. `work` [R·W] holds the seconds that each worker computes in each round; `own` is the number of seconds that
    the main process takes between rounds."""
    now, times = 0.0, np.asarray(work).reshape(-1, workers)
    for row in times:
        arrivals = now + costs.send * np.arange(1, workers + 1) + costs.delay + row + costs.delay
        link = now
        free = now + costs.send * workers
        for arrival in np.sort(arrivals):
            link = max(link, arrival) + size / costs.rate
            free = max(free, link) + costs.take
        now = free + own
    return now / len(times)


def trials(workers: int, work: Sequence[float], size: float, costs: Costs) -> tuple[float, float]:
    """Return the share of time for which the workers are busy in a sweep of these trials, and the main process's
    share."""
    waiting = [0.0] * workers
    heapq.heapify(waiting)
    free = busy = 0.0
    ends: list[float] = []
    for seconds in work:
        arrival = heapq.heappop(waiting)
        free = max(free, arrival) + costs.send + costs.take + size / costs.rate
        busy += costs.send + costs.take + size / costs.rate
        ends.append(free + 2 * costs.delay + seconds)
        heapq.heappush(waiting, ends[-1])
    return float(np.sum(work)) / (workers * max(ends)), busy / max(ends)


def call_costs(found: dict[str, Any], size: int) -> tuple[float, float]:
    """Fit a line to the measured calls to 1 to 16 actors; return its intercept in seconds and its slope in seconds per
    actor."""
    calls = found["lockstep"]["calls"]
    seconds = [calls[f"{count} × {size}"] / 1000 for count in WORKERS]
    slope, start = np.polyfit(WORKERS, seconds, 1)
    return float(start), float(slope)


def check(found: dict[str, Any]) -> list[str]:
    """Compare the simulated and the measured duration of a step of 16 environments (20 ms each) in 1 to 16 actors."""
    start, slope = call_costs(found, 100)
    rows = ["| actors | a step, simulated | measured | difference |", "|---:|---:|---:|---:|"]
    acting = found["lockstep"]["1 workers"] - 16 * SECONDS
    for count in WORKERS:
        work = np.full(ROUNDS * count, SECONDS * 16 / count)
        costs = Costs(send=slope / 2, take=slope / 2, delay=max(start, 0.0) / 2)
        simulated = rounds(count, work, 100, costs, own=max(acting, 0.0))
        measured = found["lockstep"][f"{count} workers"]
        off = f"{100 * (simulated / measured - 1):+.0f} %"
        rows.append(f"| {count} | {1000 * simulated:.1f} ms | {1000 * measured:.1f} ms | {off} |")
    return rows


def varied(mean: float, count: int, seed: int = 0) -> np.ndarray:
    """Draw times with this mean that vary as workers' times do."""
    return mean * np.exp(np.random.default_rng(seed).normal(0.0, SPREAD, count))


def seeds_rows(found: dict[str, Any]) -> list[str]:
    """Return table rows for runs with one seed per worker, by the duration of an iteration."""
    one = found["overhead"]["CartPole-v1"]["median"]
    each = one["actors main process"] / 2
    costs = Costs(send=each / 2, take=each / 2)
    rows = [
        "| nodes | workers | iteration of 0.05 s | of 0.5 s | of 5 s | of 60 s |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for nodes in NODES:
        workers = nodes * CORES
        shares = []
        for seconds in (0.05, 0.5, 5.0, 60.0):
            work = varied(seconds, ROUNDS * workers)
            shares.append(seconds / rounds(workers, work, one["actors bytes answered"], costs))
        rows.append(f"| {nodes:,} | {workers:,} | " + " | ".join(f"{100 * share:.0f} %" for share in shares) + " |")
    return rows


def sweep_rows(found: dict[str, Any]) -> list[str]:
    """Return table rows for a sweep with four trials per worker, by the duration of a trial."""
    each = found["sweep"]["main process seconds a trial"]
    costs = Costs(send=each / 2, take=each / 2)
    rows = ["| nodes | workers | trials of 10 s | of 60 s | of 600 s | of 3,600 s |", "|---:|---:|---:|---:|---:|---:|"]
    for nodes in NODES:
        workers = nodes * CORES
        shares = []
        for seconds in (10.0, 60.0, 600.0, 3600.0):
            shares.append(trials(workers, varied(seconds, 4 * workers), 1e6, costs)[0])
        rows.append(f"| {nodes:,} | {workers:,} | " + " | ".join(f"{100 * share:.0f} %" for share in shares) + " |")
    return rows


def slices_rows(found: dict[str, Any]) -> list[str]:
    """Return table rows for the speedup of one environment per worker over one worker with all of them, by the duration
    of a step."""
    start, slope = call_costs(found, 100)
    costs = Costs(send=slope / 2, take=slope / 2, delay=max(start / 2, DELAY))
    rows = ["| workers | step of 2 ms | of 20 ms | of 200 ms | of 2 s |", "|---:|---:|---:|---:|---:|"]
    for workers in (4, 16, 64, 160, 1600):
        gains = []
        for seconds in (2e-3, 20e-3, 0.2, 2.0):
            gains.append(workers * seconds / rounds(workers, varied(seconds, ROUNDS * workers), 100, costs))
        rows.append(f"| {workers:,} | " + " | ".join(f"{gain:.1f} ×" for gain in gains) + " |")
    return rows


def main() -> None:
    """Write the tables of the page."""
    found, page = stored(), DOCS / "scale.md"
    tables = {
        "check": check,
        "seeds": seeds_rows,
        "sweep": sweep_rows,
        "slices": slices_rows,
        "measured": measured_rows,
    }
    for name, rows in tables.items():
        text = "\n".join(rows(found))
        print(text, "\n")
        fill(page, name, text)


def measured_rows(found: dict[str, Any]) -> list[str]:
    """Return table rows for the measured values."""
    rows = ["| measured | value |", "|---|---:|"]
    start, slope = call_costs(found, 100)
    large = call_costs(found, 300_000)[1]
    first = f"{1e3 * (start + slope):.2f} ms, {1e3 * slope:.2f} ms"
    rows.append(f"| a call to an actor with 100 bytes: the first, each additional one | {first} |")
    rows.append(f"| a call with 300 kB in each direction: each additional one | {1e3 * large:.2f} ms |")
    for name, one in found["overhead"].items():
        middle = one["median"]
        rows.append(
            f"| an iteration of {name}: size of an answer; CPU time of the main process per worker | "
            f"{middle['actors bytes answered'] / 1e3:,.0f} kB; {500 * middle['actors main process']:.1f} ms |"
        )
    each = found["sweep"]["main process seconds a trial"]
    rows.append(f"| a trial of a sweep in a SQLite file: CPU time of the main process | {1e3 * each:.0f} ms |")
    return rows


if __name__ == "__main__":
    main()
