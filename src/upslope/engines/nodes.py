"""The facts that must agree on all nodes of a cluster: versions, modules, and how the processor rounds."""

import io
import pickle
import platform
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from upslope.environments.base import AnyEnvironment, HostEnvironment

PACKAGES = ("upslope", "jax", "jaxlib", "numpy", "gymnasium")
"""Packages whose versions affect a run's numbers, in addition to those of its environment."""
VECTOR_FEATURES = ("sse4", "avx", "fma", "f16c", "amx", "asimd", "sve", "neon")
"""Prefixes of the names of processor features that change how XLA and Eigen round."""


def install_words() -> str:
    """Return the command that installs this machine's versions."""
    pins = " ".join(f"{name}=={version(name)}" for name in PACKAGES)
    return f"pip install {pins}"


def facts(modules: Iterable[str]) -> dict[str, Any]:
    """Return the facts that must agree on all machines of a run, and those of the given modules that are missing
    here."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "versions": versions,
        "processor": processor(),
        "missing": [name for name in modules if not is_importable(name)],
    }


def is_importable(name: str) -> bool:
    """Return whether a module of this name can be found."""
    try:
        return name in sys.modules or find_spec(name) is not None
    except (ImportError, ValueError):
        return False


@cache
def processor() -> str:
    """Return the processor's model, and its features that change how numbers are rounded."""
    try:
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()]
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    known = {key.strip(): value.strip() for key, _, value in reversed(lines)}
    flags = known.get("flags", known.get("Features", "")).split()
    return f"{known.get('model name', platform.machine())}: {' '.join(sorted(filter(is_vector_feature, flags)))}"


def is_vector_feature(flag: str) -> bool:
    """Return whether a processor's feature changes how XLA rounds."""
    return flag.startswith(VECTOR_FEATURES)


def difference(mine: dict[str, Any], theirs: dict[str, Any], mixed: bool) -> str:
    """Describe how a node differs from this machine, as the end of a sentence. Return an empty string if no difference
    matters."""
    pairs = [(name, mine["versions"][name], theirs["versions"].get(name, "none")) for name in mine["versions"]]
    if other := [f"{name} {there} (here {here})" for name, here, there in pairs if here != there]:
        return f"has different versions: {', '.join(other)}. Results could differ. On that node, run: {install_words()}"
    if theirs["missing"]:
        return (
            f"lacks {', '.join(theirs['missing'])}, which this run imports. Send it with --py-module "
            "PATH (a module, a package, or a folder of modules), or install it there."
        )
    if mine["processor"] != theirs["processor"] and not mixed:
        return (
            f"has a processor that rounds differently: {theirs['processor']}; here {mine['processor']}. The last "
            "digits of a seed's results would depend on where it trains. Remove the node, or allow it with --mixed."
        )
    return ""


def modules_of(part: Any, environment: AnyEnvironment) -> list[str]:
    """Return the packages and modules, except Python's own, that a node must import to unpickle the data sent to it."""
    found: set[str] = set()

    class Finder(pickle.Pickler):
        """Records the module of each class and function."""

        def reducer_override(self, obj: Any) -> Any:
            found.add(getattr(obj, "__module__", None) or type(obj).__module__)
            return NotImplemented

    Finder(io.BytesIO()).dump((part, environment))
    name = environment.name if isinstance(environment, HostEnvironment) else ""
    found |= {part for part in name.split(":")[:-1] if part.isidentifier() or "." in part}
    tops = {name.partition(".")[0] for name in found}
    return sorted(tops - set(sys.stdlib_module_names) - {"__main__", "upslope", "vector", "jax"})
