"""Export a policy: check the request, write the file, and check it against the policy before keeping it."""

import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from keyword import iskeyword
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unicodedata import normalize

import numpy as np

from upslope.core.files import AnyPath, output_file, require_folder, safe_path
from upslope.core.messages import counted, readable, unknown
from upslope.core.storage import write_atomically
from upslope.errors import UpslopeError
from upslope.models.build import OwnModel
from upslope.runs.directory import run_path
from upslope.runs.export import c_format, numpy_format, onnx_format
from upslope.runs.export.checking import EPISODES, STEPS, TOLERANCE, Agreement, agreement, expected
from upslope.runs.export.plan import Plan
from upslope.runs.export.running import PATIENCE, Found, compiler, compiler_works, run_c, run_numpy, run_onnx
from upslope.runs.export.samples import random_arrays, random_masks
from upslope.runs.export.walk import plan_of
from upslope.runs.policy import Policy, Which, load

SUFFIXES: dict[str, str] = {"onnx": ".onnx", "numpy": ".py", "c": ".h"}
HIDDEN = sys.stdlib_module_names | {"numpy", "__main__"}
"""Modules that a NumPy file of the same name would hide, or that would be imported in its place."""
WRITERS: dict[str, Callable[[Plan, Path], dict[Path, bytes]]] = {
    "onnx": onnx_format.files_of,
    "numpy": numpy_format.files_of,
    "c": c_format.files_of,
}


@dataclass(frozen=True)
class Exported:
    """The files of an exported policy."""

    paths: tuple[Path, ...]
    """The exported file and, for NumPy, the file that holds its arrays."""
    largest_difference: float | None
    """The largest difference from the original policy on random observations, relative plus absolute; None if the file
    could not be run on this machine."""
    constant_bytes: int | None = None
    """Size of the constants in C, in bytes."""
    state_bytes: int | None = None
    """Size of the state in C, in bytes."""
    seconds_per_step: float | None = None
    """The time that a step of the C code takes on this machine; None if it was not measured."""
    notes: tuple[str, ...] = ()
    """Lines that describe the result."""


def export_policy(policy: Policy, format: str, output: str | Path | None = None) -> Exported:
    """Write a policy to a file; see `upslope.Policy.export`."""
    path = output_path("." if output is None else output, format)
    own = policy.agent.model
    if format == "onnx" and isinstance(own, OwnModel) and hasattr(own.whole, "to_onnx"):
        files = refuse_taken(onnx_format.own_files_of(own.whole, policy, path))
        return kept(files, None, ("not checked against the policy, since your own model wrote it",))
    plan = plan_of(policy.agent, policy.encoder, has_masks=policy.needs_mask)
    files = refuse_taken(WRITERS[format](plan, path))
    arrays, masks = sequences(plan)
    wanted = expected(plan, policy, arrays, masks)
    with TemporaryDirectory() as folder:
        for file, content in files.items():
            (Path(folder) / file.name).write_bytes(content)
        written = Path(folder) / path.name
        if format == "c":
            return exported_c(plan, written, files, (arrays, masks, wanted))
        found = (
            run_onnx(written, plan, arrays, masks)
            if format == "onnx"
            else run_numpy(written, plan, policy.encoder, arrays, masks)
        )
    return kept(files, checked(plan, found, wanted))


def export(
    run: AnyPath,
    format: str,
    output: str | Path | None = None,
    *,
    seed: int | None = None,
    checkpoint: Which = "best",
    model: Callable[..., Any] | None = None,
    trust: bool = False,
) -> Exported:
    """Export a run's policy, with its normaliser, masks, memory and action bounds, to a file that runs without upslope.

    The file computes the deterministic action in the environment's own units and dtype, and the parameters of the
    distribution: the logits, or mean and log σ. The file is kept only if it agrees with the policy on random
    observations. An existing file is not overwritten.

    Args:
        run: the run directory.
        format: `numpy`, a Python file and its arrays; `c`, a C99 header without allocation; `onnx`, a graph (extra
            `onnx`).
        output: the file, or a folder for it; by default `policy.py`, `policy.h` or `policy.onnx` in the run directory.
        seed, checkpoint, model, trust: as in `upslope.load`.

    Raises:
        UpslopeError: the format cannot represent a part of the policy, the file exists, or the run cannot be loaded
            (see `upslope.load`).
    """
    path = output_path("." if output is None else output, format)  # checked before any file is read
    policy = load(run, seed=seed, checkpoint=checkpoint, model=model, trust=trust)
    if output is None:
        folder = run_path(run)
        path = safe_path(folder, output_path(folder, format))
    return export_policy(policy, format, path)


def output_path(output: str | Path, format: str) -> Path:
    """Return the path of the file to write, which is named `policy` if `output` is a folder.

    Raises:
        UpslopeError: the format is unknown, the suffix does not match the format, Python could not import the file by
            its name, or the folder does not exist.
    """
    if format not in SUFFIXES:
        raise UpslopeError(unknown("format", str(format), SUFFIXES, "upslope export --help"))
    suffix = SUFFIXES[format]
    path = output_file(output, f"policy{suffix}")
    if path.suffix != suffix:
        raise UpslopeError(f"The format {format} needs a {suffix} file, not {path.name}. Change the suffix.")
    if format == "numpy":
        require_importable(path)
    require_folder(path)
    return path


def require_importable(path: Path) -> None:
    """Raise an error unless `from NAME import Policy` imports this file, and `import numpy` in it imports NumPy."""
    name = path.stem
    if not name.isidentifier() or normalize("NFKC", name) != name:
        why = f'"{name}" is not a Python identifier'
    elif iskeyword(name):
        why = f'"{name}" is a keyword of Python'
    elif name in HIDDEN:
        why = f'it would hide the module "{name}", which it or other code imports'
    else:
        return
    raise UpslopeError(
        f"The policy cannot be exported to {path.name}, since Python could not import that file: {why}. Choose another "
        "--output, such as policy.py or walker.py."
    )


def refuse_taken(files: dict[Path, bytes]) -> dict[Path, bytes]:
    """Return the files if none of them exists yet; otherwise raise an error."""
    for path in files:
        if path.exists() or path.is_symlink():
            raise UpslopeError(f"{path} already exists and will not be overwritten. Choose another --output.")
    return files


def sequences(plan: Plan) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Return random observations and masks, each [T, B, …]."""
    generator = np.random.default_rng(0)
    steps, episodes = (STEPS, EPISODES) if plan.memory else (1, EPISODES * STEPS)
    if plan.pictures:
        episodes = EPISODES  # convolutions take longer
    arrays = random_arrays(plan, steps * episodes, generator)
    masks = random_masks(plan, steps * episodes, generator)
    in_time = [x.reshape(steps, episodes, *x.shape[1:]) for x in arrays]
    return in_time, None if masks is None else masks.reshape(steps, episodes, -1)


def checked(plan: Plan, found: Found, wanted: Found) -> Agreement:
    """Check that a file agrees with the policy, and return how closely.

    Raises:
        UpslopeError: the file computes something else.
    """
    made = agreement(plan, found, wanted)
    if made.differing or not made.largest <= TOLERANCE:
        raise UpslopeError(
            f"The exported policy differs from upslope's own by {made.largest:.1g} and in "
            f"{counted(made.differing, 'action')}, so nothing was written: this is a bug in upslope. Try another "
            "--format, or use the policy from Python: upslope.load."
        )
    return made


def exported_c(plan: Plan, written: Path, files: dict[Path, bytes], held: tuple[Any, Any, Found]) -> Exported:
    """Keep a header and report its sizes. If there is a compiler, also check its outputs and measure the time per
    step."""
    arrays, masks, wanted = held
    constant, state = c_format.sizes_of(plan)
    sizes: dict[str, Any] = {"constant_bytes": constant, "state_bytes": state}
    size = f"{constant:,} bytes of constants, {state:,} bytes of state"
    try:
        if compiler() is None:
            raise OSError("there is no C compiler on this machine")
        found, seconds = run_c(written, plan, arrays, masks)
    except (subprocess.SubprocessError, OSError) as error:
        why = why_unchecked(error)
        return kept(
            files, None, (size, f"the time per step was not measured, nor were the outputs checked: {why}"), **sizes
        )
    words = f"{size}; {1e6 * seconds:.3g} µs per step on this machine ({platform.machine()}, -O2)"
    return kept(files, checked(plan, found, wanted), (words,), seconds_per_step=seconds, **sizes)


ENDED_BY_OTHERS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
"""Signals that a faulty header does not cause, such as that of a machine without free memory."""


def why_unchecked(error: subprocess.SubprocessError | OSError) -> str:
    """Return why a header could not be run on this machine, if the header is not the reason.

    Raises:
        UpslopeError: the compiler works, but not with this header.
    """
    if isinstance(error, OSError):
        return str(error)
    if isinstance(error, subprocess.TimeoutExpired):
        return f"compiling or running it took more than {PATIENCE} seconds"
    if not compiler_works():
        return "the C compiler of this machine does not work"
    failed = error if isinstance(error, subprocess.CalledProcessError) else None
    if failed is not None and -failed.returncode in ENDED_BY_OTHERS:
        return f"compiling or running it was ended by {signal.Signals(-failed.returncode).name}"
    said = "" if failed is None else text_of_output(failed.stderr or b"")
    was_compiling = failed is not None and failed.cmd[0] == str(compiler())
    fault = "does not compile" if was_compiling else "fails when it is run"
    raise UpslopeError(
        f"The exported header {fault}, although the C compiler of this machine works, so nothing was written"
        f"{said and f' ({said})'}: this is a bug in upslope. Report it, and try another --format, or use the policy "
        "from Python: upslope.load."
    ) from error


def text_of_output(stderr: bytes) -> str:
    """Return the first error that a compiler reports, or else the first line that it prints; empty if there is none."""
    lines = stderr.decode("utf-8", "replace").splitlines()
    return readable(next((line for line in lines if "error" in line), lines[0] if lines else "").strip())


def kept(files: dict[Path, bytes], held: Agreement | None, notes: tuple[str, ...] = (), **numbers: Any) -> Exported:
    """Write the files and describe the result."""
    for path, content in files.items():
        write_atomically(path, content)
    words = [f"wrote {path} ({len(content):,} bytes)" for path, content in files.items()]
    if held is not None:
        equal = f"numbers equal to within {held.largest:.1g}"
        words.append(f"checked against upslope on random observations: the same actions, {equal}")
    return Exported(tuple(files), held.largest if held else None, notes=(*words, *notes), **numbers)
