"""The checks of an environment. Each is a function that examines the observed behaviour and yields its results."""

import shlex
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from upslope.core.arrays import is_shape
from upslope.core.broken_facts import TOO_LARGE, scaling_remedy
from upslope.core.messages import counted, told
from upslope.core.space_parts import leaf_spaces
from upslope.diagnosis.check_results import Check, Status
from upslope.diagnosis.contract import fault_of_values
from upslope.diagnosis.hidden_state import Suspicion, memory_test
from upslope.diagnosis.trials import TIME_LIMIT, Trial, actions_of, is_traced_alike, play, player_of, programs, same
from upslope.engines.border import lost_in_float32
from upslope.engines.columns import reset_seed
from upslope.environments.registry import AnyEnvironment
from upslope.errors import STOPS, UpslopeError
from upslope.models.box_limits import coarse_in_words, huge_bounds, remedy_of
from upslope.models.description import kind_of
from upslope.models.encoders import at, encoder_of
from upslope.models.heads import head_of

STEPS, SECONDS = 5000, 4.0
"""Limits of the long trial, in steps and in seconds."""
SHORT, SHORT_SECONDS = 200, 2.0
"""Limits, in steps and in seconds, of the short trials, which are compared with each other."""
PAIRS, CONTROLS, TREATED = 3, 12, 4
"""Three counts: fresh environments that are compared with the first one, additional ones that must agree before a
suspected cause is named, and trials of that cause."""
FAR = 10.0
"""Observations whose mean or standard deviation exceeds this should be normalised."""
SMALL = 0.01
SLOW = 1000
"""Steps per second below which the environment is the bottleneck."""


@dataclass
class Examined:
    """An environment, together with the long trial that shows its behaviour."""

    name: str
    environment: AnyEnvironment
    limit: int | None
    trial: Trial

    def short(self, seed: int = 0, actions: int = 0) -> Trial:
        """Run a short trial of a fresh environment."""
        player = player_of(self.environment, self.limit)
        try:
            return play(player, actions_of(self.environment, actions), SHORT, SHORT_SECONDS, seed)
        finally:
            with suppress(Exception):  # closing was checked before
                player.close()

    @cached_property
    def suspicion(self) -> Suspicion:
        """The evidence for a hidden state in the long trial."""
        encoder = encoder_of(self.environment.observation_space, self.name)
        return memory_test(self.trial, encoder, self.environment.action_space)


def of_spaces(name: str, environment: AnyEnvironment, unread: Sequence[tuple[str, Any]] = ()) -> Iterator[Check]:
    """Check whether the spaces are supported. `unread` lists the parts of observations that were left out, each with
    its key."""
    for key, space in unread:
        words = f"`{key}` is {kind_of(space)}, which no network can read"
        yield Check("observation space", "warning", words, f"Leave it out: --ignore-observation {shlex.quote(key)}")
    for role, make_one, space in (
        ("observation space", encoder_of, environment.observation_space),
        ("action space", head_of, environment.action_space),
    ):
        try:
            make_one(space, name)
            yield Check(role, "ok", str(space))
        except UpslopeError as error:
            yield Check(role, "error", str(space), str(error))


def of_gymnasium(e: Examined) -> Iterator[Check]:
    """Run Gymnasium's own checker. Earlier checks cover the faults that harm training, so its messages are warnings."""
    if e.environment.is_compiled:
        yield Check("Gymnasium's checker", "skipped", "not a Gymnasium environment")
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        error = ""
        try:
            host: Any = e.environment
            env = host.create()
            try:
                check_env(with_plain_flags(env.unwrapped), skip_render_check=True, skip_close_check=True)
            finally:
                env.close()
        except STOPS:
            raise
        except BaseException as complaint:
            error = str(complaint).strip().split("\n")[0] or told(complaint)
    words = [
        plain(str(w.message)) for w in caught if "env_checker" in str(w.filename) or "UserWarning" in str(w.category)
    ]
    every: list[str] = list(dict.fromkeys([error, *words]))
    words = [each for each in every if each and "infinity" not in each]
    remedy = "Training can handle it; correct it if it was not intended." if words else ""
    yield Check("Gymnasium's checker", "warning" if words else "ok", "; ".join(words) or "passed", remedy)


def with_plain_flags(env: gymnasium.Env) -> gymnasium.Env:
    """Let an environment return Python's booleans instead of NumPy's. Gymnasium's checker takes any other False for an
    episode that ends."""
    step = env.step

    def plain_step(action: Any) -> Any:
        answer: Any = step(action)
        if not isinstance(answer, tuple):
            return answer
        return tuple(bool(x) if isinstance(x, np.bool_) and place in (2, 3) else x for place, x in enumerate(answer))

    with suppress(AttributeError):  # a class with `__slots__`
        env.step = plain_step
    return env


def plain(message: str) -> str:
    """Strip terminal colours from a message."""
    return message.replace("\x1b[33m", "").replace("\x1b[0m", "").removeprefix("WARN: ").strip()


REPEATS, LEAKS, SHARES = "repeats itself", "nothing leaks through reset", "instances are independent"
UNTOLD = "cannot be decided while the environment is not repeatable"


def of_repetition(e: Examined) -> Iterator[Check]:
    """Check that the same seed and actions give the same episode, even after other episodes or alongside another
    instance.

    An environment that is only occasionally nondeterministic could seem to leak or share state. A cause is therefore
    named only if many fresh environments agree with each other and the suspect ones differ from them repeatedly.
    """
    first = e.short()
    different = count_different(e.short, first, PAIRS)
    suspects = {}
    if not different:
        trials = {LEAKS: partial(used, e), SHARES: partial(beside, e)}
        suspects = {name: count_different(again, first, 1) for name, again in trials.items()}
    compared = PAIRS
    if any(suspects.values()):
        different, compared = count_different(e.short, first, CONTROLS), PAIRS + CONTROLS
    remedy = "Draw all randomness from self.np_random, which reset(seed=…) seeds; runs are then repeatable."
    words = f"same seed and actions, but a different episode in {different} of {compared} fresh environments"
    if e.environment.is_compiled and not different and not is_traced_alike(e.environment):
        different = int(any(not same(first, traced_again(e)) for _ in range(PAIRS)))
        words = "same seed and actions, but a different episode when JAX traces reset and step again"
        remedy = "Draw all randomness with jax.random from the key that reset and step are given."
    if different:
        yield Check(REPEATS, "error", words, remedy)
        yield Check(LEAKS, "skipped", UNTOLD)
        yield Check(SHARES, "skipped", UNTOLD)
        return
    words = f"{compared + 1} fresh environments gave the same {first.steps} steps"
    yield Check(REPEATS, "ok", words)
    yield verdict(LEAKS, suspects[LEAKS] and count_different(partial(used, e), first, TREATED),
                  "after other episodes the same seed gives a different episode",
                  "Set every attribute of the episode again in reset().")  # fmt: skip
    yield verdict(SHARES, suspects[SHARES] and count_different(partial(beside, e), first, TREATED),
                  "stepping another instance at the same time changes its episode",
                  "Keep no state in the class, a module or a shared object.")  # fmt: skip


def verdict(name: str, different: int, words: str, remedy: str) -> Check:
    """The result for a suspected cause that changed the episode in `different` of `TREATED` trials."""
    if not different:
        return Check(name, "ok", f"not found: {words}")
    status: Status = "error" if different == TREATED else "warning"
    return Check(name, status, f"{words} (in {different} of {TREATED} trials)", remedy)


def count_different(again: Callable[[], Trial], first: Trial, number: int) -> int:
    """Count how many of `number` trials differ from the first."""
    return sum(not same(first, again()) for _ in range(number))


def traced_again(e: Examined) -> Trial:
    """Run the short trial after JAX has traced the environment again."""
    programs.cache_clear()
    return e.short()


def used(e: Examined) -> Trial:
    """Run the short trial in an environment that has already played other episodes."""
    player = player_of(e.environment, e.limit)
    try:
        play(player, actions_of(e.environment, 5), SHORT, SHORT_SECONDS, 1000)
        return play(player, actions_of(e.environment, 0), SHORT, SHORT_SECONDS)
    finally:
        with suppress(Exception):
            player.close()


def beside(e: Examined) -> Trial:
    """Run the short trial while stepping another instance between its steps."""
    one, other = player_of(e.environment, e.limit), player_of(e.environment, e.limit)
    actions, others = actions_of(e.environment, 0), actions_of(e.environment, 9)
    other.reset(reset_seed(77, 0, 0))

    def next_action(mask: np.ndarray | None) -> Any:
        _, _, terminated, truncated = other.step(others(other.mask))
        if terminated or truncated:
            other.reset(reset_seed(77, 0, 1))
        return actions(mask)

    try:
        return play(one, next_action, SHORT, SHORT_SECONDS)
    finally:
        for player in (one, other):
            with suppress(Exception):
                player.close()


@dataclass(frozen=True)
class SeenArray:
    """One array in the observations of a trial."""

    path: str
    """Its path within an observation; empty if the observation is a single array."""
    space: spaces.Space
    seen: np.ndarray
    """The n observed values [n, …]."""
    is_real: bool
    """Whether its values are continuous and can be normalised."""

    def scales(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The mean and standard deviation of each feature in 64 bits, and whether the differences between its values
        are lost in 32 bits."""
        flat = self.seen.reshape(len(self.seen), -1).astype(np.float64)
        mean, std = flat.mean(0), flat.std(0)
        return mean, std, np.isin(np.arange(mean.size), lost_in_float32(flat))

    def size(self) -> float:
        """The largest |number| in it."""
        return float(np.abs(self.seen.astype(np.float64)).max())

    def is_too_large(self) -> bool:
        """Whether it can be normalised, but its numbers are so large that the statistics would overflow."""
        return self.is_real and self.size() >= TOO_LARGE

    def wants_normalising(self) -> bool:
        """Whether its mean is far from 0 or its spread far from 1, so that normalising can help."""
        if not self.is_real or self.is_too_large():
            return False
        mean, std, lost = self.scales()
        far = (np.abs(mean) > FAR) | (std > FAR) | ((std > 0) & (std < SMALL))
        return bool((far & ~lost).any())


def arrays_of(e: Examined) -> list[SeenArray]:
    """The arrays in the observations of the long trial."""
    encoder = encoder_of(e.environment.observation_space, e.name)
    stacked = jax.tree.map(lambda *x: np.stack(x), *e.trial.observations)
    seen = jax.tree_util.tree_leaves_with_path(stacked)
    leaves = jax.tree.leaves(leaf_spaces(e.environment.observation_space))
    real = jax.tree.leaves(encoder.normalised, is_leaf=lambda node: node is None or is_shape(node))
    return [
        SeenArray(jax.tree_util.keystr(path), space, x, shape is not None)
        for (path, x), space, shape in zip(seen, leaves, real, strict=True)
    ]


def of_observations(e: Examined) -> Iterator[Check]:
    """Check that observations are in the declared space, are finite, and have a scale suited to a network."""
    for array in arrays_of(e):
        yield from of_array(array)


def of_array(array: SeenArray) -> Iterator[Check]:
    """Check one array of the observations."""
    space, seen, path = array.space, array.seen, array.path
    if fault := fault_of_values(space, seen):
        yield Check(f"observations{path}", "error", f"it {fault[0]}", fault[1])
        return
    if not isinstance(space, spaces.Box):
        yield Check(f"observations{path}", "ok", f"{len(seen)} seen, all in the space")
        return
    with np.errstate(over="ignore"):
        finite = np.isfinite(seen.astype(np.float32)).reshape(len(seen), -1).all(1)
    if not finite.all():
        at = int(np.flatnonzero(~finite)[0])
        words, remedy = "too large for float32", scaling_remedy(is_normalised=False)
        if not np.isfinite(seen[at]).all():
            words, remedy = "not finite", "Look for a division by 0 in the environment."
        yield Check(f"observations{path}", "error", f"{words} in observation {at}", remedy)
        return
    outside = float(np.mean((seen < space.low - 1e-6) | (seen > space.high + 1e-6)))
    remedy = "Correct observation_space; other libraries rely on its bounds." if outside else ""
    yield Check(
        f"observations{path} in their space",
        "warning" if outside else "ok",
        f"{outside:.1%} of values outside",
        remedy,
    )
    if not array.is_real:
        return
    mean, std, lost = array.scales()
    if lost.any():
        k = int(np.flatnonzero(lost)[0])
        words = f"{some(lost)} around {mean[k]:.6g} with a deviation of {std[k]:.3g}, which float32 cannot resolve"
        yield Check(f"observation{path} precision", "error", words,
                    "Subtract a constant near the mean in the environment.")  # fmt: skip
    words = f"means {mean.min():.3g} to {mean.max():.3g}, deviations {std.min():.3g} to {std.max():.3g}"
    remedy = "Add --normalize-observations." if array.wants_normalising() else ""
    if array.is_too_large():
        words += f"; numbers as large as {array.size():.3g} cannot be normalised, since their squares overflow"
        remedy = scaling_remedy(is_normalised=True)
    yield Check(f"observation{path} scale", "warning" if remedy else "ok", words, remedy)
    if (std == 0).any():
        yield Check(f"observations{path} vary", "warning", f"{some(std == 0)} never change",
                    "Harmless if a random policy cannot reach what changes them.")  # fmt: skip


def of_memory(e: Examined) -> Iterator[Check]:
    """Look for signs that past observations reveal more about the next step than the current one alone."""
    found, name = e.suspicion, "the observation determines the state"
    if not found.is_decided:
        yield Check(name, "skipped", found.words)
        return
    remedy = "It seems to show only part of the state: try --memory gru, and compare with a run without it."
    yield Check(name, "warning" if found.is_hidden else "ok", found.words, remedy if found.is_hidden else "")


def some(which: np.ndarray) -> str:
    """Describe the selected features: how many there are, and the first few."""
    places, total = np.flatnonzero(which), len(which)
    first = ", ".join(map(str, places[:5])) + (", …" if len(places) > 5 else "")
    return f"{len(places):,} of {counted(total, 'feature')} ({first})"


def wants_normalising(e: Examined) -> bool:
    """Whether any array of the observations should be normalised, and none is too large for that."""
    arrays = arrays_of(e)
    return any(array.wants_normalising() for array in arrays) and not any(array.is_too_large() for array in arrays)


def is_too_large(e: Examined) -> bool:
    """Whether any array of the observations that would be normalised is too large for that."""
    return any(array.is_too_large() for array in arrays_of(e))


def of_rewards(e: Examined) -> Iterator[Check]:
    """Check that rewards are finite, that they vary, and that their scale is not far from 1."""
    rewards = np.asarray(e.trial.rewards)
    words = f"{rewards.min():.4g} to {rewards.max():.4g}, mean {rewards.mean():.4g}"
    if not np.isfinite(rewards).all():
        yield Check("rewards", "error", "not finite", "Look for a division by 0 in the environment.")
    elif (rewards == 0).all():
        yield Check("rewards", "warning", f"all 0 in {len(rewards)} random steps",
                    "Random actions find nothing to learn from: shape the reward, or try --bonus rnd.")  # fmt: skip
    elif np.ptp(rewards) == 0 and len(set(e.trial.lengths)) <= 1:
        yield Check("rewards", "warning", f"{words}, in episodes of one length: every return is the same",
                    "Random actions do not tell good from bad: shape the reward, or try --bonus rnd.")  # fmt: skip
    elif np.abs(rewards).max() > 100:
        yield Check("rewards", "warning", words, "Large: keep --normalize-rewards.")
    else:
        yield Check("rewards", "ok", words)


def of_actions(e: Examined) -> Iterator[Check]:
    """Check whether actions have bounds, and whether they have an effect."""
    for key, box in head_of(e.environment.action_space).boxes.items():
        if words := coarse_in_words(box):
            yield Check("action precision", "error", f"{words}{at(key)}", remedy_of(box, key))
        if huge_bounds(box) or not np.isfinite([*box.low, *box.high]).all():
            words = f"{box.space()}{at(key)}"
            yield Check("action range", "warning", words, "Give finite bounds: a policy's σ is relative to the range.")
    one, other = e.short(actions=0), e.short(actions=3)
    pairs = zip(one.actions, other.actions, strict=False)  # one trial may end sooner than the other
    if all(jax.tree.all(jax.tree.map(np.array_equal, *pair)) for pair in pairs):
        yield Check("actions matter", "skipped", "there is only one possible action")
        return
    matters = not same(one, other)
    if not matters and not (one.lengths and other.lengths):
        words = f"other actions changed nothing in {min(one.steps, other.steps)} steps, in which no episode ended"
        yield Check("actions matter", "warning", words, "Make sure that step() uses its action.")
        return
    words = "other actions gave a different episode" if matters else "other actions from the same seed changed nothing"
    yield Check(
        "actions matter",
        "ok" if matters else "error",
        words,
        "" if matters else "Make sure that step() uses its action.",
    )


def of_ends(e: Examined) -> Iterator[Check]:
    """Check how episodes end: by termination, at a time limit, never, or always at the same length."""
    lengths, terminated = e.trial.lengths, e.trial.terminated
    if not lengths:
        words = f"no episode ended in {e.trial.unfinished} steps; step limit: {e.limit or 'none'}"
        remedy = "Set a limit, --max-episode-steps 1000, or return terminated." if e.limit is None else ""
        yield Check("episodes end", "warning", words, remedy)
        return
    words = f"{len(lengths)} episodes of {min(lengths)} to {max(lengths)} steps; {np.mean(terminated):.0%} terminated"
    is_alike = min(lengths) == max(lengths) and len(lengths) > 2
    if cut := sum(np.logical_and(terminated, e.trial.time_limits)):
        words = f"{words}; {cut} of them with {TIME_LIMIT} in info, although step() returned terminated"
        remedy = "Return terminated=False and truncated=True there: the value after a time limit is not 0."
        yield Check("episodes end", "error", words, remedy)
    elif max(lengths) == 1:
        yield Check("episodes end", "warning", words, "Every episode has one step: is that intended?")
    elif is_alike and all(terminated) and e.limit != lengths[0]:
        yield Check("episodes end", "warning", f"{words}: always after {lengths[0]} steps",
                    "If that is a time limit, return truncated: the value after it is not 0.")  # fmt: skip
    elif e.limit is None and not any(terminated):
        yield Check("episodes end", "ok", f"{words}; the environment truncates them itself")
    else:
        yield Check("episodes end", "ok", f"{words}; step limit: {e.limit or 'none'}")


def of_speed(e: Examined) -> Iterator[Check]:
    """Measure the steps per second, and find out where the time goes."""
    t = e.trial
    if e.environment.is_compiled:
        yield Check("speed", "skipped", "a compiled environment is fast only inside a compiled program")
        return
    rate, total = t.steps / max(t.step_seconds, 1e-9), t.step_seconds + t.reset_seconds
    reset = f"reset {1e3 * t.reset_seconds / t.resets:.2g} ms, {t.reset_seconds / total:.0%} of the time"
    words = f"{rate:,.0f} steps/s in one process; {reset}"
    slow = rate < SLOW
    yield Check(
        "speed", "warning" if slow else "ok", words, "The environment will take most of the time." if slow else ""
    )


def of_returns(e: Examined) -> Iterator[Check]:
    """Report the return of a random policy, the first number to beat."""
    r = e.trial.returns
    words = f"{np.mean(r):.4g} ± {np.std(r):.3g} (deviation), {min(r):.4g} to {max(r):.4g}" if r else "no episode ended"
    yield Check("a random policy's return", "ok", words)
