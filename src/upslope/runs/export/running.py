"""Run an exported file on observations to obtain its outputs and the duration of a step.

Each runner takes sequences of observations, given as an array [T, B, …] for each input, and masks [T, B, M] or None.
All B episodes begin at t = 0. The runner returns the actions [T, B, …] and the parameters [T, B, K] of each part by
name.
"""

import math
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from importlib import import_module
from importlib.util import find_spec
from operator import getitem
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from upslope.models.encoders import ObservationEncoder
from upslope.runs.export.c_format import fields_of, num_inputs, prefix_of
from upslope.runs.export.onnx_format import MASK, input_names
from upslope.runs.export.plan import Plan
from upslope.runs.export.samples import structured

Found = dict[str, np.ndarray]
"""The actions and the parameters of all parts, [T, B, …]."""
STANDARD = ("-std=c99", "-O2")
HEADER = "policy.h"
"""The name under which a header is compiled, since `#include` cannot name every file."""
PATIENCE = 60
"""Maximum number of seconds that the compiler or a program may run."""


def run_numpy(
    path: Path, plan: Plan, encoder: ObservationEncoder, arrays: Sequence[np.ndarray], masks: np.ndarray | None
) -> Found:
    """Run the generated Python file."""
    names: dict[str, Any] = {"__file__": str(path), "__name__": path.stem}
    # `numpy_format` has just written this file, and everything that it took from the run's files is an escaped literal.
    exec(compile(path.read_text("utf-8"), str(path), "exec"), names)
    policy = names["Policy"]()

    def step(t: int) -> dict[str, Any]:
        observation = structured(plan, encoder, [x[t] for x in arrays])
        action, parameters = policy.act(observation) if masks is None else policy.act(observation, masks[t])
        return actions_of(plan, action) | parameters

    return over_time(step, len(arrays[0]))


def run_onnx(path: Path, plan: Plan, arrays: Sequence[np.ndarray], masks: np.ndarray | None) -> Found:
    """Run the graph with onnxruntime, or with onnx's reference implementation if onnxruntime is not installed."""
    names, outputs = input_names(plan), [*(part.action for part in plan.parts), *plan.parameters]
    call = session_of(path)
    memory, batch = plan.memory, arrays[0].shape[1]
    carry = {name: np.zeros((batch, memory.size), np.float32) for name in memory.carries} if memory else {}

    def step(t: int) -> dict[str, Any]:
        given = {name: x[t] for name, x in zip(names, arrays, strict=True)} | carry
        if masks is not None:
            given[MASK] = masks[t]
        found = call([*outputs, *(f"next_{name}" for name in carry)], given)
        carry.update(zip(carry, found[len(outputs) :], strict=True))
        return dict(zip(outputs, found, strict=False))

    return over_time(step, len(arrays[0]))


def session_of(path: Path) -> Callable[[list[str], dict[str, Any]], list[Any]]:
    """Return a function that runs a graph."""
    if find_spec("onnxruntime") is None:
        return import_module("onnx.reference").ReferenceEvaluator(str(path)).run
    return import_module("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"]).run


def actions_of(plan: Plan, action: Any) -> dict[str, Any]:
    """Return the action of each part by name."""
    return {part.action: reduce(getitem, part.path, action) for part in plan.parts}


def over_time(step: Callable[[int], dict[str, Any]], length: int) -> Found:
    """Run all steps in order and stack the results."""
    steps = [step(t) for t in range(length)]
    return {name: np.stack([found[name] for found in steps]) for name in steps[0]}


class Timed(NamedTuple):
    """The outputs of a compiled policy and the seconds per step."""

    found: Found
    seconds: float


def compiler() -> str | None:
    """Return the C compiler of this machine, or None if there is none."""
    return which("gcc") or which("cc")


def run_c(
    header: Path, plan: Plan, arrays: Sequence[np.ndarray], masks: np.ndarray | None, more: Sequence[str] = ()
) -> Timed:
    """Compile the header together with a program that steps the policy, and run the program. `more` holds additional
    compiler options.

    Raises:
        subprocess.CalledProcessError: the header cannot be compiled or run.
        subprocess.SubprocessError, OSError: there is no compiler, it does not work, or it takes too long.
    """
    length, batch = arrays[0].shape[:2]
    rows = np.concatenate([x.reshape(length, batch, -1) for x in arrays], axis=-1).astype(np.float32)
    facts = [rows] if masks is None else [rows, masks.astype(np.uint8)]
    # The program has a single memory, so it runs the episodes one after another.
    inward = [np.ascontiguousarray(np.swapaxes(x, 0, 1)).reshape(length * batch, -1) for x in facts]
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / HEADER).write_bytes(header.read_bytes())
        (folder / "in").write_bytes(b"".join(x.tobytes() for x in inward))
        seconds = float(built_and_run(PROGRAM.format(**words_of(header, plan, length, length * batch)), folder, more))
        content = (folder / "out").read_bytes()
    found, start = {}, 0
    for name, dtype, shape in kinds_of(plan):
        size = length * batch * math.prod(shape) * dtype.itemsize
        found[name] = np.frombuffer(content[start : start + size], dtype).reshape(batch, length, *shape).swapaxes(0, 1)
        start += size
    return Timed(found, seconds)


def built_and_run(program: str, folder: Path, more: Sequence[str] = ()) -> bytes:
    """Compile a program in this folder, run it there, and return what it prints."""
    (folder / "main.c").write_text(program)
    built = [str(compiler()), *STANDARD, *more, "main.c", "-lm", "-o", "main"]
    options: dict[str, Any] = {"cwd": folder, "check": True, "capture_output": True, "timeout": PATIENCE}
    subprocess.run(built, **options)
    return subprocess.run([str(folder / "main")], **options).stdout


def compiler_works() -> bool:
    """Whether the C compiler of this machine makes a program that runs here, from the smallest source that includes
    what a policy and its check include."""
    with TemporaryDirectory() as folder:
        try:
            built_and_run(SMALLEST, Path(folder))
        except (subprocess.SubprocessError, OSError):
            return False
        return True


def kinds_of(plan: Plan) -> Iterator[tuple[str, np.dtype, tuple[int, ...]]]:
    """Yield (name, dtype, shape) for everything that a policy returns, in the order of `fields_of`."""
    for part in plan.parts:
        yield part.action, np.dtype(part.head.dtype), part.head.shape
        yield from ((name, np.dtype(np.float32), (part.head.width,)) for name in part.parameters)


def words_of(header: Path, plan: Plan, length: int, count: int) -> dict[str, Any]:
    """Return the values of the placeholders in `PROGRAM`."""
    prefix, names = prefix_of(header), [name for each in fields_of(plan) for name in each.values()]
    return {
        "header": HEADER,
        "p": prefix,
        "count": count,
        "length": length,
        "inputs": num_inputs(plan),
        "mask": f"static uint8_t mask[{count}][{plan.num_choices}];" if plan.has_masks else "",
        "read_mask": "ok &= fread(mask, sizeof mask, 1, in) == 1;" if plan.has_masks else "",
        "given": "observation[i], mask[i]" if plan.has_masks else "observation[i]",
        "written": "\n    ".join(
            f"for (i = 0; i < {count}; i++) fwrite(result[i].{name}, sizeof result[i].{name}, 1, out);"
            for name in names
        ),
        "seen": names[1],
    }


SMALLEST = """\
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

int main(void)
{
    return printf("%d\\n", (int)(int64_t)tanhf((float)clock())) < 0;
}
"""
"""A program that every working compiler accepts."""
PROGRAM = """\
#include <stdio.h>
#include <time.h>
#include "{header}"

static float observation[{count}][{inputs}];
{mask}
static {p}_result result[{count}];
static {p}_state state;

static float all(void)
{{
    float sum = 0.0f;
    for (int i = 0; i < {count}; i++) {{
        if (i % {length} == 0)
            {p}_reset(&state);
        {p}_step(&state, {given}, &result[i]);
        sum += result[i].{seen}[0];
    }}
    return sum;
}}

int main(void)
{{
    FILE *in = fopen("in", "rb"), *out = fopen("out", "wb");
    int i, ok = in && out && fread(observation, sizeof observation, 1, in) == 1;
    {read_mask}
    if (!ok)
        return 1;
    volatile float seen = all();
    {written}
    fclose(out);
    clock_t begin = clock();
    long rounds = 0;
    while (clock() - begin < CLOCKS_PER_SEC / 20) {{
        seen = seen + all();
        rounds++;
    }}
    printf("%.9g\\n", (double)(clock() - begin) / CLOCKS_PER_SEC / rounds / {count});
    return 0;
}}
"""
"""A program that steps a policy over the observations in the file `in`, writes its outputs to the file `out`, and
prints how long a step takes."""
