"""Compile and measure RLtools' PPO in C++ on its own Pendulum; print a JSON line.

    python measure_rltools.py STEPS '{"envs": 64, "steps": 128, "batch": 2048, "epochs": 4, "activation": "TANH"}'

Needs g++ and OpenBLAS. The headers come from the installed package `rltools`. RLtools' FAST_TANH approximates tanh by a
quotient of polynomials, with an error of up to 0.024.
"""

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

SOURCE = Path(__file__).parent / "rltools_ppo.cpp"
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-ffast-math",
    "-DRL_TOOLS_BACKEND_ENABLE_OPENBLAS", "-DRL_TOOLS_DISABLE_UNALIGNED_MEMORY_ALLOCATIONS",
)  # fmt: skip


def headers() -> Path:
    """Return the folder with RLtools' C++ headers in its package. The package is not imported, since that would start a
    compilation."""
    found = find_spec("rltools")
    if found is None or found.origin is None:
        raise SystemExit("This Python has no package `rltools`: pip install rltools")
    return Path(found.origin).parent / "external" / "rl_tools" / "include"


def compiled(shape: dict[str, Any], folder: Path) -> Path:
    """Return the program for this shape in the folder. Compile it if it is missing."""
    values = {"width": 64, **shape}
    program = folder / "_".join(["rltools_ppo", *(str(value) for value in values.values())])
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        macros = [f"-DPPO_{name.upper()}={value}" for name, value in values.items()]
        command = ["g++", *FLAGS, *macros, f"-I{headers()}", str(SOURCE), "-lopenblas", "-o", str(program)]
        subprocess.run(command, check=True)
    return program


def run(program: Path, *arguments: Any) -> dict[str, Any]:
    """Run the program, and return its output. BLAS is limited to one thread, since at these sizes several threads would
    mostly wait for each other."""
    command = [str(program), *(str(argument) for argument in arguments)]
    done = subprocess.run(command, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


if __name__ == "__main__":
    steps, shape = int(sys.argv[1]), json.loads(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        started = perf_counter()
        program = compiled(shape, Path(folder))
        compiling = perf_counter() - started
        answer = run(program, 0, steps)
    answer["first_update"] += compiling
    print(json.dumps(answer))
