"""The tables of `upslope list`, which are printed without importing the modules that they list."""

from collections.abc import Iterator

from rich.table import Table

from upslope.cli.terminal import console, table
from upslope.config.foreign_names import table as data
from upslope.config.ladder import ALGORITHMS, BONUSES, ESTIMATORS, OBJECTIVES
from upslope.config.presets import presets
from upslope.core.messages import COMPILED_PREFIX
from upslope.environments.libraries import LIBRARIES


def show_list() -> None:
    """List rungs, estimators, objectives, presets and compiled environments."""
    for one in list_tables():
        console().print(one)


def list_tables() -> Iterator[Table]:
    """Yield tables of rungs, estimators, objectives, presets, compiled environments, and libraries with more
    environments."""
    rungs = [(name, x.estimator, x.objective, x.source, x.meaning) for name, x in ALGORITHMS.items()]
    yield table("Rungs: --algorithm", ("name", "--estimator", "--objective", "experience", "meaning"), rungs)
    yield table("Estimators: --estimator", ("name", "weight Ψ_t"), ESTIMATORS.items())
    yield table("Objectives: --objective", ("name", "maximised"), OBJECTIVES.items())
    yield table("Bonuses: --bonus", ("name", "intrinsic reward"), BONUSES.items())
    sources: list[tuple[str, str]] = []
    for environment, row in presets().items():
        others = row.get("others", {}).items()
        sources += [(environment, row["source"])]
        sources += [(f"{environment} --preset {name}", other["source"]) for name, other in others]
    yield table("Presets, used unless --no-preset", ("name", "source"), sources)
    compiled = [(COMPILED_PREFIX + name, text) for name, text in data("compiled.yaml", "environments").items()]
    yield table("Compiled environments", ("name", "meaning"), compiled)
    libraries = [(f"{one.prefix}:{one.example}", one.meaning, one.install) for one in LIBRARIES]
    yield table("Compiled environments of other libraries", ("e.g.", "contents", "installed by"), libraries)
