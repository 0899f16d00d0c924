"""How fast is it? upslope and its peers in one run, each in its own virtual environment.

    python benchmarks/speed.py --environments FOLDER            # every case (about 20 min on two cores)
    python benchmarks/speed.py --environments FOLDER compiled_8 # some
    python benchmarks/speed.py --table                          # docs/performance.md from the stored results
    python benchmarks/speed.py --against COMMIT                 # this tree against an older one in pairs, without peers
    python benchmarks/speed.py --against COMMIT compiled a2c    # some of its cases

FOLDER holds the peers' virtual environments, and is created on the first run. In each of five rounds, every contender
of a case runs once, one after another, so that all run under the same conditions; ratios are taken within a round. The
rate counts the environment steps of all seeds, without compilation and the first update, which are reported separately.
The plot needs Matplotlib.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pages import fill
from speed_against import PAIRINGS, PAIRS, measure_against

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "speed"
PAGE = HERE.parent / "docs" / "performance.md"
PLOT = HERE.parent / "docs" / "images" / "speed.svg"
ROUNDS = 5
PEERS = {
    "rejax": ("rejax", "gymnax==0.0.9"),  # rejax 0.1.3 expects gymnax's old five-value step
    "baselines": ("stable-baselines3", "sbx-rl", "sb3-contrib", "gymnasium[mujoco]"),
    "purejaxrl": ("flax", "distrax", "gymnax==0.0.9"),
}
SAME = {"normalize_rewards": False, "normalize_observations": False}
CARTPOLE = {"n_envs": 8, "n_steps": 128, "batch_size": 256, "n_epochs": 4, "learning_rate": 2.5e-4}
PAPER = {"n_envs": 1, "n_steps": 2048, "batch_size": 64, "n_epochs": 10}
WIDE = {"n_envs": 8, "n_steps": 256, "batch_size": 512, "n_epochs": 4}
WIDE_HERE = SAME | {"num_envs": 8, "rollout_steps": 256, "epochs": 4, "minibatches": 4}


@dataclass(frozen=True)
class Contender:
    """One implementation of the case's work."""

    name: str
    environment: str
    """The name of its virtual environment."""
    script: str
    arguments: tuple[Any, ...]


def upslope(name: str, environment: str, seeds: int, steps: int, settings: dict[str, Any]) -> Contender:
    """upslope, run as a user would run it."""
    return Contender(name, "upslope", "measure_upslope.py", (environment, seeds, steps, settings))


def baselines(name: str, library: str, environment: str, processes: int, steps: int, settings: Any) -> Contender:
    """A contender with Stable-Baselines3 or SBX."""
    return Contender(name, "baselines", "measure_baselines.py", (library, environment, processes, steps, settings))


def rejax(name: str, seeds: int, steps: int, *more: Any) -> Contender:
    """A contender with rejax."""
    return Contender(name, "rejax", "measure_rejax.py", (seeds, steps, *more))


def purejaxrl(name: str, file: str, environment: str, steps: int, processes: int, settings: Any) -> Contender:
    """A contender with PureJaxRL, from the clone in the folder of the virtual environments."""
    arguments = (CLONE, file, environment, steps, processes, settings)
    return Contender(name, "purejaxrl", "measure_purejaxrl.py", arguments)


def raw(name: str, environment: str, processes: int) -> Contender:
    """A contender with Gymnasium alone, without learning."""
    return Contender(name, "upslope", "measure_raw.py", (environment, processes))


CLONE = "purejaxrl-clone"
"""In FOLDER: `git clone https://github.com/luchris429/purejaxrl` at 31756b1."""
BREAKOUT = SAME | {"num_envs": 64, "rollout_steps": 128, "minibatches": 8, "encoder": ["perceptron"]}
GRU = SAME | {
    "num_envs": 4, "rollout_steps": 128, "memory": "gru", "memory_size": 128, "hidden_sizes": [128],
    "shared_trunk": True, "activation": "relu",
}  # fmt: skip
MINIGRID = {"num_envs": 8, "rollout_steps": 128, "epochs": 10, "minibatches": 16, "ignore_observation": ["mission"]}
RECURRENT = {"n_envs": 4, "n_steps": 128, "batch_size": 128, "n_epochs": 4, "learning_rate": 2.5e-4}
COMPILED = SAME | {"num_envs": 64, "rollout_steps": 128}
CHEETAH = "HalfCheetah-v5"
CASES: dict[str, tuple[str, list[Contender]]] = {
    "compiled_1": (
        "compiled CartPole, 64 × 128, 4 epochs × 4 minibatches, one seed",
        [
            upslope("upslope", "jax:CartPole-v1", 1, 3_000_000, COMPILED),
            rejax("rejax", 1, 1_500_000),
        ],
    ),
    "compiled_8": (
        "the same, 8 seeds in all",
        [
            upslope("upslope", "jax:CartPole-v1", 8, 1_000_000, COMPILED),
            rejax("rejax", 8, 200_000),
        ],
    ),
    "breakout": (
        "gymnax Breakout-MinAtar, 64 × 128, 4 epochs × 8 minibatches, 64-64 tanh networks on the flattened board",
        [
            upslope("upslope, 1 seed", "gymnax:Breakout-MinAtar", 1, 1_500_000, BREAKOUT),
            upslope("upslope, 2 seeds", "gymnax:Breakout-MinAtar", 2, 1_500_000, BREAKOUT),
            purejaxrl(
                "PureJaxRL, 2 processes",
                "ppo",
                "Breakout-MinAtar",
                1_000_000,
                2,
                {"NUM_ENVS": 64, "NUM_MINIBATCHES": 8},
            ),
            rejax("rejax, 2 seeds", 2, 500_000, 64, "Breakout-MinAtar", 8),
        ],
    ),
    "gru": (
        "CartPole with a GRU of 128 units, 4 × 128, 4 epochs × 4 minibatches of one environment",
        [
            upslope("upslope, 1 seed", "jax:CartPole-v1", 1, 300_000, GRU),
            upslope("upslope, 2 seeds", "jax:CartPole-v1", 2, 300_000, GRU),
            upslope("upslope, Gymnasium, 2 seeds", "CartPole-v1", 2, 30_000, GRU),
            purejaxrl("PureJaxRL ppo_rnn", "ppo_rnn", "CartPole-v1", 200_000, 1, {}),
            purejaxrl("PureJaxRL ppo_rnn, 2 processes", "ppo_rnn", "CartPole-v1", 200_000, 2, {}),
            baselines("RecurrentPPO (LSTM), 2 processes", "recurrent", "CartPole-v1", 2, 4_096, RECURRENT),
        ],
    ),
    "parts": (
        "CartPole as a vector, as a Dict of two vectors, and with a mask, on the host, 8 × 128, 8 seeds",
        [
            upslope("upslope", "worlds:Parted", 8, 60_000, SAME),
            upslope("upslope, Dict", "worlds:Dicts", 8, 60_000, SAME),
            upslope("upslope, mask", "worlds:Masked", 8, 60_000, SAME),
        ],
    ),
    "minigrid": (
        "MiniGrid-DoorKey-5x5-v0, 8 × 128, 10 epochs × 16 minibatches, convolutions, 8 seeds",
        [
            upslope("upslope, 8 seeds", "MiniGrid-DoorKey-5x5-v0", 8, 20_000, MINIGRID),
            raw("raw stepping, 2 processes", "MiniGrid-DoorKey-5x5-v0", 2),
        ],
    ),
    "cartpole": (
        "Gymnasium CartPole-v1, 8 × 128, 4 epochs × 4 minibatches",
        [
            upslope("upslope, 1 seed", "CartPole-v1", 1, 200_000, SAME),
            upslope("upslope, 8 seeds", "CartPole-v1", 8, 120_000, SAME),
            baselines("SB3", "sb3", "CartPole-v1", 1, 40_000, CARTPOLE),
            baselines("SBX", "sbx", "CartPole-v1", 1, 40_000, CARTPOLE),
            raw("raw stepping, 2 processes", "CartPole-v1", 2),
        ],
    ),
    "halfcheetah": (
        "HalfCheetah-v5, 1 × 2048, 10 epochs of minibatches of 64 (Schulman et al. 2017)",
        [
            upslope("upslope, 8 seeds", CHEETAH, 8, 30_000, SAME),
            baselines("SB3", "sb3", CHEETAH, 1, 8_192, PAPER),
            baselines("SB3, 2 processes", "sb3", CHEETAH, 2, 8_192, PAPER),
            baselines("SBX", "sbx", CHEETAH, 1, 8_192, PAPER),
        ],
    ),
    "halfcheetah_wide": (
        "HalfCheetah-v5, 8 × 256, 4 epochs × 4 minibatches",
        [
            upslope("upslope, 8 seeds", CHEETAH, 8, 30_000, WIDE_HERE),
            baselines("SB3", "sb3", CHEETAH, 1, 16_384, WIDE),
            raw("raw stepping, 2 processes", CHEETAH, 2),
        ],
    ),
}


def python_of(environment: str, folder: Path) -> Path:
    """The Python interpreter of a contender; a peer's missing virtual environment is created."""
    if environment == "upslope":
        return Path(sys.executable)
    place = folder / environment
    python = place / "bin" / "python"
    if not python.exists():
        venv.create(place, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS[environment]], check=True)
    return python


def run(contender: Contender, folder: Path) -> dict[str, float]:
    """Run a contender once, and return its measurement."""
    given = [folder / a if a == CLONE else a for a in contender.arguments]
    arguments = [json.dumps(a) if isinstance(a, dict) else str(a) for a in given]
    command = [python_of(contender.environment, folder), HERE / "peers" / contender.script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(f"{contender.name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def versions(folder: Path) -> dict[str, list[str]]:
    """The package versions in each virtual environment."""
    found = {}
    for environment in ("upslope", *PEERS):
        command = [python_of(environment, folder), "-m", "pip", "list", "--format=freeze"]
        lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
        wanted = ("jax", "flax", "torch", "numpy", "gymna", "stable", "sbx", "rejax", "mujoco")
        found[environment] = [line for line in lines if line.startswith(wanted)]
    return found


def processor() -> str:
    """The processor's name, if the system provides it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure(name: str, folder: Path) -> None:
    """Measure and store all rounds of a case."""
    title, contenders = CASES[name]
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(ROUNDS):
        rounds.append({c.name: run(c, folder) for c in contenders})
        rates = {n: round(r["steps_per_second"]) for n, r in rounds[-1].items()}
        print(f"{name} round {number + 1}: {rates}", flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    machine = {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()}
    result = {"title": title, "machine": machine, "versions": versions(folder), "rounds": rounds}
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def spread(values: list[float], digits: int = 0) -> str:
    """Median and range as text, or a single value."""
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} – {max(values):,.{digits}f})"


def table() -> str:
    """A Markdown table of every case's contenders, with their ratios to the first."""
    lines = [
        "| case | who | steps/s: median (range) | upslope is faster by | until the first update, s | peak memory, MB |",
        "|---|---|---|---|---|---|",
    ]
    for name in CASES:
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text("utf-8"))
        rounds, names = result["rounds"], list(result["rounds"][0])
        ours = [n for n in names if n.startswith("upslope")]
        for who in names:
            rate = spread([r[who]["steps_per_second"] for r in rounds])
            ratios = [
                spread([r[mine]["steps_per_second"] / r[who]["steps_per_second"] for r in rounds], 2) for mine in ours
            ]
            faster = (
                ""
                if who in ours
                else "; ".join(
                    f"{mine.removeprefix('upslope').strip(', ') or 'upslope'}: {r}"
                    for mine, r in zip(ours, ratios, strict=True)
                )
            )
            extra = [
                f"{statistics.median([r[who][key] for r in rounds]):,.1f}" if key in rounds[0][who] else "–"
                for key in ("first_update", "peak_memory_mb")
            ]
            lines.append(f"| {result['title']} | {who} | {rate} | {faster} | {extra[0]} | {extra[1]} |")
    return "\n".join(lines)


def plot() -> None:
    """Plot bars for every case, with the range over rounds."""
    from matplotlib import pyplot

    stored = [n for n in CASES if (RESULTS / f"{n}.json").exists()]
    figure, axes = pyplot.subplots(len(stored), 1, figsize=(8, 1.9 * len(stored)), constrained_layout=True)
    for axis, name in zip(axes, stored, strict=True):
        result = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
        names = list(result["rounds"][0])
        rates = [[r[who]["steps_per_second"] / 1e3 for r in result["rounds"]] for who in names]
        middle = [statistics.median(x) for x in rates]
        reach = [
            [m - min(x) for m, x in zip(middle, rates, strict=True)],
            [max(x) - m for m, x in zip(middle, rates, strict=True)],
        ]
        colours = ["#1f77b4" if who.startswith("upslope") else "#b0b0b0" for who in names]
        axis.barh(names, middle, xerr=reach, color=colours)
        axis.invert_yaxis()
        axis.set_title(result["title"], fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("thousand environment steps per second")
    figure.savefig(PLOT)


def phases_table() -> str:
    """The stored results of `benchmarks/phases.py` as a Markdown table."""
    stored = json.loads((HERE / "results" / "phases.json").read_text("utf-8"))
    lines = ["| case | parts |", "|---|---|"]
    for case, parts in stored.items():
        lines.append(f"| {case} | " + ", ".join(f"{name} {value:g}" for name, value in parts.items()) + " |")
    return "\n".join(lines)


def write_page() -> None:
    """Write the tables between their marks, and draw the plot."""
    fill(PAGE, "speed", table())
    fill(PAGE, "phases", phases_table())
    plot()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of the peers: {', '.join(CASES)}; --against: {', '.join(PAIRINGS)}")
    parser.add_argument("--environments", type=Path, metavar="FOLDER")
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
        for case in options.cases or CASES:
            measure(case, options.environments.resolve())
    write_page()
