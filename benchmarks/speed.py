"""How fast is upslope compared with its peers? Each contender runs in its own virtual environment.

    python benchmarks/speed.py --environments FOLDER            # every case (about 90 min on two cores)
    python benchmarks/speed.py --environments FOLDER compiled_8 # only these cases
    python benchmarks/speed.py --environments FOLDER compiled_8 --rounds 1  # a quick check that stores nothing
    python benchmarks/speed.py --table                          # write docs/performance.md from the stored results
    python benchmarks/speed.py --against COMMIT                 # this tree and an older one in pairs, without peers
    python benchmarks/speed.py --against COMMIT compiled a2c    # the same for these cases only

FOLDER holds the peers' virtual environments and is created on the first run. Peers that are not packages must be cloned
into it, and RLtools needs g++ and OpenBLAS (`speed_cases.py` lists everything). In each of five rounds, the contenders
of a case run once, one after another, so that all face the same conditions. Ratios are computed within a round. A rate
counts the environment steps of all seeds. It excludes compilation and the first update, whose time is reported
separately. A case "from the shell" includes everything from the start of the command. In a case on one core, all
contenders run on the same core. The plot needs Matplotlib.
"""

import argparse
import compileall
import json
import os
import platform
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from speed_against import PAIRINGS, PAIRS, measure_against
from speed_cases import CASES, CLONES, PEERS, Case, Contender
from speed_table import RESULTS, Rounds, write_page

HERE = Path(__file__).parent
ROUNDS = 5
LISTED = ("jax", "flax", "torch", "numpy", "gymna", "stable", "sbx", "sb3", "rejax", "mujoco", "rltools")
"""Versions are stored for packages whose names start with these prefixes."""


def python_of(environment: str, folder: Path) -> Path:
    """Return a contender's Python interpreter, creating or updating a peer's virtual environment if necessary."""
    if environment == "upslope":
        return Path(sys.executable)
    place = folder / environment
    python, installed = place / "bin" / "python", place / "installed.txt"
    if not python.exists():
        venv.create(place, with_pip=True)
    wanted = "\n".join(PEERS[environment])
    if not installed.exists() or installed.read_text("utf-8") != wanted:
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS[environment]], check=True)
        installed.write_text(wanted, "utf-8")
    return python


def clone_of(name: str, folder: Path) -> Path:
    """Return the folder into which a peer that is not a package was cloned."""
    address, commit = CLONES[name]
    place = folder / name
    if not place.exists():
        raise SystemExit(f"First: git clone {address} {place} && git -C {place} checkout {commit}")
    return place


@contextmanager
def one_core(is_pinned: bool) -> Iterator[None]:
    """A context in which, if `is_pinned`, new processes may use only the first of this process's cores."""
    if not is_pinned:
        yield
        return
    if not hasattr(os, "sched_setaffinity"):
        raise SystemExit("Cases on one core need Linux, which can pin a process to a core.")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def with_bytecode() -> None:
    """Compile upslope's source to bytecode, as pip does for installed packages, and let all contenders use theirs."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    compileall.compile_dir(HERE.parent / "src", quiet=2)


def run(contender: Contender, folder: Path) -> dict[str, float]:
    """Run a contender once, and return its measurement."""
    given = [clone_of(a, folder) if a in CLONES else a for a in map(written, contender.arguments)]
    command = [python_of(contender.environment, folder), HERE / "peers" / contender.script, *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(f"{contender.name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def written(argument: object) -> str:
    """Format an argument for a command line."""
    return json.dumps(argument) if isinstance(argument, dict) else str(argument)


def versions(case: Case, folder: Path) -> dict[str, list[str]]:
    """Return the package versions in each of the case's virtual environments."""
    found = {}
    for environment in dict.fromkeys(contender.environment for contender in case.contenders):
        command = [python_of(environment, folder), "-m", "pip", "list", "--format=freeze"]
        lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
        found[environment] = [line for line in lines if line.startswith(LISTED)]
    return found


VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}
"""The system's name for a set of vector instructions → its usual name, widest first."""


def processor() -> str:
    """Describe the processor by name, generation and vector instructions, as far as the system reports them. The name
    alone may refer to several processors."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "model name" not in known:
        return platform.processor() or platform.machine()
    widest = next((name for flag, name in VECTORS.items() if flag in known.get("flags", "").split()), "")
    generation = [f"{word.split()[-1]} {known[word]}" for word in ("cpu family", "model") if word in known]
    return ", ".join(filter(None, [known["model name"], *generation, widest]))


def measure(name: str, folder: Path, count: int) -> None:
    """Measure the rounds of a case, and store them unless fewer rounds than usual were requested."""
    case = CASES[name]
    for environment in {contender.environment for contender in case.contenders}:
        python_of(environment, folder)  # this prepares all virtual environments before anything is measured
    rounds: Rounds = []
    with one_core(case.is_pinned):
        for number in range(count):
            rounds.append({c.name: run(c, folder) for c in case.contenders})
            measured = {n: round(r[case.unit], 1) for n, r in rounds[-1].items()}
            print(f"{name} round {number + 1}, {case.unit}: {measured}", flush=True)
    if count < ROUNDS:
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    machine = {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()}
    result = {"title": case.title, "unit": case.unit, "machine": machine, "versions": versions(case, folder)}
    (RESULTS / f"{name}.json").write_text(json.dumps(result | {"rounds": rounds}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"with peers: {', '.join(CASES)}; --against: {', '.join(PAIRINGS)}")
    parser.add_argument("--environments", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="with fewer than %(default)s, results are shown but not stored"
    )
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--against", metavar="COMMIT")
    parser.add_argument(
        "--pairs", type=int, default=PAIRS, help="number of pairs per case with --against (%(default)s)"
    )
    options = parser.parse_args()
    known = PAIRINGS if options.against else CASES
    unknown = [case for case in options.cases if case not in known]
    if unknown:
        parser.error(f"there is no case {', '.join(unknown)}; known: {', '.join(known)}")
    if options.against:
        chosen = options.cases or list(PAIRINGS)
        raise SystemExit(not measure_against(options.against, chosen, options.pairs, processor()))
    if not options.table:
        if options.environments is None:
            parser.error("give the folder of the peers' virtual environments: --environments FOLDER")
        with_bytecode()
        for case in options.cases or CASES:
            measure(case, options.environments.resolve(), options.rounds)
    if options.table or options.rounds >= ROUNDS:
        write_page()
