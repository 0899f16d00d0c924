"""Run the trials of a sweep in a compiled environment, where one program trains many trials with all their seeds.

A row of the program is one seed of one trial, with the numeric settings of its task as inputs (`learning/varied.py`).
Rows are distributed over the devices and computed like the seeds of a run, so a trial gives the same results as when it
runs alone. When a trial has ended, the next one uses its rows, so the program is compiled only once.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from upslope.core.types import Rollout
from upslope.engines.base import Chunk, never
from upslope.engines.compiled import ProgramEngine
from upslope.learning.iteration import QUICK, Task, TrainState, begin_each, begin_training, fresh_networks, iterate_many
from upslope.learning.varied import MAX_INPUTS, Family, Inputs


class Rows(NamedTuple):
    """The rows of the program [R]: their numeric settings and training states."""

    numbers: Float[Array, "R K"]
    state: TrainState

    @property
    def steps(self) -> Any:
        """The environment steps of each row."""
        return self.state.steps


class TrialsEngine(ProgramEngine):
    """Trains up to `slots` trials of a family at the same time, all with the same seeds."""

    def __init__(self, family: Family, seeds: Sequence[int], slots: int, iterations: int):
        """`iterations` is the length of a chunk."""
        self.family, self.trial_seeds, self.slots, self.inputs = family, list(seeds), slots, Inputs()
        num_devices = len(jax.local_devices())
        self.num_rows = -(-slots * len(seeds) // num_devices) * num_devices
        # Consecutive trials use different devices, so a few trials are enough to keep all devices busy.
        self.order = np.arange(self.num_rows).reshape(num_devices, -1).T.ravel()
        super().__init__(family.first, range(self.num_rows), iterations)
        self.begin = jax.jit(self.begin_one, compiler_options=QUICK)
        self.put = jax.jit(lambda rows, new, places: jax.tree.map(lambda x, y: x.at[places].set(y), rows, new))
        self.rows_now: Rows | None = None
        self.structure: Any = None

    def places(self, slot: int) -> Int[np.ndarray, "S"]:
        """Return the rows of a slot, one for each seed."""
        count = len(self.trial_seeds)
        return self.order[slot * count : (slot + 1) * count]

    def begin_one(self, fresh: Any, keys: Any, numbers: Float[Array, "K"]) -> TrainState:
        """Return the initial state of one row."""
        return begin_training(self.family.bound(self.task, self.inputs.reading(numbers)), True, fresh, keys)

    def one_seed(self, task: Task, data: Rollout | None, state: Any) -> Any:
        """Run one row's program; `state` is a row."""
        bound = self.family.bound(task, self.inputs.reading(state.numbers))
        after, facts = iterate_many(bound, state.state, self.iterations)
        return Rows(state.numbers, after), facts

    def place(self, slot: int, task: Task) -> None:
        """Begin a trial in a slot.

        Raises:
            UndecidedError: the task's own code branches on a number that differs between the trials.
        """
        fresh, keys = fresh_networks(task, self.trial_seeds)
        # What is no array in a user's model is created anew for each trial. The trials of a family share it, like the
        # seeds of a run, since programs can only be shared by trees that are equal apart from their arrays.
        self.structure = self.structure or jax.tree.structure(fresh)
        fresh = jax.tree.unflatten(self.structure, jax.tree.leaves(fresh))
        if self.rows_now is None:
            self.prepare(begin_each(self.begin, fresh, keys, np.zeros((len(keys), MAX_INPUTS), np.float32)))
        numbers = self.numbers_of(task)
        self.set_rows(slot, Rows(jnp.asarray(numbers), begin_each(self.begin, fresh, keys, numbers)))

    def numbers_of(self, task: Task) -> np.ndarray:
        """Return the program's inputs for a trial, which are the same for each of its seeds."""
        row = self.inputs.row(self.family.numbers(task))
        return np.tile(np.asarray(row, np.float32), (len(self.trial_seeds), 1))

    def prepare(self, state: TrainState) -> None:
        """Compile the program for rows with the structure of `state`. Its values do not matter, since every row starts
        with a spent budget."""
        which = np.arange(self.num_rows) % len(self.trial_seeds)
        rows = jax.jit(lambda state: jax.tree.map(lambda x: x[which], state))(state)
        spent = jnp.full(self.num_rows, self.task.steps, jnp.uint32)
        self.rows_now = Rows(jnp.zeros((self.num_rows, MAX_INPUTS)), rows._replace(steps=spent))
        for program in self.programs:
            program.compile(None, self.rows_now)
        self.inputs.check(len(self.family.paths))
        self.is_compiled = True

    def set_rows(self, slot: int, new: Rows) -> None:
        """Replace the rows of a slot."""
        assert self.rows_now is not None
        self.rows_now = self.put(self.rows_now, new, self.places(slot))

    def stop(self, slot: int) -> None:
        """Mark the budget of the trial in a slot as spent, so its rows cost nothing."""
        assert self.rows_now is not None
        state = self.rows_now.state
        spent = state.steps.at[self.places(slot)].set(np.uint32(self.task.steps))
        self.rows_now = self.rows_now._replace(state=state._replace(steps=spent))

    def advance_all(self, may_continue: Callable[[], bool] = never) -> Chunk:
        """Advance all trials by a chunk. The chunk's arrays and episodes are indexed by row; see `places`."""
        self.rows_now, chunk = self.advance(self.rows_now, may_continue)
        return chunk
