"""Who is blamed? The weights that every estimator gives to each action of one episode, as data and as a file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from upslope.errors import UpslopeError
from upslope.storage import load_arrays, save_arrays

CREDIT_FORMAT = 1
FILE_NAME = "credit.npz"


@dataclass(frozen=True)
class EpisodeCredit:
    """One episode of a trained agent, and what each estimator makes of it. T steps; rewards in the world's units.

    Every estimator is linear in the rewards and values, so a learner that scales its rewards by 1/σ has these
    weights times 1/σ. It then centres and scales them over a batch if `normalize_advantage` is set.
    """

    environment: str
    algorithm: str
    seed: int
    checkpoint: str
    episode_seed: int
    gamma: float
    """γ of the run."""
    terminated: bool
    """Whether the world ended the episode; otherwise it was truncated."""
    own: str | None
    """The name, in `weights`, of the estimator that the run was trained with."""
    reward: np.ndarray
    """r_t [T]."""
    value: np.ndarray | None
    """V(s_t) [T]; None where the run trained no critic."""
    td_error: np.ndarray | None
    """δ_t = r_t + γ V(s_{t+1}) − V(s_t) [T]; None without a critic."""
    weights: dict[str, np.ndarray]
    """Estimator → Ψ_t [T]. Without a critic only those that need none."""
    policy: dict[str, np.ndarray]
    """π(·|s_t): `probability` [T, A], or `mean` and `std` [T, K] for a Box."""
    action: np.ndarray
    """The action taken [T, …], as sampled; a discrete one is counted from 0."""
    picture_steps: np.ndarray
    """The steps that are pictured [F], increasing."""
    pictures: tuple[bytes, ...]
    """s_t at those steps, as WebP."""
    picture_note: str
    """Why there is no picture; empty where there are some."""

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.reward)

    def spread(self, estimator: str) -> float:
        """(Σ|Ψ_t|)² / ΣΨ_t², 1 … T: over how many actions the credit is spread. 1: all on one action; T: on all alike.

        The participation ratio, as an effective sample size counts samples (Kish 1965). 0 where every Ψ_t is 0.
        """
        size = np.abs(self.weights[estimator])
        return float(size.sum() ** 2 / (size**2).sum()) if size.any() else 0.0

    def most_blamed(self, estimator: str) -> int:
        """The step with the largest |Ψ_t|; the first of several."""
        return int(np.argmax(np.abs(self.weights[estimator])))


NUMBERS = ("environment", "algorithm", "seed", "checkpoint", "episode_seed", "gamma", "terminated", "own")
PLAIN = ("reward", "action", "picture_steps")


def save_credit(path: Path, credit: EpisodeCredit) -> None:
    """Write it into one file, atomically; it replaces one that was there, since it can be computed again."""
    arrays = {name: getattr(credit, name) for name in PLAIN}
    arrays |= {f"weight/{name}": x for name, x in credit.weights.items()}
    arrays |= {f"policy/{name}": x for name, x in credit.policy.items()}
    if credit.value is not None and credit.td_error is not None:
        arrays |= {"value": credit.value, "td_error": credit.td_error}
    arrays["picture_bytes"] = np.frombuffer(b"".join(credit.pictures), np.uint8)
    arrays["picture_sizes"] = np.asarray([len(x) for x in credit.pictures], np.int64)
    meta = {"kind": "credit", "format": CREDIT_FORMAT, "picture_note": credit.picture_note}
    save_arrays(path, arrays, meta | {name: getattr(credit, name) for name in NUMBERS})


def load_credit(path: Path) -> EpisodeCredit:
    """Read what `save_credit` wrote.

    Raises:
        UpslopeError: the file is missing, damaged, or of another kind.
    """
    arrays, meta = load_arrays(path, "credit file")
    try:
        if (meta["kind"], meta["format"]) != ("credit", CREDIT_FORMAT):
            raise ValueError(f"it is a {meta['kind']} of format {meta['format']}")
        cuts = np.cumsum(arrays["picture_sizes"])[:-1]
        pictures = np.split(arrays["picture_bytes"], cuts) if len(arrays["picture_sizes"]) else []
        fields: dict[str, Any] = {name: meta[name] for name in (*NUMBERS, "picture_note")}
        fields |= {name: arrays[name] for name in PLAIN}
        return EpisodeCredit(
            **fields,
            value=arrays.get("value"),
            td_error=arrays.get("td_error"),
            weights={n.removeprefix("weight/"): x for n, x in arrays.items() if n.startswith("weight/")},
            policy={n.removeprefix("policy/"): x for n, x in arrays.items() if n.startswith("policy/")},
            pictures=tuple(x.tobytes() for x in pictures),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise UpslopeError(
            f"{path} is damaged or of another version: {error}. Make it anew: upslope credit {path.parent}"
        ) from error
