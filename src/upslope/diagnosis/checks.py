"""What is asked of an environment: each check is a function of what was seen of it, and yields what it found."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from upslope.diagnosis.trials import Trial, actions_of, play, player_of, same
from upslope.environments.base import CompiledEnvironment
from upslope.environments.registry import AnyEnvironment, HostEnvironment
from upslope.errors import UpslopeError
from upslope.models.encoders import encoder_of
from upslope.models.heads import head_of

Status = Literal["ok", "warning", "error", "skipped"]
STEPS, SECONDS = 5000, 4.0
"""The long trial: so many steps, or so long."""
SHORT = 200
"""Steps of the trials that are compared with each other."""
FAR = 10.0
"""An observation whose mean or deviation is beyond this wants normalising."""
SMALL = 0.01
SLOW = 1000
"""Steps per second below which the environment is the bottleneck."""


@dataclass(frozen=True)
class Check:
    """What one check found, and what to do about it."""

    name: str
    status: Status
    found: str
    remedy: str = ""


@dataclass
class Examined:
    """An environment and what was seen of it."""

    name: str
    world: AnyEnvironment
    limit: int | None
    trial: Trial

    def short(self, seed: int = 0, actions: int = 0) -> Trial:
        """A short trial of a fresh instance."""
        player = player_of(self.world, self.limit)
        try:
            return play(player, actions_of(self.world, actions), SHORT, SECONDS, seed)
        finally:
            player.close()


def of_spaces(name: str, world: AnyEnvironment) -> Iterator[Check]:
    """Whether the spaces can be used."""
    for role, make_one, space in (
        ("observation space", encoder_of, world.observation_space),
        ("action space", head_of, world.action_space),
    ):
        try:
            make_one(space, name)
            yield Check(role, "ok", str(space))
        except UpslopeError as error:
            yield Check(role, "error", str(space), str(error))


def of_gymnasium(e: Examined) -> Iterator[Check]:
    """Gymnasium's own checker, with what it warns of."""
    if not isinstance(e.world, HostEnvironment):
        yield Check("Gymnasium's checker", "skipped", "not a Gymnasium environment")
        return
    env = e.world.create()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check_env(env.unwrapped, skip_render_check=True, skip_close_check=True)
        except Exception as error:
            words = str(error).splitlines()[0] if str(error) else type(error).__name__
            yield Check("Gymnasium's checker", "error", words, "Correct what the message names.")
            return
        finally:
            env.close()
    words = [
        plain(str(w.message)) for w in caught if "env_checker" in str(w.filename) or "UserWarning" in str(w.category)
    ]
    status: Status = "warning" if words else "ok"
    remedy = "Worth correcting where it is a surprise." if words else ""
    yield Check("Gymnasium's checker", status, "; ".join(dict.fromkeys(words)) or "passed", remedy)


def plain(message: str) -> str:
    """A message without terminal colours."""
    return message.replace("\x1b[33m", "").replace("\x1b[0m", "").removeprefix("WARN: ").strip()


def of_repetition(e: Examined) -> Iterator[Check]:
    """The same reset seed and actions must show the same; in a fresh instance, in a used one, and beside another."""
    first, again = e.short(), e.short()
    if not same(first, again):
        remedy = "Draw all randomness from self.np_random, which reset(seed=…) seeds; runs are then repeatable."
        yield Check("repeats itself", "error", "same seed and actions, another course", remedy)
        yield Check("nothing leaks through reset", "skipped", "cannot be told while it does not repeat itself")
        yield Check("instances are independent", "skipped", "cannot be told while it does not repeat itself")
        return
    yield Check("repeats itself", "ok", f"same seed and actions gave the same {first.steps} steps")
    used = player_of(e.world, e.limit)
    play(used, actions_of(e.world, 5), SHORT, SECONDS, 1000)
    is_clean = same(first, play(used, actions_of(e.world, 0), SHORT, SECONDS))
    used.close()
    if is_clean:
        yield Check("nothing leaks through reset", "ok", "after other episodes the same seed shows the same course")
    else:
        words = "after other episodes the same seed shows another course"
        yield Check(
            "nothing leaks through reset", "error", words, "Set every attribute of the episode anew in reset()."
        )
    if same(first, beside_another(e)):
        yield Check("instances are independent", "ok", "another instance stepped beside it changes nothing")
    else:
        words = "another instance stepped beside it changes its course"
        yield Check(
            "instances are independent", "error", words, "Keep no state in the class, a module or a shared object."
        )


def beside_another(e: Examined) -> Trial:
    """The short trial, with another instance stepped between its steps."""
    one, other = player_of(e.world, e.limit), player_of(e.world, e.limit)
    actions, others = actions_of(e.world, 0), actions_of(e.world, 9)
    other.reset(77)

    def next_action() -> Any:
        _, _, terminated, truncated = other.step(others())
        if terminated or truncated:
            other.reset(78)
        return actions()

    trial = play(one, next_action, SHORT, SECONDS)
    one.close()
    other.close()
    return trial


def of_observations(e: Examined) -> Iterator[Check]:
    """Inside the declared space, finite, on a scale that a network can read."""
    space, seen = e.world.observation_space, np.stack(e.trial.observations)
    if not isinstance(space, spaces.Box):
        inside = all(space.contains(o if o.shape else int(o)) for o in seen[:SHORT])
        yield Check("observations", "ok" if inside else "error", f"{len(seen)} seen" if inside else "outside the space")
        return
    if not np.isfinite(seen).all():
        at = int(np.argwhere(~np.isfinite(seen).reshape(len(seen), -1).all(1))[0, 0])
        yield Check("observations", "error", f"not finite at number {at}", "Find where the environment divides by 0.")
        return
    outside = float(np.mean((seen < space.low - 1e-6) | (seen > space.high + 1e-6)))
    remedy = "Correct observation_space; its bounds are a promise to whoever reads it." if outside else ""
    yield Check(
        "observations in their space", "warning" if outside else "ok", f"{outside:.1%} of numbers outside", remedy
    )
    flat = seen.reshape(len(seen), -1).astype(np.float64)
    mean, std = flat.mean(0), flat.std(0)
    words = f"means {mean.min():.3g} to {mean.max():.3g}, deviations {std.min():.3g} to {std.max():.3g}"
    yield Check("observation scale", "warning" if wants_normalising(e) else "ok", words,
                "Add --normalize-observations." if wants_normalising(e) else "")  # fmt: skip
    if (std == 0).any():
        which = ", ".join(map(str, np.flatnonzero(std == 0)[:5]))
        yield Check(
            "observations vary", "warning", f"never change: {which}", "Harmless if a random policy cannot reach it."
        )


def wants_normalising(e: Examined) -> bool:
    """Whether a network would see numbers far from 0 or widths far from 1."""
    if not isinstance(e.world.observation_space, spaces.Box):
        return False
    flat = np.stack(e.trial.observations).reshape(len(e.trial.observations), -1).astype(np.float64)
    mean, std = flat.mean(0), flat.std(0)
    return bool((np.abs(mean) > FAR).any() or (std > FAR).any() or ((std > 0) & (std < SMALL)).any())


def of_rewards(e: Examined) -> Iterator[Check]:
    """Finite, not always the same, and not far from 1."""
    rewards = np.asarray(e.trial.rewards)
    words = f"{rewards.min():.4g} to {rewards.max():.4g}, mean {rewards.mean():.4g}"
    if not np.isfinite(rewards).all():
        yield Check("rewards", "error", "not finite", "Find where the environment divides by 0.")
    elif (rewards == 0).all():
        yield Check("rewards", "warning", f"all 0 in {len(rewards)} random steps",
                    "A random policy finds nothing to learn from: shape the reward, or explore wider.")  # fmt: skip
    elif np.ptp(rewards) == 0 and len(set(e.trial.lengths)) <= 1:
        yield Check("rewards", "warning", f"{words}, in episodes of one length: every return is the same",
                    "A random policy cannot tell good from bad: shape the reward, or explore wider.")  # fmt: skip
    elif np.abs(rewards).max() > 100:
        yield Check("rewards", "warning", words, "Large: keep --normalize-rewards.")
    else:
        yield Check("rewards", "ok", words)


def of_actions(e: Examined) -> Iterator[Check]:
    """Whether actions have bounds, and whether they matter."""
    space = e.world.action_space
    if isinstance(space, spaces.Box) and not np.isfinite([space.low, space.high]).all():
        yield Check("action range", "warning", str(space), "Give finite bounds: a policy's σ is a share of the range.")
    one, other = e.short(actions=0), e.short(actions=3)
    matters = not same(one, other)
    words = "other actions gave another course" if matters else "other actions from the same seed changed nothing"
    yield Check(
        "actions matter", "ok" if matters else "error", words, "" if matters else "See that step() uses its action."
    )


def of_ends(e: Examined) -> Iterator[Check]:
    """How episodes end: by themselves, at a limit, never, or always alike."""
    lengths, terminated = e.trial.lengths, e.trial.terminated
    if not lengths:
        words = f"no episode ended in {e.trial.unfinished} steps; step limit: {e.limit or 'none'}"
        remedy = "Set a limit, --max-episode-steps 1000, or return terminated." if e.limit is None else ""
        yield Check("episodes end", "warning", words, remedy)
        return
    words = f"{len(lengths)} episodes of {min(lengths)} to {max(lengths)} steps; {np.mean(terminated):.0%} terminated"
    is_alike = min(lengths) == max(lengths) and len(lengths) > 2
    if max(lengths) == 1:
        yield Check("episodes end", "warning", words, "Every episode is one step: is that meant?")
    elif is_alike and all(terminated) and e.limit != lengths[0]:
        yield Check("episodes end", "warning", f"{words}: always after {lengths[0]} steps",
                    "If that is a time limit, return truncated: the value after it is not 0.")  # fmt: skip
    elif e.limit is None and not any(terminated):
        yield Check("episodes end", "ok", f"{words}; it truncates by itself")
    else:
        yield Check("episodes end", "ok", f"{words}; step limit: {e.limit or 'none'}")


def of_speed(e: Examined) -> Iterator[Check]:
    """Steps per second, and where the time goes."""
    t = e.trial
    if isinstance(e.world, CompiledEnvironment):
        yield Check("speed", "skipped", "a compiled world is fast inside a program only")
        return
    rate, total = t.steps / max(t.step_seconds, 1e-9), t.step_seconds + t.reset_seconds
    reset = f"reset {1e3 * t.reset_seconds / t.resets:.2g} ms, {t.reset_seconds / total:.0%} of the time"
    words = f"{rate:,.0f} steps/s in one process; {reset}"
    slow = rate < SLOW
    yield Check(
        "speed", "warning" if slow else "ok", words, "The environment will take most of the time." if slow else ""
    )


def of_returns(e: Examined) -> Iterator[Check]:
    """What a random policy gets: the first number to beat."""
    r = e.trial.returns
    words = f"{np.mean(r):.4g} ± {np.std(r):.3g} (deviation), {min(r):.4g} to {max(r):.4g}" if r else "no episode ended"
    yield Check("a random policy's return", "ok", words)
