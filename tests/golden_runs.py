"""Twenty-four short runs whose metric rows and final parameters are stored in `golden/`.

They ensure that refactoring does not change behaviour: on the machine that stored them, and with the same package
versions, the numbers must be identical bit for bit. On other machines, rounding differs. Sooner or later, a near-tie
between two actions is then resolved differently, and from that point on the two runs have nothing in common. Therefore
only the leading rows are compared there, within a tolerance. Store the runs again only in a commit that changes numbers
on purpose and says so:

    python tests/golden_runs.py                          # train all cases and write golden/runs.npz
    python tests/golden_runs.py --to FILE --only CASE …  # train only these cases and write FILE
    python tests/golden_runs.py --tolerance              # retrain with a narrower instruction set, and store how many
                                                         # leading rows of each case still agree
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from compile_flags import FLAGS

from upslope.models.normaliser import RunningStatistics

STORED = Path(__file__).parent / "golden" / "runs.npz"
SMALL: dict[str, Any] = {"hidden_sizes": (8,), "quiet": True, "preset": False}
SEGMENTS: dict[str, Any] = {"num_envs": 4, "rollout_steps": 16, "minibatches": 2, "epochs": 2, "steps": 256}
EPISODES: dict[str, Any] = {"num_envs": 2, "max_episode_steps": 40, "steps": 200}
BASELINE = EPISODES | {"critic_epochs": 2}
RECORDED: dict[str, Any] = {"epochs": 1, "minibatches": 2, "steps": 600}
BOTH = {"normalize_observations": True, "normalize_rewards": True}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "compiled discrete reinforce": ("jax:CartPole-v1", "reinforce", EPISODES | {"seeds": 3}),
    "compiled discrete reward_to_go": ("jax:CartPole-v1", "reward_to_go", EPISODES),
    "compiled discrete reinforce_baseline": ("jax:CartPole-v1", "reinforce_baseline", BASELINE | {"seeds": 2}),
    "compiled discrete actor_critic": ("jax:CartPole-v1", "actor_critic", SEGMENTS),
    "compiled discrete a2c": ("jax:CartPole-v1", "a2c", SEGMENTS | {"rollout_steps": 5, "seeds": 3}),
    "compiled discrete gae": ("jax:CartPole-v1", "gae", SEGMENTS | BOTH),
    "compiled discrete ppo": ("jax:CartPole-v1", "ppo", SEGMENTS | BOTH | {"seeds": 3}),
    "compiled discrete ppo_kl": ("jax:CartPole-v1", "ppo_kl", SEGMENTS | {"activation": "relu"}),
    "compiled box ppo": ("jax:Pendulum-v1", "ppo", SEGMENTS | {"max_episode_steps": 20, "seeds": 2}),
    "compiled box ppo_kl_fixed": ("jax:Pendulum-v1", "ppo_kl_fixed", SEGMENTS | {"hidden_sizes": (8, 8)}),
    "compiled multidiscrete ppo": ("jax:probe/multidiscrete", "ppo", SEGMENTS | {"seeds": 2, "target_kl": 0.001}),
    "compiled multibinary gae": ("jax:probe/multibinary", "gae", SEGMENTS),
    "compiled one-hot ppo": ("jax:GridWorld-v0", "ppo", SEGMENTS | BOTH | {"activation": "silu"}),
    "compiled wide ppo": ("jax:CartPole-v1", "ppo", SEGMENTS | {"num_envs": 64, "epochs": 4, "steps": 4096}),
    "host discrete reinforce": ("CartPole-v1", "reinforce", EPISODES),
    "host discrete reinforce_baseline": ("CartPole-v1", "reinforce_baseline", BASELINE | {"seeds": 3}),
    "host discrete ppo": ("CartPole-v1", "ppo", SEGMENTS | BOTH | {"seeds": 3}),
    "host discrete a2c workers": ("CartPole-v1", "a2c", SEGMENTS | {"seeds": 2, "workers": 2}),
    "host box ppo": ("Pendulum-v1", "ppo", SEGMENTS | {"max_episode_steps": 20}),
    "host box ppo_kl": ("Pendulum-v1", "ppo_kl", SEGMENTS | BOTH | {"seeds": 2, "max_episode_steps": 20}),
    "host multidiscrete ppo": ("user_environments:many_choices", "ppo", SEGMENTS | {"seeds": 2}),
    "host multibinary actor_critic": ("user_environments:switches", "actor_critic", SEGMENTS),
    "recorded discrete off_policy": (
        "jax:CartPole-v1",
        "off_policy",
        RECORDED | {"imitation_iterations": 2, "seeds": 2},
    ),
    "recorded box clone": ("Pendulum-v1", "clone", RECORDED),
}
TEACHERS = {
    "recorded discrete off_policy": "compiled discrete ppo",
    "recorded box clone": "host box ppo",
}
"""For each case that learns from recorded episodes, the case whose run records them."""


def fingerprint() -> dict[str, str]:
    """Return everything that affects rounding: the package versions and the processor."""
    found = {name: version(name) for name in ("jax", "jaxlib", "numpy", "optax", "gymnasium")}
    found["python"] = ".".join(platform.python_version_tuple()[:2])
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), platform.processor())
    model = next((line.partition(":")[2] for line in lines if line.startswith("model name")), platform.machine())
    return found | {"processor": model.strip(), "features": " ".join(sorted(flags.split()))}


def train_all(folder: Path, chosen: Sequence[str] = tuple(CASES)) -> dict[str, Any]:
    """Train the chosen cases; return their facts by name."""
    done: dict[str, Any] = {}
    for name in chosen:
        train_case(name, folder, done)
    return {name: facts_of(run) for name, run in done.items()}


def train_case(name: str, folder: Path, done: dict[str, Any]) -> Any:
    """Return the run of a case from `done`. If it is missing, train it first, along with any run it learns from."""
    import upslope

    if name not in done:
        environment, algorithm, settings = CASES[name]
        settings = SMALL | settings
        if name in TEACHERS:
            teacher = train_case(TEACHERS[name], folder, done).path
            settings |= {"data": str(upslope.record(teacher, episodes=6, output=folder / f"{teacher.name}.npz"))}
        done[name] = upslope.train(environment, algorithm, folder=folder, name=name.replace(" ", "-"), **settings)
    return done[name]


def facts_of(run: Any) -> dict[str, Any]:
    """Return the metric rows of a run without their time columns, and the final parameters of every seed."""
    rows = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in run.metrics()]
    parameters = [parameters_of(run.load(seed=seed, checkpoint="last")) for seed in run.seeds]
    return {"rows": rows, "parameters": np.concatenate(parameters)}


def parameters_of(policy: Any) -> np.ndarray:
    """Flatten policy, log σ, critic and normalisers into one vector that does not depend on the agent's structure."""
    agent, model = policy.agent, policy.agent.model
    seen = agent.normaliser or RunningStatistics.start((policy.encoder.num_features,))
    parts = [*model.actor.network.weights, *model.actor.network.biases, model.actor.log_std]
    parts += [*model.critic.weights, *model.critic.biases, *seen, *agent.return_statistics]
    return np.concatenate([np.ravel(np.asarray(x, np.float32)) for x in parts])


def save(found: dict[str, Any], elsewhere: dict[str, Any], path: Path = STORED, made_on: Any = None) -> None:
    """Write all results; `elsewhere` gives, for each case, how many leading rows agree on other machines."""
    arrays = {f"parameters/{name}": facts["parameters"] for name, facts in found.items()}
    rows = {name: facts["rows"] for name, facts in found.items()}
    meta = json.dumps({"fingerprint": made_on or fingerprint(), "rows": rows, "elsewhere": elsewhere})
    np.savez_compressed(path, meta=np.asarray(meta), **arrays)


def stored(path: Path = STORED) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the facts of each case, and the metadata with `fingerprint` and `elsewhere`."""
    with np.load(path) as archive:
        meta = json.loads(str(archive["meta"][()]))
        facts = {
            name: {"rows": rows, "parameters": archive[f"parameters/{name}"]} for name, rows in meta["rows"].items()
        }
    return facts, meta


TOLERANCE = 1e-4
"""The largest |a − b| / (1 + |b|) allowed between two machines that took the same actions (2e-6 was measured)."""


def distances(found: dict[str, Any], expected: dict[str, Any]) -> list[float]:
    """Return the largest |a − b| / (1 + |b|) in each expected row, or infinity if the row or a column is missing."""
    gaps = [float("inf")] * len(expected["rows"])
    for place, (mine, theirs) in enumerate(zip(found["rows"], expected["rows"], strict=False)):
        if set(theirs) <= set(mine):  # a metric may be added, but none may be missing
            values = np.asarray([[mine[k], theirs[k]] for k in theirs if isinstance(theirs[k], int | float)], float)
            gaps[place] = float(np.max(np.abs(values[:, 0] - values[:, 1]) / (1 + np.abs(values[:, 1]))))
    return gaps


def num_agreeing(found: dict[str, Any], expected: dict[str, Any]) -> int:
    """Count the leading rows that agree within the tolerance."""
    return next((n for n, gap in enumerate(distances(found, expected)) if gap > TOLERANCE), len(expected["rows"]))


def main() -> None:
    """Store the runs or, with --tolerance, how many rows agree when a narrower instruction set is used."""
    sys.path.insert(0, str(Path(__file__).parent))
    if "--compare" in sys.argv:
        with tempfile.TemporaryDirectory() as folder:
            found, (expected, _) = train_all(Path(folder)), stored()
        print(json.dumps({name: num_agreeing(found[name], expected[name]) for name in found}))
        return
    if "--tolerance" in sys.argv:
        narrower = {"XLA_FLAGS": f"{FLAGS} --xla_cpu_max_isa=AVX", "NPY_DISABLE_CPU_FEATURES": "AVX512F"}
        command = [sys.executable, __file__, "--compare"]
        answer = subprocess.run(command, env=os.environ | narrower, capture_output=True, text=True, check=True)
        agreeing = json.loads(answer.stdout.splitlines()[-1])
        found, meta = stored()
        save(found, agreeing, made_on=meta["fingerprint"])
        print(json.dumps({name: f"{agreeing[name]} of {len(found[name]['rows'])}" for name in found}, indent=1))
        return
    path = Path(sys.argv[sys.argv.index("--to") + 1]) if "--to" in sys.argv else STORED
    chosen = sys.argv[sys.argv.index("--only") + 1 :] if "--only" in sys.argv else tuple(CASES)
    with tempfile.TemporaryDirectory() as folder:
        save(train_all(Path(folder), chosen), dict.fromkeys(CASES, 0), path)


if __name__ == "__main__":
    main()
