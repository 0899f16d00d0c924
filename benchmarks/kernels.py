"""How many kernels does an iteration launch, and how long does the device wait for the host? Measured without a GPU.

    PYTHONPATH=OLDER/src python benchmarks/kernels.py before   # with the source of an older commit
    python benchmarks/kernels.py after
    python benchmarks/kernels.py table                         # write docs/performance.md's table from both

Kernels: the program for an accelerator, in which all seeds are vmapped, is compiled for the CPU, and the operations in
the result are counted. An operation inside a loop counts once per iteration. XLA fuses operations differently for a
GPU, so the number of kernels on a GPU will differ.

Waiting: `upslope.train` runs on the CPU with one iteration per chunk. Every dispatch is made to block its thread until
the program has finished, much as launching thousands of kernels would. A device would be idle between the end of one
dispatch and the beginning of the next.
"""

import json
import os
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

import jax
from pages import fill

import upslope
from upslope.config.config import configure
from upslope.config.task import task_of
from upslope.engines import compiled
from upslope.engines.compiled import CompiledEngine, Program
from upslope.environments.registry import make
from upslope.learning import iteration

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "kernels.json"
PAGE = HERE.parent / "docs" / "performance.md"
SEEDS = 8
SETTINGS: dict[str, Any] = {"num_envs": 64, "rollout_steps": 128, "epochs": 4, "minibatches": 4}
ITERATIONS = 100
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "partition-id"}
"""Operations that launch no kernel."""
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (?P<rest>.*)$")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def operations(program: str) -> tuple[dict[str, list[str]], str]:
    """Return the instructions of each computation without their names, and the name of the entry computation."""
    found: dict[str, list[str]] = {}
    entry = name = ""
    for line in program.splitlines():
        if begins := COMPUTATION.match(line):
            name = begins["name"]
            found[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif instruction := INSTRUCTION.match(line):
            found[name].append(instruction["rest"])
    return found, entry


def operation_of(instruction: str) -> str:
    """Extract the operation from an instruction of the form `type operation(operands), attributes`."""
    depth = 0
    for place, letter in enumerate(instruction):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == " " and depth == 0:
            return instruction[place + 1 :].partition("(")[0]
    return ""


def named(instruction: str, role: str) -> Iterator[str]:
    """Return the computations that an instruction calls in this role."""
    if several := re.search(rf"{role}=\{{([^}}]*)\}}", instruction):
        yield from (one.strip().lstrip("%") for one in several[1].split(","))
    elif one := re.search(rf"{role}=%?([\w.\-]+)", instruction):
        yield one[1]


def count(computations: dict[str, list[str]], name: str) -> tuple[int, int]:
    """Count the operations launched by a computation and everything it calls, and the iterations of their loops."""
    launched = rounds = 0
    for instruction in computations[name]:
        operation = operation_of(instruction)
        if operation in FREE:
            continue
        if operation == "while":
            trips = int(found[1]) if (found := TRIPS.search(instruction)) else 1
            (body,) = named(instruction, "body")
            inner, turns = count(computations, body)
            launched, rounds = launched + trips * inner, rounds + trips * (1 + turns)
        elif operation in ("call", "conditional"):
            roles = (
                ("to_apply",)
                if operation == "call"
                else ("branch_computations", "true_computation", "false_computation")
            )
            each = [count(computations, callee) for role in roles for callee in named(instruction, role)]
            launched, rounds = launched + max(x for x, _ in each), rounds + max(x for _, x in each)
        else:
            launched += 1
    return launched, rounds


def kernels() -> dict[str, int]:
    """Count the operations that an iteration of eight vmapped seeds launches."""
    config = configure("jax:CartPole-v1", is_continuous=False, use_preset=False, seeds=SEEDS, **SETTINGS)
    task = task_of(config, make("jax:CartPole-v1"))
    with patch.object(compiled, "is_vmapped", lambda _: True), patch.object(iteration, "is_vmapped", lambda _: True):
        engine = CompiledEngine(task, config.seed_list(), 1)
        (program,) = engine.programs
        program.compile(None, engine.start())
    computations, entry = operations(program.compiled.as_text())
    launched, rounds = count(computations, entry)
    return {"operations": launched, "rounds of loops": rounds}


def waiting() -> dict[str, float]:
    """Measure how long a dispatch takes, and the time between two dispatches, in milliseconds."""
    dispatched: list[tuple[float, float]] = []
    dispatch = Program.__call__

    def slow(program: Program, state: Any) -> Any:
        started = perf_counter()
        answer = jax.block_until_ready(dispatch(program, state))
        dispatched.append((started, perf_counter()))
        return answer

    steps = ITERATIONS * SETTINGS["num_envs"] * SETTINGS["rollout_steps"]
    with tempfile.TemporaryDirectory() as folder, patch.object(Program, "__call__", slow):
        options: dict[str, Any] = {"seeds": SEEDS, "steps": steps, "quiet": True, "preset": False, **SETTINGS}
        upslope.train("jax:CartPole-v1", folder=folder, **options)
    later = dispatched[ITERATIONS // 10 :]  # the first dispatches include compilation
    gaps = [after[0] - before[1] for before, after in pairwise(later)]
    return {
        "dispatch, ms": round(1e3 * statistics.median(end - start for start, end in later), 2),
        "wait, ms": round(1e3 * statistics.median(gaps), 2),
        "wait, mean ms": round(1e3 * statistics.mean(gaps), 2),
    }


def table(stored: dict[str, Any]) -> str:
    """Format both measurements as a Markdown table."""
    lines = ["| an iteration of 8 seeds × 64 environments × 128 steps | before | after |", "|---|---:|---:|"]
    words = {
        "operations": "operations launched by the vmapped program, compiled for the CPU",
        "rounds of loops": "iterations of its loops",
        "wait, ms": "milliseconds between two dispatches that each keep a thread busy: median",
        "wait, mean ms": "the same: mean",
    }
    for name, what in words.items():
        lines.append(f"| {what} | {stored['before'][name]:,} | {stored['after'][name]:,} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("before", "after", "table"):
        sys.exit(__doc__)
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    if sys.argv[1] != "table":
        cores = len(os.sched_getaffinity(0))
        if cores < 2:
            sys.exit("This needs two cores: one for the program, one for the host's work.")
        jax.config.update("jax_num_cpu_devices", 1)
        results[sys.argv[1]] = kernels() | waiting() | {"jax": jax.__version__, "cores": cores}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        print(json.dumps(results[sys.argv[1]], indent=1))
    if {"before", "after"} <= results.keys():
        fill(PAGE, "kernels", table(results))
