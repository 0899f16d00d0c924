"""The runs of `benchmarks/doctor_field.py`, healthy and with planted faults, and the code that trains them.

A planted fault counts only if it did harm. `harm.json` in each run holds the returns of its final agents and of
untrained agents. These agents are evaluated with intact rewards and episode ends, but faults in observations and
actions stay in place, since a user would have them too. The healthy twin of a run has the same environment, settings
and seeds but no fault. A fault did harm if it cost the run more than the share `LOST` of what its twin gained over
untrained agents, and more than two standard errors.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
from doctor_bank import Planting, Shared, SharedHost, collect
from doctor_field_worlds import FIELD_SOUND, OF_REWARDS_AND_ENDS, WORLDS, HostPlanted, Planted, World
from doctor_planting import ESTIMATORS, ROLLOUTS, Now, PlantedClip, PlantedGAE

import upslope
from upslope.config.task import model_of
from upslope.engines import selection
from upslope.learning import iteration
from upslope.learning.collect import collect_episodes
from upslope.models.agent import initialise_agents
from upslope.runs.directory import RunDirectory
from upslope.runs.policy import Policy, load_agents, spaces_of

LOST = 0.25
NUMBERS = {"algorithm", "preset", "seeds", "seed", "learning_rate", "gamma", "entropy_coefficient"}
"""Settings that do not require a separate compiled program, because they are the same in all runs or are arguments of
the program."""
PLAYED = 64
"""Number of episodes in which each seed's agent is evaluated. `HOST_PLAYED` is the number for environments on the
host."""
HOST_PLAYED = 24
STOPPED = 0.35
"""The share of the budget after which the runs named "stopped early" are cut off."""


@dataclass(frozen=True)
class Fault:
    """A kind of fault, and the cause that a diagnosis should report."""

    where: str
    """Where the fault is: "environment", "settings" or "code"."""
    cause: str
    plant: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    algorithm: str = "ppo"
    unlimited: bool = False


def of_environment(cause: str, unlimited: bool = False, **plant: float) -> Fault:
    return Fault("environment", cause, plant, unlimited=unlimited)


def of_settings(cause: str, algorithm: str = "ppo", plant: dict[str, float] | None = None, **settings: Any) -> Fault:
    return Fault("settings", cause, plant or {}, settings, algorithm)


def of_estimator(cause: str, name: str) -> Fault:
    return Fault("code", cause, {"estimator": float(ESTIMATORS.index(name))})


def of_rollout(cause: str, name: str) -> Fault:
    return Fault("code", cause, {"rollout": float(ROLLOUTS.index(name))})


FAULTS: dict[str, Fault] = {
    "observations × 1000": of_environment("observations_unscaled", observe_scale=1000.0),
    "observations × 300": of_environment("observations_unscaled", observe_scale=300.0),
    "observations + 100": of_environment("observations_unscaled", observe_shift=100.0),
    "observations + 400": of_environment("observations_unscaled", observe_shift=400.0),
    "observations × 1e-4": of_environment("observations_unscaled", observe_scale=1e-4),
    "observations × 3e-4": of_environment("observations_unscaled", observe_scale=3e-4),
    "observations all zero": of_environment("observations_uninformative", observe_scale=0.0),
    "observations of the reset": of_environment("observations_uninformative", stale=1.0),
    "rewards × 1e4": of_environment("rewards_unscaled", pay_scale=1e4),
    "rewards × 1e5": of_environment("rewards_unscaled", pay_scale=1e5),
    "rewards all zero": of_environment("no_reward_signal", pay_scale=0.0),
    "reward always −1": of_environment("no_reward_signal", pay_always=-1.0),
    "reward always 1": of_environment("no_reward_signal", pay_always=1.0),
    "reward is noise": of_environment("reward_noise", pay_noise=30.0),
    "reward is much noise": of_environment("reward_noise", pay_noise=200.0),
    "actions are ignored": of_environment("actions_without_effect", random_actions=1.0),
    "actions × 0.001": of_environment("actions_without_effect", act_scale=0.001),
    "over after 12 steps": of_environment("limit_as_termination", over_at=12.0),
    "over after 25 steps": of_environment("limit_as_termination", over_at=25.0),
    "never over": of_environment("episodes_never_end", unlimited=True, never_over=1.0),
    "over at once": of_environment("episodes_end_at_once", over_at=1.0),
    "fake rows": of_environment("fake_rows", fake_row=1.0),
    "learning rate 1": of_settings("update_too_large", learning_rate=1.0),
    "learning rate 0.3": of_settings("update_too_large", learning_rate=0.3),
    "learning rate 0.1": of_settings("update_too_large", learning_rate=0.1),
    "learning rate 1e-6": of_settings("update_too_small", learning_rate=1e-6),
    "learning rate 1e-7": of_settings("update_too_small", learning_rate=1e-7),
    "ε 1e-5": of_settings("update_too_small", plant={"epsilon": 1e-5}, epsilon=1e-5),
    "gradients clipped at 1e-9": of_settings("update_too_small", max_grad_norm=1e-9),
    "KL limit 1e-8": of_settings("update_too_small", target_kl=1e-8),
    "KL penalty 1e5": of_settings("update_too_small", "ppo_kl_fixed", beta=1e5),
    "entropy bonus 2": of_settings("entropy_dominates", entropy_coefficient=2.0),
    "entropy bonus 0.7": of_settings("entropy_dominates", entropy_coefficient=0.7),
    "γ 0.1": of_settings("horizon_too_short", gamma=0.1),
    "γ 0.3": of_settings("horizon_too_short", gamma=0.3),
    "σ e³": of_settings("actions_clipped", log_std_init=3.0),
    "σ e⁻⁶": of_settings("no_exploration", log_std_init=-6.0),
    "four samples a step": of_settings("batch_too_small", num_envs=1, rollout_steps=4, minibatches=1),
    "one sample a step": of_settings("batch_too_small", num_envs=1, rollout_steps=1, minibatches=1, steps=8_000),
    "goal never found": of_settings("no_reward_signal"),
    "bootstraps past death": of_estimator("ends_ignored", "bootstraps"),
    "leaks across resets": of_estimator("ends_ignored", "leaks"),
    "no bootstrap at limits": of_estimator("truncation_not_bootstrapped", "limit is death"),
    "return not propagated": of_estimator("return_not_propagated", "one reward"),
    "weight of the wrong sign": of_estimator("credit_inconsistent", "sign"),
    "weight five steps late": of_estimator("credit_inconsistent", "late"),
    "target without V": of_estimator("credit_inconsistent", "target without value"),
    "weight always zero": of_estimator("no_policy_signal", "zero"),
    "loss of the wrong sign": Fault("code", "objective_descends", {"loss_factor": -1.0}),
    "loss without gradient": Fault("code", "no_policy_signal", {"loss_factor": 0.0}),
    "log-probabilities of others": of_rollout("log_prob_mismatch", "log_prob"),
    "clipped actions stored": of_rollout("log_prob_mismatch", "cut actions"),
    "successor is the next reset": of_rollout("reset_as_successor", "reset successor"),
    "observations two steps late": of_rollout("rows_misaligned", "late observation"),
    "ends are not recorded": of_rollout("ends_not_recorded", "no ends"),
}
PLANTED: dict[str, tuple[str, ...]] = {
    "cartpole": (
        "observations × 300", "observations × 1e-4", "observations of the reset", "over after 25 steps", "never over",
        "actions are ignored", "learning rate 1", "gradients clipped at 1e-9", "four samples a step", "fake rows",
        "observations two steps late", "weight five steps late", "one sample a step",
    ),
    "pendulum": (
        "reward always −1", "actions × 0.001", "reward is much noise", "learning rate 0.1",
        "σ e⁻⁶", "no bootstrap at limits", "clipped actions stored", "γ 0.1",
    ),
    "catch": (
        "observations × 3e-4", "observations + 100", "rewards all zero", "reward is noise", "actions are ignored",
        "observations of the reset", "learning rate 0.3", "learning rate 1e-7", "entropy bonus 2",
        "weight of the wrong sign", "bootstraps past death", "return not propagated",
    ),
    "frozen lake": ("rewards all zero", "learning rate 1"),
    "empty room": ("observations all zero", "actions are ignored", "over at once", "loss of the wrong sign"),
    "light mass": (
        "observations × 1000", "observations × 1e-4", "actions are ignored", "reward always 1", "reward is noise",
        "learning rate 1", "σ e³", "loss without gradient",
    ),
    "pushed mass": (
        "observations + 400", "rewards × 1e5", "actions are ignored", "observations of the reset", "ε 1e-5",
        "learning rate 0.1", "weight always zero", "target without V", "over after 12 steps",
    ),
    "corridor": ("actions are ignored", "over after 12 steps", "learning rate 1e-6", "loss of the wrong sign"),
    "gridworld": (
        "observations all zero", "observations of the reset", "observations × 1e-4", "rewards all zero",
        "reward is noise", "actions are ignored", "over at once", "learning rate 1", "learning rate 1e-7",
        "entropy bonus 2", "four samples a step", "weight of the wrong sign", "loss of the wrong sign",
        "log-probabilities of others",
    ),
    "inverted pendulum": (
        "observations all zero", "rewards all zero", "actions × 0.001", "actions are ignored", "over after 12 steps",
        "σ e³", "weight of the wrong sign", "clipped actions stored",
    ),
    "deep sea": ("rewards all zero", "observations all zero", "actions are ignored", "learning rate 1e-7",
                 "loss of the wrong sign"),
    "discounting chain": ("rewards all zero", "actions are ignored", "learning rate 1e-7"),
    "point robot": (
        "observations + 400", "rewards all zero", "reward is much noise", "actions × 0.001", "reward always −1",
        "σ e⁻⁶", "γ 0.1", "learning rate 0.3", "return not propagated", "successor is the next reset",
    ),
    "two masses": (
        "observations × 1000", "observations × 1e-4", "reward is noise", "actions are ignored", "rewards × 1e5",
        "reward always −1", "learning rate 1", "σ e³", "target without V", "loss without gradient",
    ),
    "unstable": (
        "observations all zero", "actions × 0.001", "reward always 1", "observations + 100", "reward is much noise",
        "learning rate 1e-7", "σ e⁻⁶", "weight of the wrong sign", "log-probabilities of others",
    ),
    "thermostat": (
        "observations + 100", "observations × 3e-4", "rewards × 1e5", "rewards all zero", "actions are ignored",
        "learning rate 1", "ε 1e-5", "gradients clipped at 1e-9", "weight five steps late", "loss of the wrong sign",
    ),
    "inventory": (
        "reward is noise", "reward is much noise", "actions are ignored", "reward always −1", "KL limit 1e-8",
        "entropy bonus 2", "learning rate 0.3", "return not propagated", "weight always zero",
    ),
    "chase": (
        "observations of the reset", "observations × 1000", "observations + 400", "rewards × 1e4",
        "actions are ignored", "reward always 1", "one sample a step", "learning rate 1e-6",
        "observations two steps late", "no bootstrap at limits",
    ),
    "worn cart": (
        "observations all zero", "over at once", "over after 12 steps", "never over", "actions are ignored",
        "observations × 300", "fake rows", "learning rate 1", "bootstraps past death", "ends are not recorded",
    ),
}  # fmt: skip
"""Environment → the names of the faults planted in it."""
NEVER_LEARNED = ("goal never found",)
"""Faults that have no healthy twin. They count as harmful if every episode has the same return, since another policy
would earn more."""


@dataclass(frozen=True)
class Job:
    """One run of the bank."""

    world: World
    name: str
    cause: str
    where: str
    arguments: dict[str, Any]
    fault: Fault | None = None
    is_cut: bool = False

    @property
    def half(self) -> str:
        return self.world.half

    @property
    def is_dear(self) -> int:
        """The cost class of the run: 2 on the host, 1 if it needs its own compiled program, else 0. Cheap runs are
        trained first."""
        changed = {name for name, x in self.arguments.items() if x != self.world.settings.get(name)}
        is_shared = changed <= NUMBERS and self.arguments["algorithm"] == "ppo"
        is_shared &= not (self.fault and self.fault.unlimited)
        return 2 if not self.world.is_compiled else 0 if is_shared else 1


def jobs() -> Iterator[Job]:
    """Yield all runs: for each environment the healthy twin, then the other healthy runs, then those with planted
    faults."""
    for world in WORLDS.values():
        base = {"algorithm": "ppo", "preset": False, "seeds": world.seeds, **world.settings}
        if world.name not in GOAL_NEVER_FOUND:
            yield from healthy(world, base)
        else:
            yield Job(world, "goal never found", "no_reward_signal", "settings", base, FAULTS["goal never found"])
        for name in PLANTED.get(world.name, ()):
            fault = FAULTS[name]
            arguments = {**base, **fault.settings, "algorithm": fault.algorithm}
            yield Job(world, name, fault.cause, fault.where, arguments, fault)


GOAL_NEVER_FOUND = ("mountain car", "valley")


def healthy(world: World, base: dict[str, Any]) -> Iterator[Job]:
    """Yield an environment's healthy runs: unchanged, slow, stopped early, or with other seeds, settings or rungs."""
    rate = base["learning_rate"]
    for name, changes in {
        "as it is": {},
        "other seeds": {"seed": 40},
        "slow": {"seed": 20, "learning_rate": rate / 4},
        "stopped early": {"seed": 30},
        "far-sighted": {"seed": 60, "gamma": 0.98 if base.get("gamma") == 0.95 else 0.995},
        "another entropy bonus": {"seed": 70, "entropy_coefficient": 0.003},
    }.items():
        if world.half == "test" or name in ("as it is", "slow", "stopped early"):
            yield Job(world, name, "healthy", "", base | changes, is_cut=name == "stopped early")
    for rung in OTHER_RUNGS.get(world.name, ()):
        own = {name: base[name] for name in ("steps", "seeds", "preset", "gamma") if name in base}
        yield Job(world, rung, "healthy", "", own | {"algorithm": rung, "seed": 50})


OTHER_RUNGS: dict[str, tuple[str, ...]] = {
    "cue": ("actor_critic",), "frozen lake": ("reward_to_go",), "blackjack": ("a2c",), "thermostat": ("gae",),
    "two masses": ("ppo_kl",), "deep sea": ("reward_to_go",), "long cue": ("actor_critic",),
}  # fmt: skip
"""Environment → other rungs trained in it, with their default settings."""


def place(bank: Path, job: Job) -> Path:
    """Return the run directory of a job."""
    name = "".join(c if c.isalnum() or c in "+-." else "_" for c in job.name)
    return bank / job.half / f"{job.world.name.replace(' ', '_')}.{name}"


def train(bank: Path, chosen: list[Job], at_most: int) -> int:
    """Train up to `at_most` of the missing runs, and return how many were trained.

    The limit is needed because a process can hold only a limited number of compiled programs.
    """
    # Start JAX now, with a single device, so that seeds run one after another and programs stay small.
    jnp.zeros(()).block_until_ready()
    missing = [job for job in chosen if not (place(bank, job) / "harm.json").exists()]
    with (
        patch.object(selection, "CompiledEngine", Shared),
        patch.object(selection, "HostEngine", SharedHost),
        patch.object(iteration, "collect", collect),
    ):
        for job in missing[:at_most]:
            train_one(place(bank, job), job)
    return len(missing[:at_most])


def train_one(path: Path, job: Job) -> None:
    """Train a run, truncate it if it is to stop early, and evaluate its agents."""
    if path.exists():
        path.rename(path.with_name(f".{path.name}.broken.{len(list(path.parent.iterdir()))}"))
    plant = FIELD_SOUND | (job.fault.plant if job.fault else {})
    Now.plant = plant
    arguments = dict(job.arguments)
    if arguments["algorithm"] == "ppo":
        arguments |= {"estimator": PlantedGAE(), "objective": PlantedClip()}
    environment = environment_of(job.world, plant, bool(job.fault and job.fault.unlimited))
    try:
        upslope.train(environment, folder=path.parent, name=path.name, quiet=True, **arguments)
    except upslope.UpslopeError as error:
        print(f"{job.world.name}, {job.name}: {error}", flush=True)
    if job.is_cut:
        cut(path, STOPPED * job.arguments["steps"])
    found = harm_of(job, path) if (path / "last.npz").exists() or (path / "config.json").exists() else {}
    path.mkdir(parents=True, exist_ok=True)
    (path / "harm.json").write_text(json.dumps(found))


@cache
def compiled(name: str, unlimited: bool) -> Planted:
    """Return the environment with its planted faults. The object is cached because compiled programs are cached for
    each environment object."""
    return Planted(WORLDS[name].make(), unlimited)


def environment_of(world: World, plant: dict[str, float], unlimited: bool = False) -> Any:
    """Return the environment with its planted faults, compiled or on the host."""
    if world.is_compiled:
        return compiled(world.name, unlimited)
    create = world.make()

    def planted() -> Any:
        env = create()
        return HostPlanted(env.unwrapped if unlimited else env, plant)

    return planted


def cut(path: Path, last: float) -> None:
    """Remove from a run all rows after the step `last`."""
    rows = (path / "metrics.jsonl").read_text().splitlines()
    kept = [row for row in rows if json.loads(row)["step"] <= last]
    (path / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    head, *episodes = (path / "episodes.csv").read_text().splitlines()
    kept = [line for line in episodes if int(line.split(",")[0]) <= last]
    (path / "episodes.csv").write_text("\n".join([head, *kept]) + "\n")


def harm_of(job: Job, path: Path) -> dict[str, Any]:
    """Evaluate the final agents and untrained agents, and return the returns of all episodes."""
    directory = RunDirectory(path)
    config = directory.config()
    agents, _ = load_agents(directory, config, "last")
    spec = model_of(config, *spaces_of(directory))
    plant = FIELD_SOUND | {n: x for n, x in (job.fault.plant if job.fault else {}).items()
                           if n not in OF_REWARDS_AND_ENDS}  # fmt: skip
    trained = [jax.tree.map(lambda x, s=s: x[s], agents) for s in range(config.seeds)]
    fresh = initialise_agents(
        [jax.random.key(s) for s in config.seed_list()],
        spec,
        normalize_observations=config.normalize_observations,
        normalize_rewards=config.normalize_rewards,
    )
    play = partial(play_compiled if job.world.is_compiled else play_host, job.world, plant)
    return {"trained": [play(agent) for agent in trained], "untrained": [play(agent) for agent in fresh]}


PLAYS: dict[str, Any] = {}


def play_compiled(world: World, plant: dict[str, float], agent: Any) -> list[float]:
    """Let an agent play a compiled environment with sampled actions, and return the episodes' returns."""
    inner = compiled(world.name, False)
    if world.name not in PLAYS:

        def play(agent: Any, numbers: Any) -> Any:
            with Planting(numbers):
                assert inner.max_episode_steps is not None
                rollout, _ = collect_episodes(inner, agent, jax.random.key(7), PLAYED, inner.max_episode_steps)
            return jnp.sum(jnp.where(rollout.valid, rollout.reward, 0.0), axis=0)

        PLAYS[world.name] = jax.jit(play)
    numbers = {name: jnp.float32(x) for name, x in plant.items()}
    return [float(x) for x in PLAYS[world.name](agent, numbers)]


def play_host(world: World, plant: dict[str, float], agent: Any) -> list[float]:
    """Do the same as `play_compiled` on the host, with all episodes in parallel."""
    create = environment_of(world, plant)
    envs = [create() for _ in range(HOST_PLAYED)]
    policy = Policy(agent, agent.model.encoder, 0, "last")
    seen = np.stack([env.reset(seed=1000 + i)[0] for i, env in enumerate(envs)])
    returns, going = np.zeros(len(envs)), np.ones(len(envs), bool)
    for _ in range(1000):
        actions = policy(seen, deterministic=False)
        for i in np.flatnonzero(going):
            seen[i], reward, terminated, truncated, _ = envs[i].step(actions[i])
            returns[i] += reward
            going[i] = not (terminated or truncated)
        if not going.any():
            break
    for env in envs:
        env.close()
    return returns.tolist()


def did_harm(bank: Path, job: Job) -> bool:
    """Decide whether a planted fault harmed its run, relative to what its twin gained."""
    mine = harm_at(place(bank, job))
    if job.name in NEVER_LEARNED:
        scores = RunDirectory(place(bank, job)).episodes()["return"]
        return len(scores) > 0 and float(np.ptp(scores)) == 0
    twin = next(other for other in jobs() if other.world == job.world and other.name == "as it is")
    theirs = harm_at(place(bank, twin))
    if not mine or not theirs:
        return False
    gained = np.mean(theirs["trained"]) - np.mean(theirs["untrained"])
    lost = np.mean(theirs["trained"]) - np.mean(mine["trained"])
    own = np.hypot(error_of(theirs["trained"]), error_of(theirs["untrained"]))
    return bool(gained > 2 * own and lost > LOST * gained and lost > 2 * error_of(theirs["trained"], mine["trained"]))


def error_of(*returns: list[list[float]]) -> float:
    """Return the standard error of a mean, or of the difference between two means."""
    return float(np.sqrt(sum(np.var(x) / np.size(x) for x in returns)))


def harm_at(path: Path) -> dict[str, Any]:
    """Read the stored result of `harm_of`."""
    return json.loads((path / "harm.json").read_text())
