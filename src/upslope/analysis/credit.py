"""Credit assignment: the weight that each estimator gives to each action of an episode, as data and as a file."""

import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np

from upslope.core.messages import shell
from upslope.core.reading import brief
from upslope.core.storage import fits_32_bits, load_arrays, save_arrays
from upslope.errors import UpslopeError

CREDIT_FORMAT = 1
FILE_NAME = "credit.npz"


@dataclass(frozen=True)
class EpisodeCredit:
    """One episode of a trained agent, and the weight that each estimator gives to each action. It has T steps, and
    rewards are in the environment's units.

    Every estimator is linear in the rewards and values, so a learner that scales its rewards by 1/σ also scales these
    weights by 1/σ. It then centres and scales them over a batch if `normalize_advantage` is set.
    """

    environment: str
    algorithm: str
    seed: int
    checkpoint: str
    episode_seed: int
    gamma: float
    """The run's γ."""
    terminated: bool
    """Whether the episode terminated; otherwise it was truncated."""
    own: str | None
    """The key in `weights` of the estimator that the run was trained with."""
    reward: np.ndarray
    """r_t [T]."""
    value: np.ndarray | None
    """V(s_t) [T]; None if the run trained no critic."""
    td_error: np.ndarray | None
    """δ_t = r_t + γ V(s_{t+1}) − V(s_t) [T]; None without a critic."""
    weights: dict[str, np.ndarray]
    """Estimator → Ψ_t [T]. Without a critic, it contains only the estimators that need none."""
    policy: dict[str, np.ndarray]
    """π(·|s_t): `probability` [T, A]; for a Box, `mean` and `std` [T, K]; for a squashed Box, `median`, `low` and
    `high`, which are tanh of the mean and of the mean ± σ. For an action with several parts, each name is preceded by
    the part's key and a slash."""
    action: np.ndarray
    """The action taken [T, …], before it is clipped. Choices are counted from 0, and the parts of an action are joined
    into one vector."""
    picture_steps: np.ndarray
    """The steps that have a picture [F], in increasing order."""
    pictures: tuple[bytes, ...]
    """s_t at those steps, as WebP."""
    picture_note: str
    """Why there are no pictures; empty if there are any."""
    mask: np.ndarray | None = None
    """Which choices were allowed [T, M]; None if the environment never forbids a choice."""
    image_steps: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """The steps at which the images of the observation are kept [F], in increasing order."""
    images: dict[str, tuple[bytes, ...]] = field(default_factory=dict)
    """Key of an image in the observation → the image at those steps, as WebP. The key is empty if the whole observation
    is one image."""
    influence: np.ndarray | None = None
    """‖∂(outputs of the policy at t)/∂(observation at k)‖ for some decisions t and all k [R, K]; None without a
    memory."""
    influence_steps: np.ndarray | None = None
    """The steps t of those decisions [R]."""

    @property
    def num_steps(self) -> int:
        """The length T of the episode."""
        return len(self.reward)

    def spread(self, estimator: str) -> float:
        """(Σ|Ψ_t|)² / ΣΨ_t²: the effective number of actions that share the credit, from 1 to T (all equal).

        This is the participation ratio, the analogue of an effective sample size (Kish 1965). It is 0 if every Ψ_t is
        0.
        """
        size = np.abs(self.weights[estimator].astype(np.float64))
        if not size.any():
            return 0.0
        size /= size.max()  # otherwise the squares of small weights could underflow
        return float(size.sum() ** 2 / (size**2).sum())

    def singles_out(self, estimator: str) -> bool:
        """Whether the weights differ in magnitude."""
        size = np.abs(self.weights[estimator].astype(np.float64))
        return bool(np.ptp(size) > 1e-6 * size.max())

    @property
    def parts(self) -> list["Part"]:
        """The parts of the action; a single part with the key "" if it is not a Dict or Tuple."""
        return parts_of(self.policy, self.action)

    @property
    def discounted_return(self) -> float:
        """Σγ^t r_t."""
        return float(self.reward @ self.gamma ** np.arange(len(self.reward)))

    def most_blamed(self, estimator: str) -> int:
        """The step with the largest |Ψ_t|; the first such step if there are ties."""
        return int(np.argmax(np.abs(self.weights[estimator])))


class Part(NamedTuple):
    """A part of an action: its key, its policy as in `EpisodeCredit.policy`, and the values chosen for it [T, …]."""

    key: str
    policy: dict[str, np.ndarray]
    action: np.ndarray


def parts_of(policy: dict[str, np.ndarray], action: np.ndarray) -> list[Part]:
    """Split an action into its parts.

    Raises:
        ValueError: the action's parts differ from the policy's.
    """
    if not any("/" in name for name in policy):
        return [Part("", policy, action)]
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, x in policy.items():
        key, _, kind = name.rpartition("/")
        found.setdefault(key, {})[kind] = x
    sizes = [num_columns(mine) for mine in found.values()]
    if action.ndim != 2 or action.shape[1] != sum(sizes):
        raise ValueError("its action and its policy have different parts")
    taken = np.split(action, np.cumsum(sizes)[:-1], axis=1)
    return [Part(key, mine, as_sampled(mine, x)) for (key, mine), x in zip(found.items(), taken, strict=True)]


def num_columns(policy: dict[str, np.ndarray]) -> int:
    """The length of the vector that represents an action of this policy."""
    if "probability" in policy:
        return 1
    alike = [policy[name].shape[1] for name in ("mean", "median", "probability of 1") if name in policy]
    return alike[0] if alike else len(policy)


def as_sampled(policy: dict[str, np.ndarray], action: np.ndarray) -> np.ndarray:
    """A part of an action vector, with choices converted to whole numbers."""
    if "mean" in policy or "median" in policy:
        return action
    if (action != np.round(action)).any():
        raise ValueError("its choices are not whole numbers")
    return action.astype(np.int64)[:, 0] if "probability" in policy else action.astype(np.int64)


NUMBERS = ("environment", "algorithm", "seed", "checkpoint", "episode_seed", "gamma", "terminated", "own")
PLAIN = ("reward", "action", "picture_steps")
OPTIONAL = ("value", "td_error", "mask", "influence", "influence_steps")


def save_credit(path: Path, credit: EpisodeCredit) -> None:
    """Write the credit to one file, atomically. An existing file is overwritten, since it can be recomputed."""
    arrays = {name: getattr(credit, name) for name in PLAIN}
    arrays |= {f"weight/{name}": x for name, x in credit.weights.items()}
    arrays |= {f"policy/{name}": x for name, x in credit.policy.items()}
    arrays |= {name: x for name in OPTIONAL if (x := getattr(credit, name)) is not None}
    arrays |= packed("picture", credit.pictures)
    if credit.images:
        arrays["image_steps"] = credit.image_steps
    for number, images in enumerate(credit.images.values()):
        arrays |= packed(f"image_{number}", images)
    meta = {"kind": "credit", "format": CREDIT_FORMAT, "picture_note": credit.picture_note}
    meta["image_keys"] = list(credit.images)
    save_arrays(path, arrays, meta | {name: getattr(credit, name) for name in NUMBERS})


def packed(name: str, pictures: tuple[bytes, ...]) -> dict[str, np.ndarray]:
    """Pack pictures into one array of bytes, and return it with their sizes."""
    sizes = np.asarray([len(x) for x in pictures], np.int64)
    return {f"{name}_bytes": np.frombuffer(b"".join(pictures), np.uint8), f"{name}_sizes": sizes}


def unpacked(name: str, arrays: dict[str, np.ndarray]) -> tuple[bytes, ...]:
    """The inverse of `packed`."""
    sizes = arrays[f"{name}_sizes"]
    cut = np.split(arrays[f"{name}_bytes"], np.cumsum(sizes)[:-1]) if len(sizes) else []
    return tuple(x.tobytes() for x in cut)


def load_credit(path: Path) -> EpisodeCredit:
    """Read a file written by `save_credit`.

    Raises:
        UpslopeError: the file is missing, damaged, or not a credit file.
    """
    arrays, meta = load_arrays(path, "credit file")
    try:
        if (meta["kind"], meta["format"]) != ("credit", CREDIT_FORMAT):
            raise ValueError(f"it is a {meta['kind']} of format {meta['format']}")
        check_arrays(arrays)
        check_numbers(meta)
        keys = image_keys(meta, arrays)
        fields: dict[str, Any] = {name: meta[name] for name in (*NUMBERS, "picture_note")}
        fields |= {name: arrays[name] for name in PLAIN} | {name: arrays.get(name) for name in OPTIONAL}
        return EpisodeCredit(
            **fields,
            weights={n.removeprefix("weight/"): x for n, x in arrays.items() if n.startswith("weight/")},
            policy={n.removeprefix("policy/"): x for n, x in arrays.items() if n.startswith("policy/")},
            pictures=unpacked("picture", arrays),
            image_steps=arrays.get("image_steps", np.zeros(0, np.int64)),
            images={key: unpacked(f"image_{number}", arrays) for number, key in enumerate(keys)},
        )
    except (KeyError, ValueError, TypeError) as error:
        raise UpslopeError(
            f"{path} is damaged or from another version: {brief(error)}. Recreate it: "
            + shell("upslope", "credit", path.parent)
        ) from error


def check_numbers(meta: dict[str, Any]) -> None:
    """Reject fields whose types do not match `EpisodeCredit`."""
    for name, kind in get_type_hints(EpisodeCredit).items():
        if name in (*NUMBERS, "picture_note") and not isinstance(meta[name], (float, int) if kind is float else kind):
            raise TypeError(f"its {name} is {reprlib.repr(meta[name])}")
    if not abs(meta["gamma"]) <= 1:
        raise ValueError(f"its gamma is {reprlib.repr(meta['gamma'])}")


def check_arrays(arrays: dict[str, np.ndarray]) -> None:
    """Reject arrays that do not describe one episode of T steps."""
    steps, weights = arrays["reward"].shape[0] if arrays["reward"].ndim else 0, 0
    for name, x in arrays.items():
        if x.dtype.kind not in "biuf" or not fits_32_bits(x):
            raise ValueError(f"its {name} contains a value that is not a finite 32-bit number")
        if x.dtype.kind == "b" and name not in ("mask", "action"):
            raise ValueError(f"its {name} contains booleans where numbers are needed")
        is_row = name in ("reward", "value", "td_error") or name.startswith("weight/")
        if (is_row and x.shape != (steps,)) or (name.startswith("policy/") and (x.ndim != 2 or len(x) != steps)):
            raise ValueError(f"its {name} has shape {x.shape}, but the episode has {steps} steps")
        weights += name.startswith("weight/")
    if not steps or not weights or ("value" in arrays) != ("td_error" in arrays):
        raise ValueError("it has no steps, no weights, or only one of value and td_error")
    check_policy(arrays, steps)
    check_pictures(arrays["picture_steps"], "picture", arrays, steps)
    mask, influence, decisions = (arrays.get(name) for name in ("mask", "influence", "influence_steps"))
    if mask is not None and (mask.ndim != 2 or len(mask) != steps or mask.dtype.kind != "b"):
        raise ValueError("its mask does not match the episode's steps")
    if (influence is None) != (decisions is None):
        raise ValueError("it has only one of influence and influence_steps")
    if influence is not None and decisions is not None:
        is_whole = influence.ndim == 2 and influence.size and influence.shape[1] <= steps and decisions.ndim == 1
        if not is_whole or len(decisions) != len(influence) or not is_increasing(decisions, steps):
            raise ValueError("its influence does not match the episode's steps")


def is_increasing(chosen: np.ndarray, steps: int) -> bool:
    """Whether the values are steps of the episode, in increasing order."""
    return chosen.dtype.kind == "i" and not (np.diff(chosen) <= 0).any() and not (chosen % steps != chosen).any()


def check_pictures(shown: np.ndarray, name: str, arrays: dict[str, np.ndarray], steps: int) -> None:
    """Reject pictures that do not belong to these steps or do not have their declared sizes."""
    sizes, content = arrays[f"{name}_sizes"], arrays[f"{name}_bytes"]
    is_whole = shown.ndim == sizes.ndim == content.ndim == 1 and sizes.dtype.kind == "i"
    if not is_whole or len(shown) != len(sizes) or not is_increasing(shown, steps):
        raise ValueError("its pictures do not match the episode's steps")
    if (sizes < 0).any() or sum(sizes.tolist()) != len(content) or content.dtype != np.uint8:
        raise ValueError("its pictures do not have their declared sizes")


def image_keys(meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> list[str]:
    """The keys of the observation's images, after checking them; files written by older versions have none."""
    keys = meta.get("image_keys", [])
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
        raise TypeError(f"its image_keys are {reprlib.repr(keys)}")
    for number in range(len(keys)):
        check_pictures(arrays["image_steps"], f"image_{number}", arrays, len(arrays["reward"]))
    return keys


def check_policy(arrays: dict[str, np.ndarray], steps: int) -> None:
    """Reject actions that the policy's distribution cannot produce."""
    action, policy = arrays["action"], {n.removeprefix("policy/"): x for n, x in arrays.items() if "policy/" in n}
    if not policy or not action.ndim or len(action) != steps:
        raise ValueError("its action and policy do not match the episode's steps")
    if not all(fits(part, steps) for part in parts_of(policy, action)):
        raise ValueError("its actions do not fit its policy")


def fits(part: Part, steps: int) -> bool:
    """Whether the policy of a part can produce the values chosen for it.

    Raises:
        KeyError: one of the policy's parameters is missing.
    """
    _, policy, action = part
    if "mean" in policy or "median" in policy:
        names = ("mean", "std") if "mean" in policy else ("median", "low", "high")
        return {policy[name].shape for name in names} == {action.shape}
    if "probability" in policy:
        return action.ndim == 1 and is_choice(action, policy["probability"].shape[1])
    if "probability of 1" in policy:
        return action.shape == policy["probability of 1"].shape
    sizes = [x.shape[1] for x in policy.values()]
    return action.shape == (steps, len(sizes)) and is_choice(action, np.asarray(sizes))


def is_choice(action: np.ndarray, sizes: Any) -> bool:
    """Whether all actions are integers from 0 to `sizes` − 1."""
    return action.dtype.kind in "iu" and bool(((action >= 0) & (action < sizes)).all())
