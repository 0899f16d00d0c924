"""Measure how well upslope learns. Each case trains several seeds and stores their scores next to a published score.

    python benchmarks/learning.py                 # every case (hours)
    python benchmarks/learning.py cartpole_ppo …  # only these cases
    python benchmarks/learning.py hopper_zoo --folder DIR   # keep the run there, and resume it if it was stopped
    python benchmarks/learning.py --table         # write docs/learning.md from the stored results

A seed's score is its mean return over the last 100 training episodes, with the exploring policy. `evaluation` holds the
returns of fresh episodes in both modes, always with the last checkpoint and never with the best one. Intervals are
Student-t intervals over seeds.
"""

import argparse
import json
import math
import platform
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student_t

import upslope
from upslope.runs.directory import versions

RESULTS = Path(__file__).parent / "results" / "learning"
PAGE = Path(__file__).parents[1] / "docs" / "learning.md"


@dataclass(frozen=True)
class Case:
    """A learning task, with its target and the published score."""

    environment: str
    algorithm: str
    steps: int
    target: str
    """A description of the target."""
    published: str = ""
    """The published score and its source."""
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: int = 5
    preset: bool | str = True


CLEANRL = "vwxyzjn/cleanrl@fe8d8a03 docs"
ZOO = "rl-baselines3-zoo@22e3ff2 benchmark.md, one agent"
BLINES = "%s, one agent (RobertTLange/gymnax-blines@3f029d6)"
XMINIGRID: dict[str, Any] = {
    "num_envs": 8,
    "rollout_steps": 128,
    "epochs": 10,
    "minibatches": 16,
    "normalize_rewards": True,
}
TRPO_ZOO = "rl-baselines3-zoo@13a3fe7 hyperparams/trpo.yml"
TRPO: dict[str, Any] = {
    **{"num_envs": 2, "gamma": 0.99, "lambda_": 0.95, "delta": 0.01, "damping": 0.1, "learning_rate": 1e-3},
    **{"conjugate_gradient_iterations": 15, "backtracks": 10, "learning_rate_schedule": "constant"},
    **{"entropy_coefficient": 0.0, "max_grad_norm": math.inf},
}
"""Base settings of the cases from `TRPO_ZOO`, including the defaults of its library (sb3-contrib)."""
TRPO_MUJOCO: dict[str, Any] = {
    **TRPO,
    **{"rollout_steps": 1024, "minibatches": 16, "critic_epochs": 20, "conjugate_gradient_iterations": 25},
    **{"normalize_observations": True, "normalize_rewards": True},
}
PLAIN = {"normalize_observations": False, "normalize_rewards": False}
TRPO_CARTPOLE = {**TRPO, **PLAIN, "rollout_steps": 512, "minibatches": 2, "critic_epochs": 20, "damping": 1e-3}
TRPO_CARTPOLE |= {"lambda_": 0.98}
TRPO_PENDULUM = {**TRPO, **PLAIN, "rollout_steps": 1024, "minibatches": 16, "critic_epochs": 15, "gamma": 0.9}
CARTPOLE_RUNGS = (
    "reinforce",
    "reward_to_go",
    "reinforce_baseline",
    "actor_critic",
    "a2c",
    "gae",
    "ppo_kl",
    "ppo_kl_fixed",
    "npg",
    "trpo",
    "vtrace",
)

TRPO_SCORES: tuple[tuple[str, int, int, dict[str, Any]], ...] = (
    ("HalfCheetah", 1785, 6, {"delta": 0.04}),
    ("Hopper", 3618, 3, {}),
    ("Walker2d", 4933, 6, {}),
    ("Swimmer", 366, 2, {"gamma": 0.9999}),
    ("Ant", 4982, 8, {}),
)
"""(environment, the zoo's score, number of components of an action, settings specific to the environment)."""


def trpo_cases() -> dict[str, Case]:
    """Return the MuJoCo cases from `TRPO_ZOO`: with the zoo's numbers, and with the trust region they stand for.

    sb3-contrib's TRPO averages the KL over the components of an action instead of adding them up, so its δ and its
    damping correspond to as many times as much of the policy's KL as an action has components."""
    cases: dict[str, Case] = {}
    for world, score, components, further in TRPO_SCORES:
        told = f"≥ {0.9 * score:.0f}", f"{score} on v3, one agent ({TRPO_ZOO})"
        settings = TRPO_MUJOCO | further
        summed = settings | {name: components * settings[name] for name in ("delta", "damping")}
        cases[f"{world.lower()}_trpo_zoo"] = Case(f"{world}-v5", "trpo", 1_000_000, *told, settings)
        seeds = 2 if world == "Ant" else 5  # as many as sb3-contrib's
        cases[f"{world.lower()}_trpo"] = Case(f"{world}-v5", "trpo", 1_000_000, *told, summed, seeds)
    return cases


def without_velocities(environment: str, steps: int, target: str, published: str) -> dict[str, Case]:
    """Return the cases of an environment without velocities, compiled and on the host."""
    name = environment.split("-")[0].lower() + "_no_velocity"
    return {
        f"{name}_{where}": Case(prefix + environment, "ppo", steps, target, published, preset="no_velocity")
        for where, prefix in (("compiled", "jax:"), ("host", ""))
    }


CASES: dict[str, Case] = {
    "cartpole_ppo": Case(
        "CartPole-v1", "ppo", 500_000, "≥ 475", f"497.5 ± 4.0, 3 seeds ({CLEANRL}, Huang et al. 2022)", preset=False
    ),
    "cartpole_ppo_preset": Case("CartPole-v1", "ppo", 100_000, "≥ 475", f"500 ({ZOO})"),
    "cartpole_compiled_preset": Case("jax:CartPole-v1", "ppo", 73_728, "≥ 475", "500, the maximum", seeds=20),
    **{
        f"cartpole_{name}": Case("jax:CartPole-v1", name, 500_000, "learns clearly", seeds=10, preset=False)
        for name in CARTPOLE_RUNGS
    },
    "acrobot_ppo": Case(
        "Acrobot-v1", "ppo", 500_000, "≥ −90", f"−81.8 ± 5.6, 3 seeds ({CLEANRL}); −73.5 at 1M ({ZOO})"
    ),
    "pendulum_ppo": Case("jax:Pendulum-v1", "ppo", 100_000, "≥ −200", f"−172.2 with gSDE ({ZOO})", seeds=10),
    "pendulum_gsde": Case("jax:Pendulum-v1", "ppo", 100_000, "≥ −172", f"−172.2 ({ZOO})", seeds=10, preset="gsde"),
    "mountaincarcontinuous_gsde": Case(
        "jax:MountainCarContinuous-v0", "ppo", 20_000, "≥ 88", f"88.3 ({ZOO})", seeds=10, preset="gsde"
    ),
    "lunarlander_ppo": Case("LunarLander-v3", "ppo", 1_000_000, "≥ 200", f"242.1 on v2 ({ZOO})"),
    "mountaincarcontinuous_ppo": Case(
        "jax:MountainCarContinuous-v0",
        "ppo",
        1_000_000,
        "≥ 90",
        "solved at 90 (Gymnasium); the zoo reports 94",
        seeds=10,
    ),
    "halfcheetah_ppo": Case(
        "HalfCheetah-v5",
        "ppo",
        1_000_000,
        "≥ 1400 (expected 1400 to 2300)",
        f"1442.6 ± 46.0 on v4, 3 seeds ({CLEANRL})",
        preset="paper",
    ),
    "hopper_ppo": Case(
        "Hopper-v5",
        "ppo",
        1_000_000,
        "1900 to 2700 or above",
        f"2382.9 ± 271.7 on v4, 3 seeds ({CLEANRL})",
        preset="paper",
    ),
    "swimmer_ppo": Case("Swimmer-v5", "ppo", 1_000_000, "learns", preset="paper"),
    "walker2d_ppo": Case("Walker2d-v5", "ppo", 1_000_000, "learns", preset="paper"),
    "ant_zoo": Case("Ant-v5", "ppo", 1_000_000, "1327", f"1327.2 ± 451.6 on v3 ({ZOO})"),
    "halfcheetah_zoo": Case("HalfCheetah-v5", "ppo", 1_000_000, "5819", f"5819.1 on v3 ({ZOO})", preset="zoo"),
    "hopper_zoo": Case("Hopper-v5", "ppo", 1_000_000, "2410", f"2410.4 on v3 ({ZOO})", preset="zoo"),
    "swimmer_zoo": Case("Swimmer-v5", "ppo", 1_000_000, "282", f"281.6 on v3 ({ZOO})", preset="zoo"),
    **without_velocities("CartPole-v1", 100_000, "≥ 475", f"500 ({ZOO}, RecurrentPPO)"),
    **without_velocities("Pendulum-v1", 100_000, "≥ −250", f"−217.9 ({ZOO}, RecurrentPPO, gSDE)"),
    **without_velocities("MountainCarContinuous-v0", 300_000, "≥ 90", f"91.5 ({ZOO}, RecurrentPPO, gSDE)"),
    "minigrid_doorkey": Case("MiniGrid-DoorKey-5x5-v0", "ppo", 100_000, "≥ 0.95", f"0.964 ({ZOO})"),
    "minigrid_empty_random": Case("MiniGrid-Empty-Random-5x5-v0", "ppo", 100_000, "≥ 0.95", f"0.968 ({ZOO})"),
    "xminigrid_doorkey": Case("xminigrid:MiniGrid-DoorKey-5x5", "ppo", 100_000, "≥ 95 % solved", settings=XMINIGRID),
    "xminigrid_empty_random": Case(
        "xminigrid:MiniGrid-EmptyRandom-5x5", "ppo", 100_000, "≥ 95 % solved", settings=XMINIGRID
    ),
    "breakout_minatar": Case(
        "gymnax:Breakout-MinAtar", "ppo", 10_000_000, "≥ 36", f"about 40 (PureJaxRL); {BLINES % '23–43'}"
    ),
    "spaceinvaders_minatar": Case("gymnax:SpaceInvaders-MinAtar", "ppo", 10_000_000, "≥ 120", BLINES % "128–132"),
    "freeway_minatar": Case("gymnax:Freeway-MinAtar", "ppo", 10_000_000, "≥ 56", BLINES % "57–59"),
    "pong_short": Case(
        "ALE/Pong-v5",
        "ppo",
        500_000,
        "learns",
        f"20.4 ± 0.2 on NoFrameskip-v4 after 10M steps, 3 seeds ({CLEANRL})",
        seeds=1,
    ),
    "cartpole_trpo_zoo": Case(
        "jax:CartPole-v1", "trpo", 100_000, "≥ 475", f"the maximum is 500; settings from {TRPO_ZOO}", TRPO_CARTPOLE
    ),
    "pendulum_trpo_zoo": Case(
        "jax:Pendulum-v1", "trpo", 100_000, "learns", f"settings of {TRPO_ZOO}, without gSDE", TRPO_PENDULUM
    ),
    **trpo_cases(),
    "walker2d_zoo": Case("Walker2d-v5", "ppo", 1_000_000, "3479", f"3478.8 on v3 ({ZOO})", preset="zoo"),
}


def measure(name: str, case: Case, kept: Path | None = None) -> dict[str, Any]:
    """Train a case, or resume its run in the folder `kept`, then evaluate it and describe the result."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = kept or Path(temporary)
        if (folder / name).exists():
            run = upslope.resume(folder / name)
        else:
            run = upslope.train(
                case.environment, case.algorithm, steps=case.steps, seeds=case.seeds, preset=case.preset, folder=folder,
                name=name, **case.settings,
            )  # fmt: skip
        return describe(run, case.target, case.published)


def describe(run: upslope.Run, target: str, published: str) -> dict[str, Any]:
    """Evaluate a run, and return its scores with their intervals."""
    evaluation = upslope.evaluate(run.path, episodes=20)
    seconds = run.metrics()[-1]["time/elapsed"]
    return {
        "environment": run.config.environment,
        "algorithm": run.config.algorithm,
        "steps": run.config.steps,
        "seeds": list(run.seeds),
        "target": target,
        "published": published,
        "training_return": summary(run.returns) if run.config.data is None else None,
        "evaluation": {mode: summary(found.seed_means()) for mode, found in evaluation.items()},
        "seconds": seconds,
        "config": run.config.to_json() | {"data": None},
        "versions": versions(),
        "processor": platform.processor() or platform.machine(),
    }


def summary(scores: np.ndarray) -> dict[str, Any]:
    """Return each seed's score, the mean, and half the width of the mean's 95 % interval."""
    n = len(scores)
    half = float(student_t.ppf(0.975, n - 1) * np.std(scores, ddof=1) / np.sqrt(n)) if n > 1 else None
    return {"mean": float(np.mean(scores)), "half_interval": half, "each": [round(float(x), 2) for x in scores]}


def imitation() -> dict[str, Any]:
    """Measure two cases that learn from a teacher on CartPole: off_policy with a mediocre teacher, and clone with a
    good one."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for rung, teacher_steps in (("off_policy", 20_000), ("clone", 100_000)):
            teacher = upslope.train("jax:CartPole-v1", steps=teacher_steps, folder=folder, name=f"teacher_{rung}")
            data = upslope.record(teacher.path, episodes=200)
            taught = float(upslope.evaluate(teacher.path, episodes=100)["stochastic"].returns.mean())
            student = upslope.train("jax:CartPole-v1", rung, data=str(data), seeds=5, folder=folder, name=rung)
            target = "clearly above its teacher" if rung == "off_policy" else "matches its teacher"
            evaluation = upslope.evaluate(student.path, episodes=100)
            found[f"cartpole_{rung}"] = describe(student, target, f"its teacher: {taught:.1f}") | {
                "teacher_return": taught,
                "evaluation": {mode: summary(e.seed_means()) for mode, e in evaluation.items()},
                "effective_sample_size": [
                    row["policy/effective_sample_size"] for row in student.metrics() if row["seed"] == 0
                ],
            }
    return found


def store(name: str, result: dict[str, Any]) -> None:
    """Store one result."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")


def write_page() -> None:
    """Write docs/learning.md from the stored results."""
    lines = [HEADER]
    for path in sorted(RESULTS.glob("*.json")):
        r = json.loads(path.read_text("utf-8"))
        modes = r["evaluation"]
        cells = [f"`{path.stem}`", r["environment"], r["algorithm"], f"{r['steps']:,}", str(len(r["seeds"]))]
        cells += [words(r["training_return"]), words(modes["stochastic"]), words(modes["deterministic"])]
        case = CASES.get(path.stem)
        target, published = (case.target, case.published) if case else (r["target"], r["published"])
        lines.append("| " + " | ".join([*cells, target, published or "–"]) + " |")
    lines += ["", MUJOCO % rivals(), EVERY_SEED % every_seed(), TABULAR % tabular_worlds()]
    PAGE.write_text("\n".join(lines).rstrip() + "\n", "utf-8")


def every_seed() -> str:
    """Format the rows for a hundred seeds on CartPole, from the results of `cartpole_seeds.py`."""
    lines = []
    for name, found in json.loads((RESULTS.parent / "cartpole_seeds.json").read_text("utf-8")).items():
        summary = found["summary"]
        cells = [name, f"{summary['seconds_a_seed']:.1f}"]
        for mode in ("stochastic", "deterministic"):
            scores = summary[mode]
            cells += [f"{scores['solved']} of {scores['of']}", f"{scores['mean']:.1f}", f"{scores['lowest']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rivals() -> str:
    """Format the rows for Stable-Baselines3 with the same settings, from the results of `learning_rivals.py`."""
    lines = []
    for name, seeds in json.loads((RESULTS.parent / "learning_rivals.json").read_text("utf-8")).items():
        if not (RESULTS / f"{name}.json").exists():
            continue
        ours = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
        our_modes = {"training": ours["training_return"]} | ours["evaluation"]
        modes = {mode: summary(np.array([seed[mode] for seed in seeds])) for mode in our_modes}
        lines += [
            "| "
            + " | ".join([f"`{name}`", library, str(len(some["training"]["each"])), *map(words, some.values())])
            + " |"
            for library, some in (("upslope", our_modes), ("Stable-Baselines3", modes))
        ]
    return "\n".join(lines)


def tabular_worlds() -> str:
    """Format the rows for tabular environments, from the results of `tabular.py`."""
    lines = []
    for name, found in json.loads((RESULTS.parent / "tabular.json").read_text("utf-8")).items():
        cells = [name, found["asked_for"], number(found["optimum"]["endless"])]
        for score in ("endless", "limited"):
            for mode in ("stochastic", "deterministic"):
                values = [each[score] for each in found[mode]]
                is_unlimited = score == "limited" and found["optimum"]["limited"] is None
                cells.append("–" if is_unlimited else ", ".join(map(number, values)))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Format a number with two decimals. None stands for −∞."""
    return "−∞" if value is None else f"{value:.2f}"


def words(score: dict[str, Any] | None) -> str:
    """Format a score as mean ± half the width of its interval, which a single seed lacks, or as a dash if training had
    no episodes."""
    if score is None:
        return "–"
    return f"{score['mean']:.1f}" + (f" ± {score['half_interval']:.1f}" if score["half_interval"] is not None else "")


HEADER = """# How well it learns

`python benchmarks/learning.py` stores its results in `benchmarks/results/learning/`, and `python benchmarks/learning.py
--table` writes this page from them. Scores are means over seeds, and the number after ± is half the width of the 95 %
Student-t interval. *Training* is the mean return of the last 100 training episodes, in which the policy explores.
*Stochastic* and *deterministic* are means over 20 fresh episodes per seed (100 for recorded data) with the last
checkpoint. Published scores often come from a single agent, another version of the environment, or the best point in
training, so treat them as a rough guide.

| case | environment | rung | steps | seeds | training | stochastic | deterministic | goal | published |
|---|---|---|---|---|---|---|---|---|---|"""

EVERY_SEED = """## Every seed

`python benchmarks/cartpole_seeds.py` trains a hundred seeds with CartPole's preset and stores the results in
`benchmarks/results/cartpole_seeds.json`. The last checkpoint of each seed is evaluated in 100 fresh episodes per mode.
The preset was tuned on seeds 0 to 99 of the compiled version and evaluated once, on seeds 1000 to 1099. A seed counts
as solved if its mean return is 475 or more. The times were measured on two busy cores, so they say little about speed.
A row with fewer than a hundred seeds is incomplete.

| environment, seeds, Python | s per seed | stochastic: solved | mean | lowest | deterministic: solved | mean | lowest |
|---|---|---|---|---|---|---|---|
%s

Tuning showed how a policy that has solved CartPole can get worse again. (This happened to one seed in sixty, with the
same settings except γ = 0.99 and 100,000 steps.) Once every return is 500, the critic predicts a constant, and the
advantages consist only of its rounding errors. After standardisation, these errors move the policy at random until the
cart drifts off. By then, the learning rate is too small for the policy to recover. The preset therefore uses batches
eight times as large as the zoo's (`--preset zoo`) and a budget that ends soon after the slowest seed has learned. The
last 100 training episodes, whose mean return `train` shows, begin before that point, so `train` may show 460 for a seed
that scores 500 in evaluation.
"""
TABULAR = """## Tabular environments

`python benchmarks/tabular.py` trains for 500,000 steps per seed, without action masks, and stores the results in
`benchmarks/results/tabular.json`. The table shows the expected return of each seed's last policy, computed exactly from
`env.unwrapped.P` by solving a linear system. The return is given without a time limit (−∞ means that an episode may
never end) and, if the environment has a limit, also within that limit. The goal applies to the stochastic policy
without a time limit. Presets were tuned on seeds 0 to 4. Environments missing from the table have not been measured;
FrozenLake has no preset.

| world, settings, seeds | goal | optimum | stochastic | deterministic | stochastic, limit | deterministic, limit |
|---|---|---|---|---|---|---|
%s

These results required three changes to the default settings. The changes are the same for Taxi and CliffWalking. First,
the learning rate is 0.01 instead of 0.00025, since a weight in the first layer changes only when its state is visited.
Second, the entropy coefficient is 0.1 instead of 0.01: early in training, nearly every pickup and drop-off costs 10,
and a policy that starts to avoid them too soon never tries them where they are right. Third, batches have 2,048 steps
from 32 environments instead of 1,024 steps from 8. These settings are a good starting point for other environments
whose observation is a single number: `--learning-rate 0.01 --entropy-coefficient 0.1 --num-envs 32 --rollout-steps 64`.
FrozenLake keeps the defaults.
"""
MUJOCO = """## MuJoCo: which settings

The preset `paper` contains the PPO paper's settings for its seven tasks. The preset `zoo` contains rl-baselines3-zoo's
tuned settings for HalfCheetah, Hopper, Swimmer and Walker2d, and is the only preset for Ant. The zoo's published
scores, at 1M steps on version 3 with one deterministic agent each, are HalfCheetah 5,819, Hopper 2,410, Swimmer 282,
Walker2d 3,479 and Ant 1,327. The default for each task is the preset that scores higher here. For HalfCheetah and
Swimmer, it is `zoo`. On HalfCheetah, `zoo` comes close to its published score but takes longer to train, since it has
wide networks and many epochs. On Swimmer, it exceeds its published score (for the scores of the paper's settings, see
[the lab's table](lab.md)). For Hopper and Walker2d, the default is `paper`. On Hopper, `zoo` falls far short of its
published score. On Walker2d, it comes close, but the mean return of its last training episodes is lower than with the
paper's settings: 2,745, compared with 3,531 in [the lab's table](lab.md). On Ant, where the zoo uses its library's
defaults without tuning, the score stays far below the published one. The published task has neither the contact forces
in version 5's observations nor their cost. `python benchmarks/learning.py ant_zoo --folder DIR` measures a single case,
and continues an interrupted measurement.

`python benchmarks/learning_rivals.py CASE` trains Stable-Baselines3 with the zoo's settings on the same version of the
environment, which separates differences between the libraries from those between versions and between single agents.
With PPO on Hopper, the two libraries score alike, and both fall far short of the published score. On Ant, TRPO with
either library falls far short of it too:

| case | library | seeds | training | stochastic | deterministic |
|---|---|---|---|---|---|
%s

## TRPO: what a published trust region means

The KL of a policy whose components are independent is the sum of the components' KLs. sb3-contrib's TRPO (2.9.2) takes
the mean over the components of a real-valued action instead. Its δ = 0.01 on Ant, which has eight components, is
therefore a trust region of δ = 0.08 in the policy's KL, and its damping of 0.1 is one of 0.8. The cases `*_trpo_zoo`
take the zoo's numbers literally, which makes steps too short; the cases `*_trpo` convert them. On Hopper, this raises
the mean return of deterministic actions from 2,546 to 3,640, and 3,618 was published; on HalfCheetah, from 2,392 to
3,736 (1,785 was published); on Swimmer, from 218 to 274 (366 was published). On Walker2d, it raises the mean return of
training from 2,696 to 3,610, but not that of deterministic actions (3,474 and 3,562; 4,933 was published).
"""


def main() -> None:
    """Measure the named cases, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=[*CASES, "imitation"])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--table", action="store_true")
    flags = parser.parse_args()
    for name in () if flags.table else flags.cases:
        results = imitation() if name == "imitation" else {name: measure(name, CASES[name], flags.folder)}
        for key, result in results.items():
            store(key, result)
            print(key, words(result["training_return"]), {m: words(s) for m, s in result["evaluation"].items()})
    write_page()


if __name__ == "__main__":
    main()
