"""Train the seeds of a Gymnasium environment in several processes, a share of the seeds in each.

Seeds need nothing of each other, so each process is a `HostEngine` of its own, and the main process puts their states,
rows and snapshots together. Splitting the environments of one seed instead would hand every observation to
another process and back, which for cheap environments takes longer than the step itself.

A worker is `python -m upslope.workers`: it does not import the user's script again, as Python's own process pools do.
"""

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from upslope.checkpoints import raw, typed
from upslope.config import Config, canonical
from upslope.devices import num_cores, settle
from upslope.engines import Chunk
from upslope.environments.make import HostWorld, make
from upslope.errors import UpslopeError
from upslope.host import split_snapshot
from upslope.host_engine import HostEngine
from upslope.iteration import Task, TrainState, initialise_all
from upslope.tasks import task_of

PATIENCE = 60.0
"""Seconds after which a worker that has not answered is named."""
WORTH_IT = 50_000
"""Environment steps of all seeds below which starting processes takes longer than it saves."""


def num_workers(config: Config, asked: int | None) -> int:
    """How many processes train this run: as many as there are seeds, at most one a core."""
    if asked is not None and asked < 1:
        raise UpslopeError(f"--workers must be 1 or more, not {asked}.")
    if asked is None and config.steps * config.seeds < WORTH_IT:
        return 1
    return min(config.seeds, asked or num_cores())


class Worker:
    """A process that trains some of the seeds."""

    def __init__(self, index: int, config: Config, seeds: Sequence[int]):
        self.index, self.seeds = index, list(seeds)
        environment = os.environ | {"NPROC": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        command = [sys.executable, "-m", "upslope.workers"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self.answers: queue.Queue[tuple[str, Any]] = queue.Queue()
        threading.Thread(target=self.listen, daemon=True).start()
        self.ask("begin", config.to_json(), self.seeds)

    def listen(self) -> None:
        """Queue what the process says, and that it has ended."""
        assert self.process.stdout is not None
        try:
            while True:
                self.answers.put(pickle.load(self.process.stdout))
        except (EOFError, OSError, pickle.UnpicklingError):
            self.answers.put(("ended", None))

    def ask(self, what: str, *arguments: Any) -> None:
        """Send a request."""
        assert self.process.stdin is not None
        try:
            send(self.process.stdin, (what, arguments))
        except OSError:
            self.answers.put(("ended", None))

    def answer(self, say: Callable[[str], None]) -> Any:
        """Wait for the answer; name the worker where it takes long, and raise what went wrong."""
        waited = 0.0
        while True:
            try:
                kind, value = self.answers.get(timeout=PATIENCE)
                break
            except queue.Empty:
                waited += PATIENCE
                say(f"{self.describe()} has not answered for {waited:.0f} s: is its environment still running?")
        if kind == "ended":
            self.process.wait()
            raise UpslopeError(f"{self.describe()} ended with exit status {self.process.returncode}.")
        if kind == "refused":
            raise UpslopeError(value)
        return value

    def describe(self) -> str:
        """Which one."""
        seeds = ", ".join(map(str, self.seeds))
        return f"Worker process {self.index} (process {self.process.pid}, seeds {seeds})"

    def close(self) -> None:
        """Let the process end."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # what a dead process was still to be told
            self.process.stdin.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()


class WorkersEngine:
    """Advances all seeds, a share of them in each worker."""

    def __init__(self, task: Task, config: Config, workers: int, say: Callable[[str], None]):
        self.task, self.seeds, self.say = task, config.seed_list(), say
        self.phases: dict[str, float] = {}
        shares = np.array_split(np.asarray(self.seeds), workers)
        self.workers = [Worker(i, config, share.tolist()) for i, share in enumerate(shares)]
        self.state: TrainState | None = None
        """What the workers have."""
        self.is_whole = True
        try:
            self.everybody()
        except BaseException:
            self.close()
            raise

    def everybody(self) -> list[Any]:
        """The answers of all workers; all are waited for before one's error is raised."""
        answers: list[Any] = []
        errors: list[UpslopeError] = []
        for worker in self.workers:
            try:
                answers.append(worker.answer(self.say))
            except UpslopeError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return answers

    def start(self) -> TrainState:
        return initialise_all(self.task, self.seeds)

    def advance(self, state: TrainState) -> tuple[TrainState, Chunk]:
        leaves = None if state is self.state else leaves_of(state)
        first = 0
        for worker in self.workers:
            last = first + len(worker.seeds)
            worker.ask("advance", None if leaves is None else [x[first:last] for x in leaves])
            first = last
        self.is_whole, self.state = False, None
        answers = self.everybody()
        self.is_whole = True
        names = {name for _, _, phases in answers for name in phases}
        self.phases |= {n: float(np.mean([phases.get(n, 0.0) for _, _, phases in answers])) for n in names}
        parts = [np.concatenate(xs) for xs in zip(*(leaves for leaves, _, _ in answers), strict=True)]
        self.state = state_of(parts, state)
        return self.state, join([chunk for _, chunk, _ in answers])

    def snapshot(self) -> dict[str, np.ndarray]:
        for worker in self.workers:
            worker.ask("snapshot", self.is_whole)
        parts = self.everybody()
        return {name: concatenate([part[name] for part in parts]) for name in parts[0]}

    def restore(self, snapshot: dict[str, np.ndarray], say: Callable[[str], None]) -> None:
        parts = split_snapshot(snapshot, [len(worker.seeds) for worker in self.workers])
        for worker, part in zip(self.workers, parts, strict=True):
            worker.ask("restore", part)
        for words in self.everybody():
            for line in words:
                say(line)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()


def join(chunks: list[Chunk]) -> Chunk:
    """The chunks of several shares of the seeds as one; a worker counts its own seeds from 0."""
    episodes, count = [], 0
    for chunk in chunks:
        episodes += [[(step, count + s, r, n) for step, s, r, n in rows] for rows in chunk.episodes]
        count += len(chunk.episodes)
    shapes = [chunk.steps.shape for chunk in chunks]
    names = next((list(chunk.metrics) for chunk in chunks if chunk.metrics), [])
    metrics = {
        name: np.concatenate(
            [c.metrics.get(name, np.full(shape, np.nan)) for c, shape in zip(chunks, shapes, strict=True)]
        )
        for name in names
    }
    steps, before = (np.concatenate([getattr(c, name) for c in chunks]) for name in ("steps", "before"))
    return Chunk(metrics, steps, before, episodes)


def concatenate(parts: list[np.ndarray]) -> np.ndarray:
    """One after another; a share without a single action does not know the shape of one."""
    return np.concatenate([part for part in parts if part.size] or parts[:1])


def leaves_of(state: TrainState) -> list[np.ndarray]:
    """The arrays of a state, random keys as integers."""
    return [np.asarray(raw(leaf)) for leaf in jax.tree.leaves(state)]


def state_of(leaves: Sequence[Any], like: TrainState) -> TrainState:
    """The inverse of `leaves_of`, given a state of the same structure."""
    pairs = zip(leaves, jax.tree.leaves(like), strict=True)
    return jax.tree.unflatten(jax.tree.structure(like), [typed(x, old) for x, old in pairs])


def send(stream: Any, message: Any) -> None:
    """Write a message. Pickle passes between a run's own processes only, through pipes that nobody else holds; files
    that are loaded hold arrays and JSON."""
    pickle.dump(message, stream, protocol=5)
    stream.flush()


class Server:
    """The worker's side: a `HostEngine` and the state of its seeds."""

    def begin(self, settings: dict[str, Any], seeds: list[int]) -> None:
        """Make the environments."""
        config = Config(**canonical(settings))
        world = make(config.environment, config.env_kwargs, config.max_episode_steps)
        assert isinstance(world, HostWorld)
        self.engine = HostEngine(task_of(config, world), seeds, world)
        self.state = self.engine.start()

    def advance(self, leaves: list[np.ndarray] | None) -> tuple[list[np.ndarray], Chunk, dict[str, float]]:
        """Go on, from another state where one is given."""
        if leaves is not None:
            self.state = state_of(leaves, self.state)
        self.state, chunk = self.engine.advance(self.state)
        return leaves_of(self.state), chunk, self.engine.phases

    def snapshot(self, is_whole: bool) -> dict[str, np.ndarray]:
        """Where the last iteration that all workers finished ended."""
        self.engine.is_whole &= is_whole
        return self.engine.snapshot()

    def restore(self, snapshot: dict[str, np.ndarray]) -> list[str]:
        """Put the environments back; returns what is to be said."""
        words: list[str] = []
        self.engine.restore(snapshot, words.append)
        return words


def main() -> None:
    """Answer requests until the main process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process decides what Ctrl-C means
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what an environment prints must not get between the answers
    settle(on_host=True)
    server = Server()
    while True:
        try:
            what, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            send(answers, ("done", getattr(server, what)(*arguments)))
        except BrokenPipeError:
            return
        except UpslopeError as error:
            send(answers, ("refused", str(error)))
        except Exception as error:
            send(answers, ("refused", f"{type(error).__name__} in a worker process: {error}"))


if __name__ == "__main__":
    main()
