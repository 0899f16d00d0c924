"""Collect rollouts from Gymnasium environments on the host, in the same format as those from compiled environments."""

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from upslope.core.arrays import copied, in_seeds, raw
from upslope.core.grouping import in_groups
from upslope.core.their_folder import TheirFolder
from upslope.core.types import Rollout, Successors, host_rollout
from upslope.models.model import Memory, restarted

AHEAD = 64
"""Number of steps whose random noise is drawn in one call."""
LARGE = 4096
"""Observations of this many bytes or more are not stored twice."""
STEPS_PER_SUCCESSOR = 16
"""Space is reserved for one successor per this many steps of a seed, and is doubled until the successors fit."""
BEYOND = np.iinfo(np.int32).max
"""The index that marks padding. It lies beyond the end of every rollout."""


@runtime_checkable
class Steppable(Protocol):
    """The interface of S × N environments: `HostColumns`, `BatchedColumns` of vector environments, or `SlicedColumns`
    in other processes."""

    shape: tuple[int, int]

    @property
    def observation(self) -> Any:
        """The current observation of every environment, [S, N, …]."""
        ...

    @property
    def flat(self) -> Any:
        """`observation` as [S·N, …]; a view of the same arrays."""
        ...

    @property
    def mask(self) -> np.ndarray | None:
        """The currently allowed choices of every environment [S·N, M]; None if nothing is ever forbidden."""
        ...

    @property
    def episodes(self) -> Sequence[Any]:
        """The current episodes [S·N], each with `episode_return`, `length` and, at its end, `info`."""
        ...

    @property
    def folder(self) -> TheirFolder:
        """The environments' working directory."""
        ...

    @property
    def acting(self) -> np.ndarray:
        """The rows whose next step is a transition. The next step of all other rows only resets them."""
        ...

    def begin(self, rows: Sequence[int], *, afresh: bool = False) -> None:
        """Begin a new episode in each of the rows. With `afresh`, an environment that resets itself is reset too."""
        ...

    def step(self, action: np.ndarray, rows: np.ndarray, next_observation: Any) -> tuple[np.ndarray, ...]:
        """Step the rows, and return reward, terminated and truncated."""
        ...


class EpisodeEnds(NamedTuple):
    """The finished episodes of a rollout.

    The seed index, step within the rollout, column within the seed, return and length each have shape [E]. The numbers
    from info under K keys have shape [E, K]."""

    seed_index: np.ndarray
    t: np.ndarray
    column: np.ndarray
    episode_return: np.ndarray
    length: np.ndarray
    info: np.ndarray


class EndedRows(NamedTuple):
    """The rows whose episode ended at a given step, with their last observations."""

    rows: np.ndarray
    observation: Any


class HostRollout:
    """A growing rollout in NumPy, with a list per field and an entry [S·N, …] per step.

    If it is `compact`, the true successors of large observations are stored only if the next row does not contain them.
    """

    def __init__(self, columns: Steppable, *, compact: bool):
        self.shape = columns.shape
        self.facts: dict[str, list[Any]] = {name: [] for name in Rollout._fields}
        self.ends: list[EndedRows] | None = [] if compact and size_of_one(columns.flat) >= LARGE else None
        self.newest: Any = None
        """The successors of the last step [S·N, …], if `ends` are kept."""

    def write(self, **facts: Any) -> None:
        """Add a step."""
        if self.ends is not None:
            over = np.flatnonzero(facts["terminated"] | facts["truncated"])
            successor, facts["next_observation"] = facts["next_observation"], None
            self.ends.append(EndedRows(over, jax.tree.map(lambda x: x[over], successor)))
            self.newest = successor
        for name, value in facts.items():
            self.facts[name].append(value)

    def rollout(self) -> Rollout:
        """Return all steps stacked, [S, T, N, …]."""
        fields = {name: self.stacked(steps) for name, steps in self.facts.items()}
        if self.ends is not None:
            fields["next_observation"] = successors_of(self.ends, self.newest, self.shape)
        return host_rollout(fields)

    def stacked(self, steps: list[Any]) -> Any:
        """Stack the steps of a field, array by array. The list is emptied so that large observations are not held in
        memory twice."""
        if isinstance(steps[0], np.ndarray):  # the common case, which avoids the cost of a tree traversal
            return self.in_one(steps)
        leaves, structure = [jax.tree.leaves(step) for step in steps], jax.tree.structure(steps[0])
        steps.clear()
        return structure.unflatten([self.in_one([step.pop(0) for step in leaves]) for _ in range(structure.num_leaves)])

    def in_one(self, steps: list[np.ndarray]) -> np.ndarray:
        """Stack arrays [S·N, …] of T steps into [S, T, N, …]. The list is emptied."""
        if steps[0].nbytes < LARGE:
            stacked = np.array(steps)
        else:
            stacked = np.empty((len(steps), *steps[0].shape), steps[0].dtype)
            for t in range(len(steps)):
                stacked[t] = steps[t]
                steps[t] = NOTHING
        steps.clear()
        return stacked.reshape(len(stacked), *self.shape, *stacked.shape[2:]).swapaxes(0, 1)


NOTHING = np.zeros(0)
"""Replaces an array that has been copied."""


def size_of_one(flat: Any) -> int:
    """Return the size in bytes of a single observation, given the observations [S·N, …]."""
    return sum(x.nbytes // max(len(x), 1) for x in jax.tree.leaves(flat))


def successors_of(ends: list[EndedRows], newest: Any, shape: tuple[int, int]) -> Successors:
    """Return the successors [S, K, …] that are not the next step's observation; `newest` holds those of the last step.
    Seeds with fewer than K successors are padded."""
    num_seeds, num_envs = shape
    rest = np.setdiff1d(np.arange(num_seeds * num_envs), ends[-1].rows)
    at_last = EndedRows(rest, jax.tree.map(lambda x: x[rest], newest))
    kept = [*enumerate(ends), (len(ends) - 1, at_last)]
    t = np.repeat([t for t, _ in kept], [len(one.rows) for _, one in kept])
    rows = np.concatenate([one.rows for _, one in kept])
    seed = rows // num_envs

    def by_seed(x: np.ndarray, padding: int) -> np.ndarray:
        return in_groups(x, seed, num_seeds, padding)

    observation = jax.tree.map(lambda *parts: by_seed(np.concatenate(parts), 0), *[one.observation for _, one in kept])
    return Successors(observation, by_seed((t * num_envs + rows % num_envs).astype(np.int32), BEYOND))


def fitted(stored: Successors, size: int) -> Successors:
    """Pad one seed's successors in a rollout of `size` steps to one of a few values of K, so that few programs are
    compiled.

    The result does not depend on the other seeds."""
    count, least = int(np.sum(stored.place != BEYOND)), max(1, size // STEPS_PER_SUCCESSOR)
    capacity = least << max(0, (-(-count // least) - 1).bit_length())

    def one(x: np.ndarray, padding: int) -> np.ndarray:
        more = np.full((max(0, capacity - len(x)), *x.shape[1:]), padding, x.dtype)
        return np.concatenate([x[:capacity], more])

    return Successors(jax.tree.map(lambda x: one(x, 0), stored.observation), one(np.asarray(stored.place), BEYOND))


class Act:
    """Sample a_t ~ π(·|s_t) for every seed and environment, and compute log π(a_t|s_t)."""

    def __init__(self) -> None:
        self.step = jax.jit(act_with_memory)
        self.draws: dict[Any, Any] = {}
        """The programs that draw noise, keyed by the number of steps and the shapes of observations."""

    def bind(
        self,
        agents: Any,
        keys: Any,
        memory: Memory | None = None,
        ahead: int = AHEAD,
        noise: np.ndarray | None = None,
    ) -> "Choose":
        """Bind agents [S], keys [S] or their data and, if the model has a memory, the memory of every column [S, N, …].

        The noise of `ahead` steps is drawn in one call. The `noise` of the first steps may be passed instead."""
        data = np.asarray(raw(keys))
        if memory is None or acts_here(agents, memory):
            return ActHere(self, agents, data, memory, ahead, noise)
        return ActCompiled(self, jax.device_put(agents), data, memory)

    def draw_all(self, agents: Any, keys: np.ndarray, observation: Any, ahead: int) -> np.ndarray:
        """Draw the noise of the first `ahead` steps of several iterations, [I, ahead, S, N, …], given the data of their
        keys [I, S, W]."""
        return self.drawn(agents, observation, ahead, keys.shape[:1])(keys, 0)

    def draw(self, agents: Any, keys: np.ndarray, observation: Any, t: int, ahead: int) -> np.ndarray:
        """Draw the noise of the actions at t, t + 1, …, [ahead, S, N, …]."""
        return self.drawn(agents, observation, ahead)(keys, t)

    def drawn(
        self, agents: Any, observation: Any, ahead: int, batch: tuple[int, ...] = ()
    ) -> Callable[..., np.ndarray]:
        """Return the program that draws noise from the data of keys [*batch, S, W] and t. Only the shapes of agents and
        observations matter, so their values are not inputs of the program."""
        shapes = (batch, ahead, *(x.shape for x in jax.tree.leaves(observation)))
        if shapes not in self.draws:
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (agents, observation))
            draw = partial(draw_noise, *like, ahead)
            program = jax.jit(jax.vmap(draw, (0, None)) if batch else draw)
            self.draws[shapes] = lambda *given: np.asarray(program(*given))
        return self.draws[shapes]


def acts_here(agents: Any, memory: Memory) -> bool:
    """Return whether actions are chosen in NumPy. This requires a model without memory that can compute its policy
    without the value."""
    return hasattr(agents.model, "policy") and not jax.tree.leaves(memory.carry)


@runtime_checkable
class Choose(Protocol):
    """Chooses actions and holds the memory of its columns."""

    @property
    def memory(self) -> Memory:
        """The memory after the last step, [S, N, …]."""
        ...

    def __call__(self, observation: Any, mask: np.ndarray | None, t: int) -> tuple[np.ndarray, np.ndarray]:
        """Map observation [S, N, …], allowed choices [S, N, M] and t to action [S, N, …] and log μ(a|s) [S, N]."""
        ...

    def restart(self, rows: np.ndarray) -> None:
        """Start new episodes in the given rows of the S·N columns."""
        ...


class ActHere:
    """Acts in NumPy, since calling a compiled program takes longer than running a small network. JAX only draws the
    noise."""

    def __init__(
        self,
        act: Act,
        agents: Any,
        keys: np.ndarray,
        memory: Memory | None,
        ahead: int,
        noise: np.ndarray | None = None,
    ):
        self.act, self.agents, self.keys, self.ahead = act, agents, keys, ahead
        self.memory: Any = memory
        self.here = on_host(agents)
        self.is_given = noise is not None
        self.noise = np.zeros(0) if noise is None else noise

    def __call__(self, observation: Any, mask: np.ndarray | None, t: int) -> tuple[np.ndarray, np.ndarray]:
        if t % self.ahead == 0 and not (t == 0 and self.is_given):
            self.noise = self.act.draw(self.agents, self.keys, observation, t, self.ahead)
        policy = self.here.policy(observation, mask)
        action = policy.choose(self.noise[t % self.ahead])
        return action, policy.log_prob(action)

    def restart(self, rows: np.ndarray) -> None:
        """Do nothing: there is no memory."""


class ActCompiled:
    """Acts with one compiled call per step. The call loops over seeds, since with `vmap` a seed's results may depend on
    the other seeds."""

    def __init__(self, act: Act, agents: Any, keys: np.ndarray, memory: Memory):
        self.act, self.agents, self.keys = act, agents, keys
        self.carry, self.fresh = memory.carry, np.array(memory.fresh)

    def __call__(self, observation: Any, mask: np.ndarray | None, t: int) -> tuple[np.ndarray, np.ndarray]:
        seen = self.agents, self.keys, observation, mask, self.carry, self.fresh
        action, log_prob, self.carry = self.act.step(*seen, t)
        self.fresh = np.zeros_like(self.fresh)
        return np.asarray(action), np.asarray(log_prob)

    def restart(self, rows: np.ndarray) -> None:
        self.fresh.ravel()[rows] = True

    @property
    def memory(self) -> Memory:
        fresh = jax.numpy.asarray(self.fresh)
        return Memory(jax.vmap(restarted)(self.agents.model, self.carry, fresh), fresh)


def on_host(agents: Any) -> Any:
    """Convert agents [S] to NumPy arrays that broadcast over the environments of their seed. The matrices of layers
    already do so."""

    def meet(path: tuple[Any, ...], x: Any) -> np.ndarray:
        is_statistic = any(getattr(step, "name", None) == "normaliser" for step in path)
        return np.asarray(x)[:, None] if is_statistic or x.ndim == 2 else np.asarray(x)

    return jax.tree_util.tree_map_with_path(meet, agents)


def act_with_memory(agents: Any, keys: jax.Array, observation: Any, mask: Any, memory: Any, fresh: Any, t: Any) -> Any:
    """Return the action, log μ and the memory after a step for every seed [S], given the data of its key."""

    def one_seed(given: tuple[Any, ...]) -> tuple[Any, ...]:
        agent, key, observation, mask, memory, fresh = given
        policy, after = agent.act(observation, restarted(agent.model, memory, fresh), fresh, mask)
        action = policy.choose(noise_at(agent, policy, jax.random.wrap_key_data(key), t))
        return action, policy.log_prob(action), after

    return jax.lax.map(one_seed, (agents, keys, observation, mask, memory, fresh))


def noise_at(agent: Any, policy: Any, key: jax.Array, t: Any) -> jax.Array:
    """Draw the noise of the actions at t. A policy may hold part of its noise from an earlier step."""
    return policy.held_noise(*(jax.random.fold_in(key, step) for step in (t, agent.head.held_since(t))))


def draw_noise(agents: Any, observation: Any, ahead: int, keys: jax.Array, t: Any) -> jax.Array:
    """Draw the noise of the actions at t, t + 1, …, [ahead, S, N, …], for agents and observations of the given shapes
    and keys with the given data."""
    like = jax.tree.map(
        lambda x: jax.numpy.zeros(x.shape, jax.dtypes.canonicalize_dtype(x.dtype)), (agents, observation)
    )

    def one_seed(like: Any, key: jax.Array, t: Any) -> jax.Array:
        agent, observation = like
        return noise_at(agent, agent.policy(observation), key, t)

    one_step = jax.vmap(one_seed, (0, 0, None))
    steps = t + jax.numpy.arange(ahead)
    return jax.vmap(one_step, (None, None, 0))(like, jax.random.wrap_key_data(keys), steps)


def collect_host(
    columns: Steppable,
    choose: Choose,
    num_steps: int,
    phases: dict[str, float],
    idle: np.ndarray | None = None,
    *,
    compact: bool = False,
) -> tuple[Rollout, EpisodeEnds]:
    """Collect `num_steps` steps of every environment from its current state, starting a new episode whenever one ends.

    `idle` [S] marks seeds whose environments are not stepped. `compact` stores large observations only once, with
    `Successors`.
    """
    every_row = np.arange(len(columns.episodes))
    stepped = every_row if idle is None else np.flatnonzero(np.repeat(~idle, columns.shape[1]))
    grown, finished = HostRollout(columns, compact=compact), []
    with columns.folder:
        for t in range(num_steps):
            rows = columns.acting if idle is None else stepped
            done = step_all(columns, choose, t, rows, grown, phases)
            started = perf_counter()
            finished += ended(columns, t, done)
            columns.begin(done.tolist())
            choose.restart(done if len(rows) == len(every_row) else np.union1d(done, np.setdiff1d(every_row, rows)))
            phases["environment"] = phases.get("environment", 0.0) + perf_counter() - started
    return grown.rollout(), ends_of(finished)


def collect_host_episodes(
    columns: Steppable,
    choose: Choose,
    active: np.ndarray,
    phases: dict[str, float],
    *,
    compact: bool = False,
) -> tuple[Rollout, EpisodeEnds]:
    """Collect one whole episode in every column of the active seeds [S]. Steps after the end of an episode are not
    valid."""
    rows = np.flatnonzero(np.repeat(active, columns.shape[1]))
    grown, finished, t = HostRollout(columns, compact=compact), [], 0
    with columns.folder:
        columns.begin(rows.tolist(), afresh=True)
        while rows.size:
            done = step_all(columns, choose, t, rows, grown, phases)
            finished += ended(columns, t, done)
            rows = np.setdiff1d(rows, done, assume_unique=True)
            t += 1
    return grown.rollout(), ends_of(finished)


def step_all(
    columns: Steppable,
    choose: Choose,
    t: int,
    rows: np.ndarray,
    grown: HostRollout,
    phases: dict[str, float],
) -> np.ndarray:
    """Act once in the given rows, record the step, and return the rows whose episode ended."""
    before = perf_counter()
    flat = copied(columns.flat)
    mask = None if columns.mask is None else columns.mask.copy()
    choices = None if mask is None else in_seeds(mask, columns.shape)
    action, log_prob = choose(in_seeds(flat, columns.shape), choices, t)
    acted = perf_counter()
    action = action.reshape(-1, *action.shape[2:])
    successor = copied(flat)
    reward, terminated, truncated = columns.step(action, rows, successor)
    valid = np.zeros(len(reward), bool)
    valid[rows] = True
    grown.write(
        observation=flat,
        action=action,
        reward=reward,
        terminated=terminated,
        truncated=truncated,
        next_observation=successor,
        behaviour_log_prob=log_prob.ravel(),
        valid=valid,
        action_mask=mask,
    )
    stepped = perf_counter()
    phases["act"] = phases.get("act", 0.0) + acted - before
    phases["environment"] = phases.get("environment", 0.0) + stepped - acted
    return np.flatnonzero(terminated | truncated)


End = tuple[int, int, int, float, int, tuple[float, ...]]
"""The fields of `EpisodeEnds` for a single episode."""


def ended(columns: Steppable, t: int, rows: np.ndarray) -> list[End]:
    """Describe the episodes that end in the given rows at step t."""
    places = [(columns.episodes[row], *divmod(row, columns.shape[1])) for row in rows.tolist()]
    return [(seed, t, column, e.episode_return, e.length, e.info) for e, seed, column in places]


def ends_of(finished: list[End]) -> EpisodeEnds:
    """Convert a list of ends to arrays."""
    seed_index, t, column, episode_return, length, info = zip(*finished, strict=True) if finished else [()] * 6
    return EpisodeEnds(
        np.asarray(seed_index, int),
        np.asarray(t, int),
        np.asarray(column, int),
        np.asarray(episode_return, float),
        np.asarray(length, int),
        np.asarray(info, float).reshape(len(finished), -1) if finished else np.zeros((0, 0)),
    )
