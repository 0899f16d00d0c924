"""Step S × N Gymnasium environments on the host, in one Python loop.

Every episode has its own reset seed. It depends only on (seed, environment index, episode number), or on (seed, group,
episode number) if environments form groups. A run therefore does not depend on what else is running, and an episode in
progress can be rebuilt from its actions.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import gymnasium
import jax
import numpy as np

from upslope.core.arrays import all_finite, copied, in_seeds
from upslope.core.their_folder import TheirFolder
from upslope.engines.border import (  # fmt: skip
    FLAGS,
    LARGEST,
    NUMBERS,
    Border,
    assign,
    in_32_bits,
    mask_reader,
    nothing_allowed,
    raised,
    reset_answer,
    step_answer,
)
from upslope.engines.calls import Call, as_array, calls_in, method_of
from upslope.engines.infos import InfoReader
from upslope.engines.notices import Notices, notices_to
from upslope.environments.closing import close_all
from upslope.environments.registry import HostEnvironment
from upslope.errors import STOPS, UpslopeError
from upslope.models.encoders import ObservationEncoder
from upslope.models.head import ActionHead

MAX_REPLAY = 100_000
"""Maximum number of actions stored for a running episode. If the episode is longer, a resumed run starts a new one."""
NOT_RUNNING, TOO_LONG = -2, -1
"""Values that replace the length in a snapshot if no episode is in progress, or if the episode is too long to
replay."""


OF_ROWS, OF_ALL = ("episode", "length", "called", "episode_return"), ("calls",)
"""Arrays of a snapshot that have an entry for each environment, and those that all environments share."""


class HostEpisode:
    """One environment and its current episode."""

    __slots__ = (
        *("actions", "called", "env", "episode", "episode_return"),
        *("group", "index", "info", "length", "seed", "seen"),
    )

    def __init__(self, env: gymnasium.Env, seed: int, index: int, group_size: int = 1):
        self.env, self.seed, self.index, self.group = env, seed, index, index // group_size
        self.episode = -1
        self.actions: list[Any] = []
        self.episode_return, self.length = 0.0, 0
        self.seen = self.called = 0
        """Number of observations from the environment so far, and number of calls that it had made when the episode
        began."""
        self.info: tuple[float, ...] = ()
        """The numbers from info at the end of the last finished episode."""

    def begin(self) -> Any:
        """Reset the environment to the next episode with its own reset seed, and return the result of `reset`."""
        self.episode += 1
        self.actions = []
        self.episode_return, self.length = 0.0, 0
        return self.env.reset(seed=self.reset_seed)

    @property
    def reset_seed(self) -> int:
        """The reset seed of the current episode. The environments of a group share it."""
        return reset_seed(self.seed, self.group, self.episode)

    def describe(self) -> str:
        """Describe the step so that it can be reproduced."""
        place = f"environment {self.index} of seed {self.seed}, episode {self.episode}"
        return f"{place} (reset seed {self.reset_seed}), step {self.length}"


def reset_seed(seed: int, index: int, episode: int) -> int:
    """Return the reset seed of an episode. It is below 2³¹, since many environments expect a signed 32-bit integer."""
    return int(np.random.SeedSequence([seed, index, episode]).generate_state(1)[0]) & (2**31 - 1)


class HostColumns:
    """S × N Gymnasium environments; `observation` [S, N, …] is the current observation of each."""

    def __init__(
        self,
        world: HostEnvironment,
        encoder: ObservationEncoder,
        head: ActionHead,
        seeds: Sequence[int],
        num_envs: int,
        limit: int | None,
        indices: Sequence[int] | None = None,
        notices: Notices | None = None,
        log_info: tuple[str, ...] = (),
        group_size: int = 1,
    ):
        """`indices` are the environments' indices within their seed, by default 0 … N−1. `log_info` lists the keys of
        the numbers from info to keep for each episode. The environments of a group of `group_size` share their reset
        seeds."""
        self.world, self.encoder, self.head, self.limit = world, encoder, head, limit
        self.notices = notices or notices_to()
        self.read_info = InfoReader(log_info, world.name, self.notices) if log_info else None
        self.shape = (len(seeds), num_envs)
        self.episodes: list[HostEpisode] = []
        self.is_closed = False
        self.folder = TheirFolder()
        try:
            with self.folder:
                for seed in seeds:
                    for index in indices or range(num_envs):
                        self.episodes.append(HostEpisode(world.create(), seed, index, group_size))
            if len({id(episode.env.unwrapped) for episode in self.episodes}) < len(self.episodes):
                raise UpslopeError(
                    f"{world.name} returned the same environment more than once, so columns would step each other's "
                    "episodes. Pass a callable that creates a new one each time."
                )
            self.border = Border(world.name, world.observation_space, encoder, self.notices)
        except BaseException:
            self.close()
            raise
        self.calls: list[Call] = []
        """Calls requested since the run began. Every environment makes each of them before its next reset."""
        self.every_row = np.arange(len(self.episodes))
        self.flat = self.border.empty(len(self.episodes))
        self.place = self.border.placing(self.flat)
        self.mask: Any = np.ones((len(self.episodes), head.num_choices), bool) if world.gives_masks else None
        """The currently allowed choices of every environment [S·N, M]; None if nothing is ever forbidden."""
        self.read_mask = mask_reader(head, world.name)
        self.row: int | None = None
        """The row whose environment is currently being called."""
        self.mark(between_episodes=True)

    @property
    def observation(self) -> Any:
        """The current observation of every environment, [S, N, …]."""
        return in_seeds(self.flat, self.shape)

    @property
    def has_begun(self) -> bool:
        """Whether every environment is in an episode."""
        return all(episode.episode >= 0 for episode in self.episodes)

    def close(self) -> None:
        """Close every environment once. Errors while closing are only reported."""
        if not self.is_closed:
            self.is_closed = True
            environments = {id(episode.env): episode.env for episode in self.episodes}
            with self.folder:
                close_all(self.world.name, environments.values(), lambda words: self.notices("close", words))

    @property
    def acting(self) -> np.ndarray:
        """The rows whose next step is a transition, which are all rows."""
        return self.every_row

    def begin(self, rows: Sequence[int], *, afresh: bool = False) -> None:
        """Begin a new episode in each of the rows by resetting its environment, whether or not `afresh` is set."""
        with self.folder:
            for row in rows:
                self.begin_one(row, len(self.calls))
        self.row = None
        self.refuse_stuck()

    def begin_one(self, row: int, num_calls: int) -> None:
        """Make any of the first `num_calls` calls that have not been made yet, and begin a new episode."""
        self.row, episode = row, self.episodes[row]
        self.make_calls(episode, num_calls)
        try:
            answer = episode.begin()
        except STOPS:
            raise
        except BaseException as error:
            raise UpslopeError(raised(self.world.name, "reset", episode.describe(), error)) from error
        observation = reset_answer(answer, self.world.name, episode)
        self.place(row, observation, episode)
        self.check_finite([row], np.zeros(row + 1), self.flat)
        if self.mask is not None:
            self.mask[row] = self.read_mask(answer[1], episode)

    def make_calls(self, episode: HostEpisode, num_calls: int) -> None:
        """Make any of the first `num_calls` calls that the environment has not made yet."""
        for name, arguments in self.calls[episode.called : num_calls]:
            method = method_of(episode.env, name, self.world.name)
            try:
                method(*deepcopy(arguments))
            except STOPS:
                raise
            except BaseException as error:
                raise UpslopeError(raised(self.world.name, name, episode.describe(), error)) from error
        episode.called = num_calls

    def call(self, name: str, arguments: list[Any]) -> None:
        """Have every environment call a method before its next reset.

        Raises:
            UpslopeError: an environment has no such method.
        """
        for episode in self.episodes:
            method_of(episode.env, name, self.world.name)
        self.calls.append((name, arguments))

    def step(self, action: np.ndarray, rows: np.ndarray, next_observation: Any) -> tuple[np.ndarray, ...]:
        """Step the given rows with the policy's actions [S·N, …], and write the true successors into
        `next_observation`.

        Returns reward, terminated, truncated, each [S·N], zero in the other rows.
        """
        count = len(self.episodes)
        reward, (terminated, truncated) = np.zeros(count, np.float32), np.zeros((2, count), bool)
        taken = self.head.to_environment(action)
        # The environment receives its own copy of the action, since it may modify the action in place.
        given, kept = one_by_one(taken), one_by_one(self.head.kept(action, taken))
        listed, episodes, limit = rows.tolist(), self.episodes, self.limit
        place = self.border.placing(next_observation)
        for row in listed:
            self.row, episode = row, episodes[row]
            episode.length = length = episode.length + 1
            if length <= MAX_REPLAY:
                episode.actions.append(kept[row])
            try:
                answer = episode.env.step(given[row])
            except STOPS:
                raise
            except BaseException as error:
                raise UpslopeError(raised(self.world.name, "step", episode.describe(), error)) from error
            if type(answer) is tuple and len(answer) == 5:
                observation, one, ended, cut, info = answer
                is_plain = type(one) in NUMBERS and type(ended) in FLAGS and type(cut) in FLAGS
                if not is_plain or type(info) is not dict:
                    observation, one, ended, cut = step_answer(answer, self.world.name, episode)
            else:
                observation, one, ended, cut = step_answer(answer, self.world.name, episode)
                info = answer[4]
            if not -LARGEST <= one <= LARGEST:
                one = in_32_bits(one, self.world.name, episode)
            reward[row], terminated[row], truncated[row] = one, ended, cut
            episode.episode_return += float(reward[row])
            if limit is not None and length >= limit:
                truncated[row] = True
            place(row, observation, episode)
            if self.read_info is not None and (ended or truncated[row]):
                episode.info = self.read_info(info, episode)
            if self.mask is not None:
                # No action is chosen at the end of an episode, so the mask does not matter.
                is_over = ended or truncated[row]
                self.mask[row] = True if is_over else self.read_mask(info, episode)
        self.row = None
        self.check_finite(listed, reward, next_observation)
        self.refuse_stuck()
        assign(self.flat, slice(None), next_observation)
        return reward, terminated, truncated

    def refuse_stuck(self) -> None:
        """Raise an error if an environment forbids every choice when an action is required."""
        if self.mask is not None:
            stuck = np.flatnonzero(~self.head.allows_some(self.mask))
            if len(stuck):
                raise UpslopeError(nothing_allowed(self.world.name, self.episodes[stuck[0]].describe()))

    def check_finite(self, rows: Sequence[int], reward: np.ndarray, observation: Any) -> None:
        """Raise an error if a reward or an observation is not finite, naming the first one."""
        real = [x for x in jax.tree.leaves(observation) if x.dtype.kind == "f"]
        if all_finite([reward, *real]):
            return
        for row in rows:
            for what, values in (("reward", [reward]), ("observation", real)):
                for x in values:
                    if not np.isfinite(x[row]).all():
                        raise UpslopeError(not_finite(self.world.name, what, x[row], self.episodes[row]))

    def mark(self, *, between_episodes: bool) -> None:
        """Mark the start of an iteration, the point that `snapshot` describes.

        An action list only grows until its episode ends, so its current length is enough to truncate it later.
        """
        observation = copied(self.observation)
        lengths = [NOT_RUNNING if between_episodes or e.episode < 0 else replayable(e) for e in self.episodes]
        marks = [
            (e.episode, n, e.actions, e.called, e.episode_return) for e, n in zip(self.episodes, lengths, strict=True)
        ]
        self.marked = marks, observation

    def snapshot(self) -> dict[str, np.ndarray]:
        """Return the data needed to rebuild every episode that was running at the mark: its number and actions, and
        the observation and return that they must lead to."""
        marks, observation = self.marked
        called = [called for *_, called, _ in marks]
        return {
            "episode": np.asarray([episode for episode, *_ in marks]),
            "length": np.asarray([length for _, length, *_ in marks]),
            "actions": np.asarray([a for _, length, actions, *_ in marks for a in actions[: max(length, 0)]]),
            "episode_return": np.asarray([episode_return for *_, episode_return in marks], np.float64),
            **named_observation(observation),
            **({"called": np.asarray(called), "calls": as_array(self.calls)} if self.calls else {}),
        }

    def restore(self, snapshot: dict[str, np.ndarray], say: Callable[[str], None]) -> list[int]:
        """Replay each running episode. If the replay diverges, report this and start a new episode. Return the rows of
        the new episodes."""
        self.calls = calls_in(snapshot)
        called = snapshot["called"].tolist() if self.calls else [0] * len(self.episodes)
        lengths = snapshot["length"].tolist()
        ends = np.cumsum(np.maximum(snapshot["length"], 0))
        shown = jax.tree.map(lambda x, flat: x.reshape(flat.shape), observation_of(snapshot, self.flat), self.flat)
        returns = snapshot.get("episode_return")  # older checkpoints do not have it
        not_repeatable, too_long, afresh = [], 0, []
        for row, (episode, length) in enumerate(zip(self.episodes, lengths, strict=True)):
            episode.episode = int(snapshot["episode"][row])
            if length == NOT_RUNNING:
                continue
            actions = snapshot["actions"][ends[row] - max(length, 0) : ends[row]]
            if length == TOO_LONG:
                too_long += 1
                afresh.append(row)
                self.begin([row])
            else:
                arrival = jax.tree.map(lambda x, row=row: x[row], shown), None if returns is None else returns[row]
                with self.folder:
                    is_same = self.replay(row, actions, *arrival, called[row])
                if is_same:
                    continue
                not_repeatable.append(episode)
                afresh.append(row)
                self.begin([row])
        self.mark(between_episodes=NOT_RUNNING in lengths)
        if too_long:
            say(
                f"{too_long} of {len(self.episodes)} episodes in progress had more than {MAX_REPLAY:,} steps, too "
                "many to replay. They restart, so the resumed run is not bitwise identical to an uninterrupted one."
            )
        if not_repeatable:
            say(
                f"{len(not_repeatable)} of {len(self.episodes)} episodes in progress could not be replayed (now at "
                f"{not_repeatable[0].describe()}): their observations or rewards differ, so the environment was "
                "changed or is not a function of its reset seed and actions. They restart, so the resumed run is not "
                "bitwise identical to an uninterrupted one."
            )
        return afresh

    def replay(
        self, row: int, actions: np.ndarray, shown: Any, episode_return: float | None, num_calls: int = 0
    ) -> bool:
        """Make the calls, restart the episode, repeat its actions, and return whether it arrives at the same
        observation and, if it is known, the same return."""
        episode = self.episodes[row]
        episode.episode -= 1
        self.begin_one(row, num_calls)
        self.refuse_stuck()
        observation: Any = None
        info: Any = None
        given = one_by_one(self.head.replayed(actions)) if len(actions) else []
        for action, kept in zip(given, one_by_one(actions.copy()), strict=True):
            self.row = row
            try:
                answer = episode.env.step(action)
                observation, reward, terminated, truncated = step_answer(answer, self.world.name, episode)
            except STOPS:
                raise
            except BaseException:
                return False
            info = answer[4]
            episode.actions.append(kept)
            episode.length += 1
            episode.episode_return += float(np.float32(reward))
            if terminated or truncated or self.border.misfit(observation) is not None:
                return False
        self.row = None
        if len(actions):
            self.place(row, observation, episode)
            if self.mask is not None:
                self.mask[row] = self.read_mask(info, episode)
        if episode_return is not None and episode.episode_return != episode_return:
            return False
        now = jax.tree.map(lambda x: x[row], self.flat)
        return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(now), jax.tree.leaves(shown), strict=True))


def one_by_one(actions: Any) -> list[Any]:
    """Split a batch of actions into single actions.

    An integer action becomes a Python integer, and any other array keeps the space's dtype. An action with several
    parts becomes a dictionary or tuple of single parts, with NumPy integers, as in its space."""
    if isinstance(actions, dict):
        parts = [one_by_one_within(part) for part in actions.values()]
        return [dict(zip(actions, one, strict=True)) for one in zip(*parts, strict=True)]
    if isinstance(actions, tuple):
        return list(zip(*map(one_by_one_within, actions), strict=True))
    if actions.ndim > 1:
        return list(actions)
    return actions.tolist() if actions.dtype.kind in "iu" else [actions[i, ...] for i in range(len(actions))]


def one_by_one_within(part: Any) -> list[Any]:
    """Split a batch of one part of an action."""
    is_number = isinstance(part, np.ndarray) and part.ndim == 1 and part.dtype.kind in "iu"
    return list(part) if is_number else one_by_one(part)


def named_observation(observation: Any) -> dict[str, Any]:
    """Name the arrays of an observation: `observation`, followed by the path if there are several arrays."""
    return {
        f"observation{jax.tree_util.keystr(path)}": x for path, x in jax.tree_util.tree_leaves_with_path(observation)
    }


def observation_of(arrays: Mapping[str, np.ndarray], like: Any) -> Any:
    """Invert `named_observation`, given an observation of the same structure."""
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[f"observation{jax.tree_util.keystr(path)}"], like)


def rows_of(num_seeds: Sequence[int], num_envs: int) -> list[np.ndarray]:
    """Return the rows [s, N] of successive shares of the seeds."""
    every = np.arange(sum(num_seeds) * num_envs).reshape(-1, num_envs)
    return np.split(every, np.cumsum(num_seeds)[:-1])


def split_snapshot(snapshot: dict[str, np.ndarray], num_seeds: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """Split a snapshot into one for each successive share of the seeds."""
    num_envs = len(snapshot["length"]) // sum(num_seeds)
    return [part_of(snapshot, rows) for rows in rows_of(num_seeds, num_envs)]


def part_of(snapshot: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Extract the snapshot of the environments in the given rows [s, n]."""
    actions = actions_of(snapshot)
    part = {name: snapshot[name][rows.ravel()] for name in OF_ROWS if name in snapshot}
    part |= {name: snapshot[name] for name in OF_ALL if name in snapshot}
    part["actions"] = np.concatenate([actions[row] for row in rows.ravel()])
    return part | {name: x.reshape(-1, *x.shape[2:])[rows] for name, x in shown_in(snapshot).items()}


def shown_in(snapshot: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Select the arrays of a snapshot that hold observations."""
    return {name: x for name, x in snapshot.items() if name.startswith("observation")}


def join_snapshots(
    parts: Sequence[dict[str, np.ndarray]], rows: Sequence[np.ndarray], shape: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Invert `part_of`: join the snapshots of parts, given the rows of each, into a snapshot of S × N environments."""
    order = np.argsort(np.concatenate([mine.ravel() for mine in rows]))
    whole = {name: np.concatenate([part[name] for part in parts])[order] for name in OF_ROWS if name in parts[0]}
    whole |= {name: parts[0][name] for name in OF_ALL if name in parts[0]}
    for name in shown_in(parts[0]):
        shown = np.concatenate([part[name].reshape(-1, *part[name].shape[2:]) for part in parts])[order]
        whole[name] = shown.reshape(*shape, *shown.shape[1:])
    actions = [taken for part in parts for taken in actions_of(part)]
    # An empty list of actions does not have the shape of an action.
    some = [actions[k] for k in order if actions[k].size] or actions[:1]
    return whole | {"actions": np.concatenate(some)}


def actions_of(snapshot: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return the actions of each environment's running episode, which are empty if there is none."""
    return np.split(snapshot["actions"], np.cumsum(np.maximum(snapshot["length"], 0))[:-1])


def replayable(episode: HostEpisode) -> int:
    """Return the number of actions that rebuild the episode, or `TOO_LONG`."""
    return len(episode.actions) if episode.length <= MAX_REPLAY else TOO_LONG


def not_finite(name: str, what: str, value: Any, episode: HostEpisode) -> str:
    """Return the error message for a non-finite observation or reward, with the step at which it occurred."""
    article = "an" if what == "observation" else "a"
    return (
        f"{name} returned {article} {what} that is not finite, {value}: {episode.describe()}. Training on it would "
        "destroy the agent. Correct the environment, or clip what it returns."
    )
