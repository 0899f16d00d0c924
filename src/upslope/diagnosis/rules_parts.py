"""Rules about parts that only some runs have: action masks, a memory, image encoders, several keys, or a bonus."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from upslope.core.keys import key_within
from upslope.diagnosis.findings import Finding, Signs, rule, share

MASKS, MEMORY, IMAGES, KEYS = "action masks", "a memory", "a network that reads images", "several keys that vary"
BONUS = "a bonus"
"""Descriptions of parts that a run may lack."""


def of_part(s: Signs, name: str, part: str) -> np.ndarray:
    """A metric's late value per seed. A run without the metric lacks the part."""
    x = s.late(name)
    if name in s.lacking:
        s.lacking.discard(name)
        s.lacking.add(part)
    return x


@rule("Huang and Ontañón 2022: what invalid action masking does to the gradient")
def forbidden_actions_likely(s: Signs) -> Finding | None:
    """Most of the unmasked probability lies on forbidden actions: a note, since only the mask keeps them away."""
    x = of_part(s, "forbidden_mass", MASKS)
    part = share(x > 0.5)
    is_all = share(x > 0.99) > 0
    return Finding(
        "forbidden_actions_likely", "Without its mask the policy would mostly choose forbidden actions.",
        "No gradient flows to forbidden actions, so nothing is learned about them; only the mask keeps them away."
        if not is_all else "The masked policy chooses by differences between almost impossible actions.",
        "Pass the mask wherever the policy is used; lower --learning-rate where the share rises towards 1.",
        (0.6 if is_all and s.is_flat else 0.4) * part, 0.6,
        evidence=(s.evidence("forbidden_mass", x, "below 0.5", 0.5),),
        rivals=("a mask that allows only a few of many actions", "a mask with 0 and 1 swapped"),
    ) if part else None  # fmt: skip


@rule("Hochreiter and Schmidhuber 1997: saturated units pass on no gradient")
def memory_saturated(s: Signs) -> Finding | None:
    """Most of the memory is at its bound in all steps."""
    x = of_part(s, "memory_saturated", MEMORY)
    part = share(x > 0.5)
    return Finding(
        "memory_saturated", "Most of the memory is at its bound, ±1, in every step.",
        "Its inputs or weights are so large that it stays the same whatever the input.",
        f"Add --normalize-observations, or lower --learning-rate (now {s.config.learning_rate:g}).", 0.8 * part, 0.9,
        evidence=(s.evidence("memory_saturated", x, "below 0.1", 0.5),),
    ) if part else None  # fmt: skip


@rule("Jones 2021: units that do not vary")
def memory_dead(s: Signs) -> Finding | None:
    """The memory does not vary from step to step or from episode to episode."""
    x = of_part(s, "memory_dead", MEMORY)
    # A saturated memory does not vary either, but it has its own rule.
    part = share((x > 0.9) & ~(of_part(s, "memory_saturated", MEMORY) > 0.5))
    return Finding(
        "memory_dead", "The memory keeps nothing: almost none of it varies.",
        "Its inputs hardly differ from step to step.",
        "Add --normalize-observations; if that does not help, train without --memory.", 0.8 * part, 0.8,
        evidence=(s.evidence("memory_dead", x, "below 0.5", 0.5),),
        rivals=("an observation that does not change",), experiment="upslope check ENVIRONMENT",
    ) if part else None  # fmt: skip


@rule("Lu et al. 2019: dying ReLU")
def encoder_dead(s: Signs) -> Finding | None:
    """The features of an image are the same whatever the image shows."""
    x = of_part(s, "encoder_dead", IMAGES)
    part = share(x > 0.95)
    return Finding(
        "encoder_dead", "The features of images do not vary.",
        "The encoder's units have died: an update pushed them below 0 for every image.",
        f"Lower --learning-rate (now {s.config.learning_rate:g}) or --max-grad-norm, or use another --encoder.",
        0.85 * part, 0.95, evidence=(s.evidence("encoder_dead", x, "below 0.7", 0.5),),
        rivals=("images that do not change",), experiment="upslope check ENVIRONMENT",
    ) if part else None  # fmt: skip


@rule("Burda et al. 2019, section 2.3: two streams of reward")
def bonus_drowns_reward(s: Signs) -> Finding | None:
    """The policy follows the bonus although there are rewards, and does not earn more of them."""
    x, found = of_part(s, "bonus/share", BONUS), s.late("reward_nonzero")
    part = share((x > 0.8) & (found > 0)) if s.is_flat else 0.0
    return Finding(
        "bonus_drowns_reward", "The policy follows the bonus, not the rewards.",
        "The bonus makes up almost all of the weights Ψ, although rewards are seen.",
        f"Lower --bonus-coefficient (now {s.config.bonus_coefficient:g}).", 0.7 * part, 0.9,
        evidence=(s.evidence("bonus/share", x, "below 0.5 once rewards are found", 0.5),
                  s.evidence("reward_nonzero", found, "", 0.5)),
        rivals=("the rewards seen so far lead nowhere, and more exploration is needed",),
        experiment="the same seeds with a tenth of --bonus-coefficient",
    ) if part else None  # fmt: skip


@rule("Burda et al. 2019: a bonus fades as states become known")
def bonus_never_fades(s: Signs) -> Finding | None:
    """The bonus of a step is as large at the end as at the beginning, but it does not grow."""
    first, last, rises = s.taken("bonus/mean", 0.0, 0.1), s.taken("bonus/mean", 0.8), grows(s)
    of_part(s, "bonus/mean", BONUS)
    part = share((last > 0.7 * first) & (first > 0) & ~rises)
    return Finding(
        "bonus_never_fades", "The bonus does not fade.",
        "States are still as novel as at the beginning: the run is too short, or no two of them are "
        "treated as the same.",
        "Train longer (--steps), or treat more observations as the same: fewer `cells` of --bonus count.", 0.55 * part,
        0.9 if s.is_flat else 0.5,
        evidence=(s.evidence("bonus/mean", first, "", 0.0, 0.1), s.evidence("bonus/mean", last, "falls", 0.8)),
        rivals=("an environment whose states are always new", "noise in the observations"),
    ) if part else None  # fmt: skip


@rule("Burda et al. 2019, Large-Scale Study of Curiosity-Driven Learning, section 5: the noisy television")
def noisy_television(s: Signs) -> Finding | None:
    """The policy earns more and more bonus, which would be impossible if states became familiar."""
    rises, x = grows(s), of_part(s, "bonus/mean", BONUS)
    part = share(rises) if s.is_flat else 0.0
    return Finding(
        "noisy_television", "The policy has found something that always surprises it.",
        "The bonus grows while the return does not: the policy stays where observations are random, which can be "
        "neither predicted nor counted.",
        "Use --bonus count, if there are few random states; or remove the noise: --ignore-observation.", 0.75 * part,
        evidence=(s.evidence("bonus/mean", x, "falls", 0.5),), rivals=("part of the environment was reached late",),
        experiment="the same seeds with --bonus count; a video of the policy: upslope evaluate RUN --video film.mp4",
    ) if part else None  # fmt: skip


def grows(s: Signs) -> np.ndarray:
    """Whether each seed's mean bonus ends at least twice as high as in its lowest tenth, and above half of its initial
    value [S]."""
    tenths = np.stack([s.taken("bonus/mean", k / 10, (k + 1) / 10) for k in range(10)])
    last = np.nanmean(tenths[-2:], axis=0) if np.isfinite(tenths).any() else tenths[-1]
    with np.errstate(invalid="ignore"):
        return (last > 2 * np.nanmin(np.nan_to_num(tenths, nan=np.inf), axis=0)) & (last > 0.5 * tenths[0])


@rule("Schulman, nuts and bolts: observations of mean 0 and deviation 1")
def key_drowns_others(s: Signs) -> Finding | None:
    """One key of the observation varies so much that the first layer sees little of the others."""
    x = of_part(s, "key_share", KEYS)
    part = 0.0 if s.config.normalize_observations else share(x > 0.99)
    key = loudest_key(s) if part else ""
    return Finding(
        "key_drowns_others", f"One key of the observation drowns out the others{key}.",
        "Its numbers are so much larger that they make up almost all of the first layer's input.",
        "Add --normalize-observations.", (0.75 if s.is_flat else 0.45) * part, 0.8,
        evidence=(s.evidence("key_share", x, "below 0.95", 0.5),), rivals=("other keys that carry no information",),
        experiment="the same seeds with --normalize-observations",
    ) if part else None  # fmt: skip


def loudest_key(s: Signs) -> str:
    """The name of the key that drowns out the others, as text; empty if the seeds do not agree."""
    networks = s.record.description.get("networks") or []
    convolved = {str(words).split(" read by ")[0] for words in networks}
    keys = [key for key in keys_of(s.record.description["spaces"]["observation"]) if key not in convolved]
    places = {int(k) for k in s.late("key_index") if np.isfinite(k)}
    place = places.pop() if len(places) == 1 else -1
    return f": `{keys[place]}`" if 0 <= place < len(keys) else ""


def keys_of(space: dict[str, Any], key: str | None = None) -> Iterator[str]:
    """The keys of the arrays of an observation as config.json describes it, in the order of their features."""
    parts = space.get("parts")
    if parts is None:
        yield key or ""
        return
    for name, part in sorted(parts.items()) if isinstance(parts, dict) else enumerate(parts):
        yield from keys_of(part, key_within(key, name))
