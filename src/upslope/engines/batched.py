"""Step vector environments. Each seed has one vector environment with N columns, which resets its columns itself.

The autoreset mode determines how the next episode begins. No mode may produce a transition that never happened:

- NEXT_STEP: the step after an episode's end ignores the action and returns the first observation of the next episode.
  That row of the rollout is not valid: it is not a transition, has no weight, and does not count as a step.
- SAME_STEP: the step that ends an episode returns the first observation of the next one. The true successor is the
  final observation in info.
- DISABLED: upslope resets the columns whose episodes are over.

An episode in progress cannot be rebuilt, since it was not reset with a separate seed. A resumed run therefore begins
new episodes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from upslope.core.arrays import copied, in_seeds, over_parts
from upslope.core.their_folder import TheirFolder
from upslope.engines.border import (
    Border,
    assign,
    flag_of,
    has_shape,
    kind_of,
    mask_reader,
    raised,
    require_info,
    reward_of,
)
from upslope.engines.columns import (  # fmt: skip
    NOT_RUNNING,
    TOO_LONG,
    HostColumns,
    named_observation,
    one_by_one,
    reset_seed,
)
from upslope.engines.infos import InfoReader
from upslope.engines.notices import Notices, notices_to
from upslope.environments.closing import close_all
from upslope.environments.registry import HostEnvironment
from upslope.environments.vector import final_observation, joined, mask_of, mode_of, row_of
from upslope.errors import STOPS, UpslopeError
from upslope.models.encoders import ObservationEncoder
from upslope.models.head import ActionHead


class BatchedEpisode:
    """The running episode of a column."""

    __slots__ = ("begun", "episode", "episode_return", "index", "info", "length", "seed", "seen")

    def __init__(self, seed: int, index: int):
        self.seed, self.index = seed, index
        self.episode, self.begun = -1, -1
        """Number of episodes of this column so far, and number of resets of its vector environment."""
        self.episode_return, self.length, self.seen = 0.0, 0, 0
        self.info: tuple[float, ...] = ()

    def begin(self) -> None:
        """Count a new episode."""
        self.episode += 1
        self.episode_return, self.length = 0.0, 0

    def describe(self) -> str:
        """Describe the current step for a message."""
        place = f"column {self.index} of seed {self.seed}, episode {self.episode}"
        return (
            f"{place} (the vector environment's reset seed {reset_seed(self.seed, 0, self.begun)}), step {self.length}"
        )


class BatchedColumns:
    """The counterpart of `HostColumns` with one vector environment for each seed."""

    def __init__(
        self,
        world: HostEnvironment,
        encoder: ObservationEncoder,
        head: ActionHead,
        seeds: Sequence[int],
        num_envs: int,
        limit: int | None,
        notices: Notices | None = None,
        log_info: tuple[str, ...] = (),
    ):
        assert world.batch is not None
        self.world, self.encoder, self.head, self.limit = world, encoder, head, limit
        self.notices = notices or notices_to()
        self.read_info = InfoReader(log_info, world.name, self.notices) if log_info else None
        self.shape = (len(seeds), num_envs)
        self.episodes = [BatchedEpisode(seed, index) for seed in seeds for index in range(num_envs)]
        self.batches: list[Any] = []
        self.is_closed = False
        self.row: int | None = None
        """The first row of the vector environment that is currently being called."""
        self.folder = TheirFolder()
        try:
            with self.folder:
                for _ in seeds:
                    self.batches.append(world.batch(num_envs))
            self.border = Border(world.name, world.observation_space, encoder, self.notices)
            self.modes = [mode_of(envs, world.name) for envs in self.batches]
        except BaseException:
            self.close()
            raise
        count = len(self.episodes)
        self.flat = self.border.empty(count)
        self.place = self.border.placing(self.flat)
        self.mask: Any = np.ones((count, head.num_choices), bool) if world.gives_masks else None
        """See `HostColumns.mask`."""
        self.read_mask = mask_reader(head, world.name)
        self.is_waiting = np.zeros(count, bool)
        """Rows whose next step only resets them (NEXT_STEP)."""
        self.generators = [np.random.default_rng(seed) for seed in seeds]
        """Random generators for the actions of columns that must be stepped although the result is ignored."""
        self.is_over = np.zeros(count, bool)
        """Rows whose episode has ended and whose next episode has not begun."""
        self.is_stale = np.ones(count, bool)
        """Rows that are out of step with their vector environment, because it has not started or has continued without
        them."""
        self.mark(between_episodes=True)

    @property
    def observation(self) -> Any:
        """The current observation of every column, [S, N, …]."""
        return in_seeds(self.flat, self.shape)

    @property
    def has_begun(self) -> bool:
        """Whether every column is in an episode."""
        return not self.is_stale.any()

    @property
    def acting(self) -> np.ndarray:
        """The rows whose next step is a transition."""
        return np.flatnonzero(~self.is_waiting)

    def close(self) -> None:
        """Close every vector environment once. Errors while closing are only reported."""
        if not self.is_closed:
            self.is_closed = True
            with self.folder:
                close_all(self.world.name, self.batches, lambda words: self.notices("close", words))

    def begin(self, rows: Sequence[int], *, afresh: bool = False) -> None:
        """Begin a new episode in each of the rows through the vector environment's own autoreset. With `afresh`, whole
        vector environments are reset."""
        chosen = np.zeros(len(self.episodes), bool)
        chosen[list(rows)] = True
        for number, mode in enumerate(self.modes):
            mine = self.rows_of(number)[chosen[self.rows_of(number)]]
            if not len(mine):
                continue
            if afresh or self.is_stale[mine].any():
                self.refuse_lost(number, mine)
                self.reset_all(number)
            elif mode is AutoresetMode.NEXT_STEP:
                self.is_waiting[mine] = True
            elif mode is AutoresetMode.DISABLED:
                self.reset_some(number, mine)
            else:
                self.is_over[mine] = False
                for row in mine.tolist():
                    self.episodes[row].begin()
        self.row = None
        self.refuse_stuck()

    def refuse_lost(self, number: int, rows: np.ndarray) -> None:
        """Refuse to reset a whole vector environment while another of its columns is in an episode."""
        others = np.setdiff1d(self.rows_of(number), rows)
        if (~self.is_stale[others] & ~self.is_over[others]).any():
            raise UpslopeError(
                f"{self.world.name} continues after {self.limit} steps, when --max-episode-steps ends the episode, "
                "and a single column cannot be reset from outside. Let the vector environment itself enforce the "
                "limit, with one of its own arguments in --env-kwargs."
            )

    def rows_of(self, number: int) -> np.ndarray:
        """Return the rows of a vector environment."""
        return np.arange(number * self.shape[1], (number + 1) * self.shape[1])

    def reset_all(self, number: int) -> None:
        """Reset a whole vector environment. Its reset seed is a function of the run's seed and the number of resets."""
        rows = self.rows_of(number)
        for row in rows.tolist():
            self.episodes[row].begun += 1
        seed = reset_seed(self.episodes[rows[0]].seed, 0, self.episodes[rows[0]].begun)
        observation, info = self.called(number, "reset", lambda envs: envs.reset(seed=seed))
        self.is_waiting[rows] = self.is_stale[rows] = False
        self.enter(number, rows, observation, info)

    def reset_some(self, number: int, rows: np.ndarray) -> None:
        """Reset some columns of a vector environment that leaves resetting to upslope."""
        mask = np.isin(self.rows_of(number), rows)
        observation, info = self.called(number, "reset", lambda envs: envs.reset(options={"reset_mask": mask}))
        self.enter(number, rows, observation, info)

    def enter(self, number: int, rows: np.ndarray, observation: Any, info: Any) -> None:
        """Store the first observations of new episodes in the given rows."""
        first = number * self.shape[1]
        self.is_over[rows] = False
        for row in rows.tolist():
            self.row, episode = row, self.episodes[row]
            episode.begin()
            self.place(row, row_of(observation, row - first), episode)
            self.allow(row, info, row - first)
        self.check_finite(rows.tolist(), np.zeros(len(self.episodes), np.float32), self.flat)

    def called(self, number: int, where: str, call: Callable[[Any], Any]) -> Any:
        """Call a vector environment. An exception is reported with the step at which it occurred."""
        self.row = row = number * self.shape[1]
        try:
            with self.folder:
                answer = call(self.batches[number])
        except STOPS:
            raise
        except BaseException as error:
            raise UpslopeError(raised(self.world.name, where, self.episodes[row].describe(), error)) from error
        size = 2 if where == "reset" else 5
        if not isinstance(answer, tuple) or len(answer) != size:
            raise UpslopeError(
                f"{self.world.name} returned {type(answer).__name__} from {where}(), where Gymnasium's vector "
                f"environments return {size} values: {self.episodes[row].describe()}."
            )
        require_info(answer[-1], where, self.world.name, self.episodes[row])
        for what, values in zip(("reward", "terminated", "truncated"), answer[1:-1], strict=False):
            if not has_shape(values, (self.shape[1],)):
                raise UpslopeError(
                    f"{self.world.name} returned {what} {kind_of(values)} from {where}(), where Gymnasium's vector "
                    f"environments return one for each of the {self.shape[1]} environments: "
                    f"{self.episodes[row].describe()}. Correct what step() returns."
                )
        return answer

    def step(self, action: np.ndarray, rows: np.ndarray, next_observation: Any) -> tuple[np.ndarray, ...]:
        """Step with the policy's actions [S·N, …], and write the true successors of the given rows into
        `next_observation`.

        Returns reward, terminated, truncated, each [S·N], zero in the other rows.
        """
        count = len(self.episodes)
        found = np.zeros(count, np.float32), np.zeros(count, bool), np.zeros(count, bool)
        taken = one_by_one(self.head.to_environment(action))
        is_asked = np.zeros(count, bool)
        is_asked[rows] = True
        for number in range(len(self.batches)):
            mine = self.rows_of(number)
            if is_asked[mine].any() or self.is_waiting[mine].any():
                self.step_one(number, [taken[row] for row in mine.tolist()], is_asked, next_observation, found)
        self.row = None
        self.check_finite(rows.tolist(), found[0], next_observation)
        self.refuse_stuck()
        return found

    def step_one(
        self,
        number: int,
        actions: list[Any],
        is_asked: np.ndarray,
        next_observation: Any,
        found: tuple[np.ndarray, ...],
    ) -> None:
        """Step one vector environment."""
        mine = self.rows_of(number)
        is_waiting = self.is_waiting[mine].copy()
        ignored = mine[self.is_over[mine] & ~is_asked[mine]]
        # A column must not be stepped after its episode's end.
        if self.modes[number] is AutoresetMode.DISABLED and len(ignored):
            self.reset_some(number, ignored)
            self.is_stale[ignored] = True
        for column, row in enumerate(mine.tolist()):
            if not is_asked[row] and not is_waiting[column]:
                actions[column] = self.idle_action(number, row)
        for row in mine[is_asked[mine]].tolist():
            self.episodes[row].length += 1
        batch = joined(actions, self.world.action_space)
        observation, reward, terminated, truncated, info = self.called(number, "step", lambda envs: envs.step(batch))
        place = self.border.placing(next_observation)
        for column, row in enumerate(mine.tolist()):
            if is_asked[row]:
                flags = reward[column], terminated[column], truncated[column]
                self.take(row, column, row_of(observation, column), flags, info, next_observation, place, found)
            elif not is_waiting[column]:
                self.is_stale[row] = True
                self.is_over[row] = is_over = bool(terminated[column] or truncated[column])
                self.allow(row, info, column, is_over=is_over)
                if self.mask is not None and not self.head.allows_some(self.mask[row : row + 1]).all():
                    self.mask[row] = True
        reset = mine[is_waiting]
        self.is_waiting[reset] = False
        self.enter(number, reset, observation, info)

    def idle_action(self, number: int, row: int) -> Any:
        """Draw an allowed action for a column that must be stepped although its episode is over."""
        mask = None if self.mask is None else self.mask[row]
        return one_by_one(self.head.to_environment(self.head.random(self.generators[number], mask)[None]))[0]

    def take(
        self,
        row: int,
        column: int,
        observation: Any,
        flags: tuple[Any, Any, Any],
        info: Any,
        next_observation: Any,
        place: Callable[[int, Any, Any], None],
        found: tuple[np.ndarray, ...],
    ) -> None:
        """Store the result of a step for a column. `place` writes rows of `next_observation`."""
        self.row, episode, name = row, self.episodes[row], self.world.name
        reward, terminated, truncated = found
        reward[row] = reward_of(flags[0], name, episode)
        terminated[row] = flag_of(flags[1], "terminated", name, episode)
        truncated[row] = flag_of(flags[2], "truncated", name, episode)
        episode.episode_return += float(reward[row])
        self.is_over[row] = is_over = terminated[row] or truncated[row]
        if is_over and self.modes[row // self.shape[1]] is AutoresetMode.SAME_STEP:
            final = final_observation(info, column, name, episode.describe)
            place(row, final, episode)
            self.place(row, observation, episode)
        else:
            place(row, observation, episode)
            assign(self.flat, row, over_parts(lambda x: x[row], next_observation))
        if not is_over and self.limit is not None and episode.length >= self.limit:
            # The vector environment continues the episode, so the column can be recovered only by resetting the whole
            # vector environment.
            truncated[row] = self.is_over[row] = self.is_stale[row] = True
        if self.read_info is not None and (is_over or truncated[row]):
            episode.info = self.read_info(info, episode, column)
        self.allow(row, info, column, is_over=bool(is_over))

    def allow(self, row: int, info: Any, column: int, *, is_over: bool = False) -> None:
        """Record the allowed choices of a row. No action is chosen at the end of an episode, before the reset."""
        if self.mask is not None:
            resets = is_over and self.modes[row // self.shape[1]] is not AutoresetMode.SAME_STEP
            given = {"action_mask": mask_of(info, column, self.world.action_space)}
            self.mask[row] = True if resets else self.read_mask(given, self.episodes[row])

    def call(self, name: str, arguments: list[Any]) -> None:
        """Refuse to call a method, since a single column is never reset from outside."""
        raise UpslopeError(
            f"{self.world.name} resets its columns itself, so no method can be called before an episode "
            f"begins. To call {name}, train on the single environments instead of the batched ones."
        )

    refuse_stuck = HostColumns.refuse_stuck
    check_finite = HostColumns.check_finite

    def mark(self, *, between_episodes: bool) -> None:
        """Mark the start of an iteration, the point that `snapshot` describes."""
        length = NOT_RUNNING if between_episodes else TOO_LONG
        begun = [episode.begun for episode in self.episodes]
        self.marked = begun, [length] * len(begun), copied(self.observation)

    def snapshot(self) -> dict[str, np.ndarray]:
        """Return the number of resets of each vector environment, and the observations at the mark. No episode can be
        rebuilt."""
        begun, lengths, observation = self.marked
        action = self.head.random(np.random.default_rng(0))[None]
        empty = self.head.kept(action, self.head.to_environment(action))[:0]
        return {
            "episode": np.asarray(begun),
            "length": np.asarray(lengths),
            "actions": empty,
            **named_observation(observation),
        }

    def restore(self, snapshot: dict[str, np.ndarray], say: Callable[[str], None]) -> list[int]:
        """Begin new episodes, and return the rows in which an episode was in progress."""
        for episode, begun in zip(self.episodes, snapshot["episode"].tolist(), strict=True):
            episode.begun = begun
        running = np.flatnonzero(snapshot["length"] != NOT_RUNNING).tolist()
        if running:
            self.begin(range(len(self.episodes)), afresh=True)
            say(
                f"{self.world.name} cannot restore the {len(running)} episodes in progress, since a vector "
                "environment resets them itself. New episodes start, so the resumed run is not bitwise identical to an "
                "uninterrupted one."
            )
        self.mark(between_episodes=not running)
        return running


def columns_for(
    world: HostEnvironment,
    encoder: ObservationEncoder,
    head: ActionHead,
    seeds: Sequence[int],
    num_envs: int,
    limit: int | None,
    notices: Notices | None = None,
    log_info: tuple[str, ...] = (),
    group_size: int = 1,
) -> HostColumns | BatchedColumns:
    """Create the columns of an environment in this process. A vector environment is batched and has no groups."""
    sizes = world, encoder, head, seeds, num_envs, limit
    if world.batch is not None:
        return BatchedColumns(*sizes, notices=notices, log_info=log_info)
    return HostColumns(*sizes, notices=notices, log_info=log_info, group_size=group_size)
