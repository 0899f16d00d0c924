"""How fast is it? upslope and its peers in one run, each in its own virtual environment.

    python benchmarks/speed.py --environments FOLDER            # every case (about 90 min on two cores)
    python benchmarks/speed.py --environments FOLDER compiled_8 # some
    python benchmarks/speed.py --environments FOLDER compiled_8 --rounds 1  # a look, which is not stored
    python benchmarks/speed.py --table                          # docs/performance.md from the stored results
    python benchmarks/speed.py --against COMMIT                 # this tree against an older one in pairs, without peers
    python benchmarks/speed.py --against COMMIT compiled a2c    # some of its cases

FOLDER holds the peers' virtual environments, and is created on the first run; what is not a package must be cloned into
it, and RLtools needs g++ and OpenBLAS (`speed_cases.py` lists all). In each of five rounds, every contender of a case
runs once, one after another, so that all run under the same conditions; ratios are taken within a round. A rate counts
the environment steps of all seeds, without compilation and the first update, which are reported separately; a case
"from the shell" counts everything from the start of the command. In a case on one core, everyone runs on the same one.
The plot needs Matplotlib.
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
"""How the names of the packages begin whose versions are stored."""


def python_of(environment: str, folder: Path) -> Path:
    """The Python interpreter of a contender; a peer's virtual environment is created, or completed, if it has to be."""
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
    """The folder of a repository that is not a package."""
    address, commit = CLONES[name]
    place = folder / name
    if not place.exists():
        raise SystemExit(f"First: git clone {address} {place} && git -C {place} checkout {commit}")
    return place


@contextmanager
def one_core(is_pinned: bool) -> Iterator[None]:
    """Let processes that start in a `with` block have only the first of this process's cores, if they are pinned."""
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
    """Compile upslope's source to bytecode, as pip does with what it installs, and let everyone use theirs."""
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
    """An argument as it stands on a command line."""
    return json.dumps(argument) if isinstance(argument, dict) else str(argument)


def versions(case: Case, folder: Path) -> dict[str, list[str]]:
    """The package versions in each virtual environment of the case."""
    found = {}
    for environment in dict.fromkeys(contender.environment for contender in case.contenders):
        command = [python_of(environment, folder), "-m", "pip", "list", "--format=freeze"]
        lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
        found[environment] = [line for line in lines if line.startswith(LISTED)]
    return found


VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}
"""How the system calls a processor's vectors → what they are called, the widest first."""


def processor() -> str:
    """The processor's name, generation and vectors, as far as the system says; one name stands for several of them."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "model name" not in known:
        return platform.processor() or platform.machine()
    widest = next((name for flag, name in VECTORS.items() if flag in known.get("flags", "").split()), "")
    generation = [f"{word.split()[-1]} {known[word]}" for word in ("cpu family", "model") if word in known]
    return ", ".join(filter(None, [known["model name"], *generation, widest]))


def measure(name: str, folder: Path, count: int) -> None:
    """Measure the rounds of a case, and store them if they are all that are due."""
    case = CASES[name]
    for environment in {contender.environment for contender in case.contenders}:
        python_of(environment, folder)  # before anything is measured
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
    parser.add_argument("cases", nargs="*", help=f"of the peers: {', '.join(CASES)}; --against: {', '.join(PAIRINGS)}")
    parser.add_argument("--environments", type=Path, metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="fewer than %(default)s are shown, not stored")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--against", metavar="COMMIT")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="of --against, for each case (%(default)s)")
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
            parser.error("--environments FOLDER says where the peers' virtual environments are")
        with_bytecode()
        for case in options.cases or CASES:
            measure(case, options.environments.resolve(), options.rounds)
    if options.table or options.rounds >= ROUNDS:
        write_page()
