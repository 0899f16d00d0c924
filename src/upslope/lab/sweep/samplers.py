"""Optuna's samplers, pruners and distributions.

Optuna is imported inside functions, since it is an optional dependency.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from upslope.core.messages import unknown
from upslope.core.reading import brief
from upslope.errors import UpslopeError
from upslope.lab.sweep.space import Choices, Parameter, Range, Space

REPORTS = 20
"""Number of times that the recent return of a trial is reported to the pruner."""
WARM_UP = 5
"""Number of reports before the median pruner may stop a trial: those of the first quarter of the budget."""
OPTIONS: Mapping[str, Any] = {
    "multivariate": True,
    "n_warmup_steps": WARM_UP,
    "max_resource": REPORTS,
    "warn_independent_sampling": False,
    "warn_asynchronous_seeding": False,
}
"""Arguments for the samplers and pruners that accept them; all others keep Optuna's defaults."""
NONE = "none"


def require_optuna() -> Any:
    """Import Optuna.

    Raises:
        UpslopeError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UpslopeError('A sweep needs Optuna, which is not installed: pip install "upslope[sweep]"') from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@cache
def samplers() -> dict[str, type]:
    """Optuna's samplers by name: `TPESampler` is tpe."""
    return parts_of(require_optuna().samplers, "Sampler")


@cache
def pruners() -> dict[str, type]:
    """Optuna's pruners by name: `MedianPruner` is median, and `NopPruner` is none."""
    found = parts_of(require_optuna().pruners, "Pruner")
    return {NONE if name == "nop" else name: kind for name, kind in found.items()}


def parts_of(module: Any, ending: str) -> dict[str, type]:
    """The classes of a module that can be created without further arguments, by lower-case name without the suffix."""
    kinds = {name: getattr(module, name) for name in module.__all__ if name.endswith(ending)}
    return {
        name.removesuffix(ending).lower(): kind
        for name, kind in kinds.items()
        if not inspect.isabstract(kind) and is_complete(kind)
    }


def is_complete(kind: type) -> bool:
    """Whether a class can be created with the arguments that it gets here. Some classes have defaults for all arguments
    but reject them. A class whose package is missing counts as complete, since that package can be installed."""
    try:
        with_options(kind, OPTIONS)
    except (TypeError, ValueError):
        return False
    except ImportError:
        pass
    return True


def with_options(kind: type, options: Mapping[str, Any]) -> Any:
    """Create a sampler or a pruner with the options that it accepts."""
    taken = inspect.signature(kind).parameters
    with without_warnings():
        return kind(**{key: value for key, value in options.items() if key in taken})


def named(role: str, name: str, known: Mapping[str, type]) -> type:
    """Look up a sampler or a pruner."""
    if name not in known:
        raise UpslopeError(unknown(role, name, known, "upslope sweep --help"))
    return known[name]


def made(role: str, name: str, known: Mapping[str, type], **more: Any) -> Any:
    """Create a sampler or a pruner with the options that it accepts."""
    kind = named(role, name, known)
    try:
        return with_options(kind, {**OPTIONS, **more})
    except ImportError as error:
        raise needs_package(role, name, error) from error


def tries_all(sampler: str) -> bool:
    """Whether a sampler tries each combination of values once."""
    return issubclass(named("sampler", sampler, samplers()), require_optuna().samplers.BruteForceSampler)


def refuse_endless(sampler: str, space: Space) -> None:
    """Reject a sampler that tries every value if a range has infinitely many."""
    if not tries_all(sampler):
        return
    endless = [name.rstrip("_") for name, p in space.searched.items() if isinstance(p, Range) and not p.is_finite]
    if endless:
        raise UpslopeError(
            f"The sampler {sampler} tries every value, but the space has ranges without a step: {', '.join(endless)}. "
            "Give each of them a step or choices in a --space file, or choose another --sampler, e.g. tpe."
        )


def needs_package(role: str, name: str, error: ImportError) -> UpslopeError:
    """The error for a sampler or pruner whose package is missing."""
    return UpslopeError(f"The {role} {name} needs another package: {brief(error)}.")


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence Optuna's warnings about experimental features, which the user has chosen by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def sampler_of(name: str, seed: int) -> Any:
    """A sampler whose suggestion for a trial depends only on the seed, the trial's number and the earlier results.

    A stopped sweep therefore continues as if it had not been stopped, and processes that share a storage draw different
    trials. A sampler that tries all combinations is never asked for one, since the study finds out which are missing.
    """
    optuna = require_optuna()
    name = "random" if tries_all(name) else name
    has_seed = "seed" in inspect.signature(named("sampler", name, samplers())).parameters and name != "qmc"

    class PerTrial(optuna.samplers.BaseSampler):
        """Creates a new sampler of this kind for each trial, if the kind takes a seed."""

        def __init__(self) -> None:
            self.number, self.inner = -1, made("sampler", name, samplers(), seed=seed)
            self.announce: Callable[[Any], None] = lambda trial: None
            """A function that is called with each new trial before anything is drawn for it."""

        def of(self, trial: Any) -> Any:
            if has_seed and trial.number != self.number:
                mixed = (seed * 1_000_003 + trial.number) % 2**32
                self.number, self.inner = trial.number, made("sampler", name, samplers(), seed=mixed)
            return self.inner

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return self.of(trial).infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
            return self.of(trial).sample_relative(study, trial, search_space)

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            return self.of(trial).sample_independent(study, trial, param_name, param_distribution)

        def before_trial(self, study: Any, trial: Any) -> None:
            self.announce(trial)
            self.of(trial).before_trial(study, trial)

        def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
            self.of(trial).after_trial(study, trial, state, values)

    return PerTrial()


def distribution_of(parameter: Parameter) -> Any:
    """Optuna's distribution for a range or choices."""
    kinds = require_optuna().distributions
    if isinstance(parameter, Choices):
        return kinds.CategoricalDistribution(parameter.words)
    if parameter.is_whole:
        step = 1 if parameter.step is None else int(parameter.step)
        return kinds.IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log, step=step)
    return kinds.FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)
