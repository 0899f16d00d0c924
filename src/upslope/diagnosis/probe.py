"""The probe ladder: test whether an algorithm, estimator or objective solves environments with known answers.

A failure on a probe has only one possible cause, so the first failure shows where the mistake is. Probes with the same
spaces share one compiled program, so the ladder takes only seconds. The first five probes are from Jones (2021),
Debugging RL, Without the Agonizing Pain.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from upslope.config.config import Config, configure
from upslope.config.ladder import ALGORITHMS
from upslope.config.task import Parts, estimator_of, model_of, objective_of, task_of
from upslope.core.estimators import Estimator
from upslope.core.messages import PREFIX
from upslope.core.objectives import Objective, PolicyGradient
from upslope.core.space_parts import has_box
from upslope.core.types import Transition
from upslope.environments.base import CompiledEnvironment
from upslope.environments.compiled import COMPILED
from upslope.environments.probes import CUE_LASTS, Probe
from upslope.errors import UpslopeError
from upslope.learning.devices import computing
from upslope.learning.health import RAW, unpack_health
from upslope.learning.iteration import QUICK, Task, initialise_all, iterate_many
from upslope.models.encoders import encoder_of
from upslope.models.heads import head_of
from upslope.models.model import has_memory

PROBES = {
    "constant": "the critic's loss, its optimiser, or the network",
    "observation": "how observations reach the critic",
    "delay": "the discount, the bootstrap, or the sum over time",
    "action": "the objective, the sign or the pairing of weights and actions",
    "both": "the pairing of observations and actions",
    "truncation": "truncation treated as termination: nothing is bootstrapped at the limit",
    "continuous": "the Gaussian's log-probability, or actions in the wrong units",
    "multidiscrete": "the log-probabilities of several heads",
    "multibinary": "the log-probabilities of several bits",
    "mask": "forbidden actions are taken, or learned from as if they were allowed",
    "memory": "the memory's carry: lost, not reset where an episode begins, or no gradient through it",
    "image": "how images reach a network, or images paired with other rows",
    "dict": "how the parts of an observation reach a network",
    "asymmetric": "which parts the policy and the critic read",
    "hybrid": "how an action with several parts is assembled or split, or its log-probability",
}
"""Maps each probe, from the simplest to the hardest, to the likely fault if it is the first to fail."""
GROUPS = (
    ("constant", "observation", "delay", "action", "both", "truncation"),
    ("continuous",),
    ("multidiscrete",),
    ("multibinary",),
    ("mask",),
    ("memory",),
    ("image",),
    ("dict",),
    ("asymmetric",),
    ("hybrid",),
)
"""Probes grouped by their spaces."""
NEEDS: dict[str, dict[str, Any]] = {
    # A linear recurrence remembers from the start, but a gated one must learn to. A rollout covers an episode.
    "memory": {"memory": "lru", "memory_size": 16, "learning_rate": 3e-3, "rollout_steps": 2 * (CUE_LASTS + 1)},
    "asymmetric": {"policy_reads": ("0",)},
}
"""Settings without which a probe cannot be solved."""
FITTING = {
    "memory": "a model with memory",
    "asymmetric": "two separate networks of upslope's own",
}
"""Maps each probe that some models cannot solve to what it needs. It is skipped if the model lacks this."""
FEWER_STEPS = {"memory": 20_000, "image": 20_000}
"""Number of steps that suffices for probes with expensive steps if each batch is used several times."""
SMALLER_BATCH = {"memory": {"num_envs": 4}}
"""Settings for probes with expensive steps if each batch is used once."""
GAMMA = 0.9
STEPS, SEEDS = 60_000, 3
LIMIT = 7
"""Step limit of `truncation`; the other probes terminate. The limit falls inside a rollout, not at its end."""
EXACT = 0.005
"""Tolerated error of targets at time limits, relative to the values; rounding errors are a thousand times smaller."""
FIRST = 64
"""Number of initial observations at which values and returns are compared."""


@dataclass(frozen=True)
class Probed:
    """The verdict of one probe."""

    name: str
    return_gap: float
    """Best return − deterministic return, for the worst seed. If it is below 0, the policy earned more than allowed
    actions can earn."""
    best: float
    value_error: float | None
    """Largest |V(s_0) − V*(s_0)| over first observations and seeds; None without a critic, or if V is allowed to
    differ."""
    value: float
    """Magnitude of V*."""
    solved: bool
    meaning: str
    """The likely fault if this is the first probe to fail."""


@dataclass(frozen=True, eq=False)
class Several(CompiledEnvironment):
    """Several probes with the same spaces. `index`, an argument of the program, selects one."""

    probes: tuple[Probe, ...]
    index: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "observation_space", self.probes[0].observation_space)
        object.__setattr__(self, "action_space", self.probes[0].action_space)
        limits = (probe.max_episode_steps or 0 for probe in self.probes)
        object.__setattr__(self, "max_episode_steps", max(LIMIT, *limits))

    def reset(self, key: Any) -> tuple[Any, Any]:
        return jax.lax.switch(self.index, [probe.reset for probe in self.probes], key)

    def step(self, key: Any, state: Any, action: Any) -> tuple[Any, Transition]:
        return jax.lax.switch(self.index, [probe.step for probe in self.probes], key, state, action)

    def action_mask(self, state: Any) -> Any:
        return jax.lax.switch(self.index, [probe.action_mask for probe in self.probes], state)


def probe(
    algorithm: str = "ppo",
    *,
    estimator: Estimator | str | None = None,
    objective: Objective | str | None = None,
    seeds: int = SEEDS,
    steps: int = STEPS,
    only: Sequence[str] = (),
    **settings: Any,
) -> tuple[Probed, ...]:
    """Train on each probe, and compare the result with the exact answer.

    Args:
        algorithm: a rung of the ladder.
        estimator: the estimator (axis 1) to use instead of the rung's: a name, or an object, e.g. your own.
        objective: the objective (axis 2) to use instead of the rung's, given in the same way.
        only: names of the probes to run; by default all.
        settings: any field of `Config`, e.g. `hidden_sizes=(32,)`. Rewards and observations are not normalised.

    Raises:
        UpslopeError: a probe is unknown, or the algorithm learns from recorded data.
    """
    unknown = [name for name in only if name not in PROBES]
    if unknown:
        raise UpslopeError(f"There is no probe {', '.join(unknown)}. The probes are: {', '.join(PROBES)}.")
    if algorithm in ALGORITHMS and ALGORITHMS[algorithm].source == "recorded":
        raise UpslopeError(f"{algorithm} learns from recorded data, but a probe must be played. Choose another rung.")
    if settings.get("reference") is not None:
        raise UpslopeError("A probe is learned from scratch, so there is no reference policy. Omit --reference.")
    settings |= {role: x for role, x in (("estimator", estimator), ("objective", objective)) if isinstance(x, str)}
    config = configure("", algorithm, is_continuous=False, use_preset=False, **settings)
    axes = (
        estimator if isinstance(estimator, Estimator) else estimator_of(config),
        objective if isinstance(objective, Objective) else objective_of(config),
    )
    found: dict[str, Probed] = {}
    with computing(on_host=False):
        for group in GROUPS:
            names = [name for name in group if not only or name in only]
            if names:
                chosen = defaults(algorithm, *axes) | {"seeds": seeds} | budget(group[0], axes[1], steps) | settings
                found |= probe_group(group, names, algorithm, *axes, chosen)
    for name in only:
        if name not in found:
            raise UpslopeError(f"The probe {name} needs {FITTING[name]}, and this model does not fit. Omit the probe.")
    return tuple(found[name] for name in PROBES if name in found)


def fits(name: str, config: Config, world: Several) -> bool:
    """Whether a probe fits the model that a config names."""
    if name == "asymmetric":
        return config.model == Config.model and not config.shared_trunk
    if name == "memory" and config.model != Config.model:
        encoder, head = encoder_of(world.observation_space, name), head_of(world.action_space, name)
        return has_memory(model_of(config, encoder, head).build(jax.random.key(0)))
    return True


def probe_group(
    group: Sequence[str],
    names: Sequence[str],
    algorithm: str,
    estimator: Estimator,
    objective: Objective,
    settings: dict[str, Any],
) -> dict[str, Probed]:
    """Train and judge the probes of one group, with all seeds, in one program."""
    probes: tuple[Any, ...] = tuple(COMPILED[f"probe/{name}"]() for name in group)
    world, label = Several(probes, 0), f"jax:probe/{group[0]}"
    is_box = has_box(world.action_space)
    config = configure(label, algorithm, is_continuous=is_box, use_preset=False, **settings)
    if not fits(group[0], config, world):
        return {}
    task = task_of(config, world, Parts(estimator, objective))
    limit = world.max_episode_steps or LIMIT
    iterations = max(
        1, config.steps // (task.num_envs * (limit if task.estimator.whole_episodes else task.rollout_steps))
    )
    if task.estimator.whole_episodes:
        iterations *= limit  # episodes of most probes have one step; iterations after the budget cost nothing
    indices = [group.index(name) for name in names]
    states = [
        initialise_all(replace(task, environment=Several(probes, index)), config.seed_list()) for index in indices
    ]
    stacked = jax.tree.map(lambda *x: jnp.concatenate(x), *states)
    index = jnp.repeat(jnp.asarray(indices, jnp.int32), config.seeds)
    judged = jax.jit(partial(train_and_judge, task, probes, iterations), compiler_options=QUICK)(index, stacked)
    *judged, health = (np.asarray(x).reshape(len(names), config.seeds, *x.shape[1:]) for x in judged)
    return {
        name: verdict(name, *arrays, at_limits=largest_error(raw), task=task)
        for name, *arrays, raw in zip(names, *judged, health, strict=True)
    }


def largest_error(health: np.ndarray) -> float:
    """The largest deviation of targets at time limits from r + γ V(s'), over the health metrics of all iterations."""
    errors = unpack_health({RAW: health})[f"{PREFIX}truncation_error"]
    return float(np.max(errors, initial=0.0, where=np.isfinite(errors)))


def train_and_judge(task: Task, probes: tuple[Probe, ...], iterations: int, index: Any, states: Any) -> Any:
    """Train each run, and return, for each of its first observations, V(s_0), V*(s_0), the deterministic policy's
    return and the best return."""

    def one(run: tuple[Any, Any]) -> tuple[Any, ...]:
        world = Several(probes, run[0])
        state, (metrics, *_) = iterate_many(replace(task, environment=world), run[1], iterations)
        agent = state.learner.agent
        first = jax.vmap(world.reset)(jax.random.split(jax.random.key(7), FIRST))
        exact = jax.lax.switch(run[0], [partial(probe.exact_value, gamma=GAMMA) for probe in probes], first[0])
        best = jax.lax.switch(run[0], [partial(best_return, probe) for probe in probes], first[0])
        return values_of(agent, first[1]), exact, returns_of(world, agent, *first), best, metrics[RAW]

    return jax.lax.map(one, (index, states))


def best_return(probe: Probe, state: Any) -> Any:
    """The best undiscounted return from each first state."""
    if probe.watched is not None:  # it never terminates, so undiscounted values are infinite
        return jnp.full(FIRST, probe.watched)
    return probe.exact_value(state, 1.0)


def values_of(agent: Any, observation: Any) -> Any:
    """V(s_0) at each first observation, in the environment's units of reward."""
    if not has_memory(agent.model):
        return agent.value(observation) / agent.reward_scale()
    outputs, _ = agent.step(observation, agent.model.start(FIRST), jnp.ones(FIRST, bool))
    return outputs.value / agent.reward_scale()


def returns_of(world: Several, agent: Any, state: Any, observation: Any) -> Any:
    """Play the deterministic policy from each first observation, and return its undiscounted return."""

    def step(carry: Any, _: None) -> Any:
        state, observation, memory, fresh, going, total = carry
        policy, memory = agent.act(observation, memory, fresh, jax.vmap(world.action_mask)(state))
        action = agent.head.to_compiled(policy.mode())
        state, transition = jax.vmap(world.step, (None, 0, 0))(jax.random.key(0), state, action)
        total += jnp.where(going, transition.reward, 0.0)
        return (
            state,
            transition.observation,
            memory,
            jnp.zeros_like(fresh),
            going & ~transition.terminated,
            total,
        ), None

    begun = jnp.ones(FIRST, bool)
    start = (state, observation, agent.model.start(FIRST), begun, begun, jnp.zeros(FIRST))
    return jax.lax.scan(step, start, length=world.max_episode_steps)[0][-1]


def verdict(name: str, value: Any, exact: Any, returns: Any, best: Any, at_limits: float, task: Task) -> Probed:
    """Decide whether a probe is solved: each seed's return must be within 5 % of the best, the critic's values within
    10 % of the exact ones, and, if the estimator bootstraps, targets at time limits must be exactly r + γ V(s')."""
    highest = float(best.mean())
    gaps = best.mean(axis=1) - returns.mean(axis=1)
    gap = float(gaps[np.argmax(np.abs(gaps))])
    # R_t ends at the time limit, so a critic that learns from whole episodes rightly expects less there.
    is_judged = task.update.needs_critic and not (task.estimator.whole_episodes and name == "truncation")
    error, size = float(np.max(np.abs(value - exact))) if is_judged else None, float(np.max(np.abs(exact)))
    solved = abs(gap) < 0.05 * max(1.0, abs(highest)) and (error is None or error < 0.1 * max(1.0, size))
    meaning = PROBES[name]
    if task.update.needs_critic and not task.estimator.whole_episodes and at_limits > EXACT:
        solved = False
        meaning = "targets at time limits are not r + γ V(s'): they use another row's value, or an uncut sum"
    return Probed(name, gap, highest, error, size, bool(solved), meaning)


def defaults(algorithm: str, estimator: Estimator, objective: Objective) -> dict[str, Any]:
    """Settings under which every rung solves every probe.

    The learning rate is 3e-3 for one step per batch with a critic, and 1e-3 if weights are whole returns or a batch is
    reused. Neither kind of update solves every probe at the other's rate: with raw returns, the value of a bit settles
    too early; with a reused batch, `continuous` is unlearned after being solved, since σ shrinks and a step of Adam
    moves the mean by many σ.
    """
    whole, is_one_step = estimator.whole_episodes, isinstance(objective, PolicyGradient)
    chosen: dict[str, Any] = {"learning_rate": 3e-3 if is_one_step and not whole else 1e-3, "num_envs": 16}
    chosen |= {"gamma": GAMMA}
    if algorithm != "a2c" and not whole:
        chosen["rollout_steps"] = 8
    return chosen if is_one_step else chosen | {"minibatches": 4}


def budget(name: str, objective: Objective, steps: int) -> dict[str, Any]:
    """The number of steps and the other settings for a group of probes, looked up by its first probe."""
    if isinstance(objective, PolicyGradient):
        return {"steps": steps} | NEEDS.get(name, {}) | SMALLER_BATCH.get(name, {})
    return {"steps": min(steps, FEWER_STEPS.get(name, steps))} | NEEDS.get(name, {})


def to_json(found: Sequence[Probed]) -> dict[str, Any]:
    """Convert to the output of `--json`."""
    return {"solved": all(p.solved for p in found), "probes": [asdict(p) for p in found]}
