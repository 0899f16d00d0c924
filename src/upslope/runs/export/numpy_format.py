"""Write a policy as a Python file that needs only NumPy, with its arrays in a file next to it."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from upslope.core.distributions import VARIANCE_FLOOR
from upslope.errors import UpslopeError
from upslope.models.normaliser import OBSERVATION_CLIP
from upslope.runs.export.plan import (
    Bytes,
    Choices,
    Dense,
    Gated,
    Gaussian,
    Gru,
    Head,
    Input,
    Lstm,
    Memory,
    Numbers,
    Plan,
    Spread,
    Switches,
    nested,
)

ACTIVATIONS = {"tanh": "np.tanh({})", "relu": "np.maximum({}, 0)", "silu": "silu({})", None: "{}"}
"""NumPy expression for each activation."""


def files_of(plan: Plan, path: Path) -> dict[Path, bytes]:
    """Return the contents of the Python file at this path and of the file next to it that holds the arrays.

    Raises:
        UpslopeError: the policy has convolutions.
    """
    if plan.pictures:
        names = ", ".join(f"`{plan.inputs[picture.place].name}`" for picture in plan.pictures)
        raise UpslopeError(
            f"This policy reads {names} with convolutions, which are slow in NumPy, so the NumPy format "
            "does not support them. Export it as onnx."
        )
    buffer = io.BytesIO()
    arrays: Any = arrays_of(plan)
    np.savez(buffer, **arrays)
    return {path: source(plan).encode(), path.with_suffix(".npz"): buffer.getvalue()}


def arrays_of(plan: Plan) -> dict[str, np.ndarray]:
    """Return the arrays that the Python file reads, by name."""
    found: dict[str, np.ndarray] = {}
    for k, one in enumerate(plan.vectors):
        if isinstance(one.coding, Numbers) and one.coding.mean is not None and one.coding.deviation is not None:
            found |= {f"mean_{k}": one.coding.mean.ravel(), f"deviation_{k}": one.coding.deviation.ravel()}
        elif isinstance(one.coding, Choices):
            found |= dict(zip((f"which_{k}", f"what_{k}"), one.coding.meanings, strict=True))
    for k, layer in enumerate(plan.layers):
        names = {name: x for name, x in vars(layer).items() if isinstance(x, np.ndarray)}
        found |= {f"{name}_{k}": x for name, x in names.items()}
    for k, part in enumerate(plan.parts):
        if isinstance(part.head, Gaussian):
            found |= {f"{name}{suffix(plan, k)}": x for name, x in arrays_of_gaussian(part.head).items()}
    return found


def arrays_of_gaussian(head: Gaussian) -> dict[str, np.ndarray]:
    """Return the arrays of a Gaussian, by name."""
    found = {name: getattr(head, name) for name in ("centre", "half", "low", "high")}
    if head.range_of_log_std is None:
        return found | {"log_std": head.log_std + head.log_unit}
    return found | {"log_std": head.log_std, "log_unit": head.log_unit}


def suffix(plan: Plan, k: int) -> str:
    """Return the suffix of the names of an action's k-th part."""
    return f"_of_{k}" if len(plan.parts) > 1 else ""


def source(plan: Plan) -> str:
    """Return the text of the Python file."""
    return "\n".join([*beginning(plan), *class_of(plan), *functions(plan)]) + "\n"


def beginning(plan: Plan) -> list[str]:
    """Return the beginning of the file: its docstring, which describes inputs and outputs, and its imports."""
    mask = ", mask" if plan.has_masks else ""
    what = [f"    {one.name!a}: {one.kind} {list(one.shape)}" for one in plan.inputs]
    return [
        '"""A policy trained by upslope. It needs NumPy, and its arrays in a file of the same name that ends in .npz.',
        "",
        "    policy = Policy()",
        *(["    policy.reset()  # at the start of an episode"] if plan.memory else []),
        f"    action = policy(observation{mask})",
        "",
        "The observation, or a batch with one leading axis:",
        *map(escaped, what),
        *([f"The mask: {plan.num_choices} entries, 1 where a choice is allowed."] if plan.has_masks else []),
        *(escaped(line) for line in what_comes_out(plan)),
        '"""',
        "",
        "from pathlib import Path",
        "",
        "import numpy as np",
        "",
        "",
    ]


def escaped(line: str) -> str:
    """Escape a line so that it cannot end the docstring, whatever keys it contains."""
    return line.replace("\\", "\\\\").replace('"', '\\"')


def what_comes_out(plan: Plan) -> Iterator[str]:
    """Describe the action and the position of each of its parts in the mask."""
    if not plan.parts[0].path:
        head = plan.parts[0].head
        yield f"The action: {head.dtype} {list(head.shape)}, {plan.chosen}."
        return
    yield f"The action, {plan.chosen}:"
    start = 0
    for part in plan.parts:
        place = f", entries {start} to {start + part.head.num_choices - 1} of the mask" if plan.is_masked(part) else ""
        yield f"    {part.label!a}: {part.head.dtype} {list(part.head.shape)}{place}"
        start += part.head.num_choices


def class_of(plan: Plan) -> Iterator[str]:
    """Yield the code of the class `Policy`."""
    mask, given = (", mask", ", mask=None") if plan.has_masks else ("", "")
    yield "class Policy:"
    yield '    """The deterministic action of each observation."""'
    yield ""
    yield '    def __init__(self, path=Path(__file__).with_suffix(".npz")):'
    yield "        with np.load(path) as file:"
    yield "            self.arrays = dict(file)"
    yield "        self.reset()"
    yield ""
    yield "    def reset(self):"
    yield f'        """Begin an episode{"" if plan.memory else ": nothing is remembered"}."""'
    yield "        self.memory = None"
    yield ""
    yield f"    def __call__(self, observation{given}):"
    yield f"        return self.act(observation{mask})[0]"
    yield ""
    yield f"    def act(self, observation{given}):"
    yield f'        """The action, and the parameters of its distribution: {parameters_in_words(plan)}."""'
    yield "        a = self.arrays"
    yield from (f"        {line}" for line in act(plan))


def act(plan: Plan) -> Iterator[str]:
    """Yield the body of the method `act`."""
    coded = [coded_input(k, one) for k, one in enumerate(plan.vectors)]
    if len(coded) == 1:
        yield f"x = {coded[0]}"
    else:
        yield from ("x = [", *(f"    {one}," for one in coded), "]", "x = np.concatenate(x, axis=-1)")
    for k, layer in enumerate(plan.layers):
        yield from (dense(k, layer) if isinstance(layer, Dense) else memory(k, layer))
    yield from head(plan)


def coded_input(k: int, one: Input) -> str:
    """Return the expression for the features of the k-th array."""
    place = "observation" + "".join(f"[{key!a}]" for key in one.path)
    x = f"flat({place}, {one.shape})"
    if isinstance(one.coding, Choices):
        return f'(flat({place}, {one.shape}, np.int64)[..., a["which_{k}"]] == a["what_{k}"]).astype(np.float32)'
    if isinstance(one.coding, Bytes):
        return f"{x} / np.float32(255)" if one.coding.is_picture else f"np.log1p({x})"
    if one.coding.mean is None:
        return x
    return f'np.clip(({x} - a["mean_{k}"]) / a["deviation_{k}"], -{OBSERVATION_CLIP}, {OBSERVATION_CLIP})'


def dense(k: int, layer: Dense) -> Iterator[str]:
    """Yield the code of a dense layer."""
    more = ""
    if isinstance(layer, Spread):
        more = f' + a["share_{k}"] * np.log((x * x) @ a["variance_{k}"] + np.float32({VARIANCE_FLOOR}))'
    yield "x = " + ACTIVATIONS[layer.activation].format(f'x @ a["weight_{k}"] + a["bias_{k}"]{more}')


def memory(k: int, layer: Memory) -> Iterator[str]:
    """Yield the code of the layer with memory; a carry of None stands for zeros."""
    yield "if self.memory is None:"
    yield f"    self.memory = {len(layer.carries)} * [np.zeros((*x.shape[:-1], {layer.size}), np.float32)]"
    yield "if self.memory[0].shape[:-1] != x.shape[:-1]:"
    yield "    shape = self.memory[0].shape[:-1]"
    yield '    raise ValueError(f"The memory is for a batch of shape {shape}, not {x.shape[:-1]}: call reset() first.")'
    if isinstance(layer, Gru):
        yield "(h,) = self.memory"
        yield f'r, z, n = np.split(x @ a["input_weight_{k}"].T + a["bias_{k}"], 3, axis=-1)'
        yield f'hr, hz, hn = np.split(h @ a["state_weight_{k}"].T, 3, axis=-1)'
        yield f'n = np.tanh(n + sigmoid(r + hr) * (hn + a["state_bias_{k}"]))'
        yield "x = n + sigmoid(z + hz) * (h - n)"
        yield "self.memory = [x]"
    elif isinstance(layer, Lstm):
        yield "h, c = self.memory"
        yield f'gates = x @ a["input_weight_{k}"].T + h @ a["state_weight_{k}"].T + a["bias_{k}"]'
        yield "i, f, g, o = np.split(gates, 4, axis=-1)"
        yield "c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)"
        yield "x = sigmoid(o) * np.tanh(c)"
        yield "self.memory = [x, c]"
    else:
        yield "h, i = self.memory"
        yield f'(p, q), (b, d), (c, e) = a["rate_{k}"], a["inward_{k}"], a["outward_{k}"]'
        yield "h, i = p * h - q * i + x @ b.T, p * i + q * h + x @ d.T"
        yield f'x = h @ c.T - i @ e.T + x @ a["skip_{k}"].T'
        yield "self.memory = [h, i]"


def parameters_in_words(plan: Plan) -> str:
    """Return the names of the parameters, without the names of parts."""
    return ", ".join(dict.fromkeys(name for part in plan.parts for name in part.head.parameters))


def head(plan: Plan) -> Iterator[str]:
    """Yield the code for the action and the parameters of its distribution."""
    if plan.has_masks:
        ends = np.cumsum([size for part in plan.parts if plan.is_masked(part) for size in sizes_of(part.head)])
        yield f"mask = allowed(mask, (*x.shape[:-1], {plan.num_choices}), {ends[:-1].tolist()})"
    if len(plan.parts) > 1:
        yield from outputs_of_parts(plan)
    actions, named = [], []
    for k, part in enumerate(plan.parts):
        end = suffix(plan, k)
        yield from action_of(part.head, end, has_mask=plan.is_masked(part))
        if part.head.shape or isinstance(part.head, Gaussian):
            yield f"action{end} = action{end}.reshape((*action{end}.shape[:-1], *{part.head.shape}))"
        actions.append((part.path, f"action{end}"))
        values = (f"mean{end}", f"log_std{end}") if isinstance(part.head, Gaussian) else (f"x{end}",)
        named += [f"{name!a}: {value}" for name, value in zip(part.parameters, values, strict=True)]
    yield f"return {nested(actions)}, {{{', '.join(named)}}}"


def sizes_of(head: Head) -> list[int]:
    """Return the number of choices of each decision."""
    return [2] * head.num_outputs if isinstance(head, Switches) else list(getattr(head, "sizes", ()))


def outputs_of_parts(plan: Plan) -> Iterator[str]:
    """Yield the code that assigns the outputs of the network and the entries of the mask to the parts."""
    outputs = np.cumsum([part.head.num_outputs for part in plan.parts])[:-1].tolist()
    yield f"{', '.join(f'x{suffix(plan, k)}' for k in range(len(plan.parts)))} = np.split(x, {outputs}, axis=-1)"
    start = 0
    for k, part in enumerate(plan.parts):
        if plan.is_masked(part):
            yield f"mask{suffix(plan, k)} = mask[..., {start}:{start + part.head.num_choices}]"
            start += part.head.num_choices


def action_of(made: Head, end: str, *, has_mask: bool) -> Iterator[str]:
    """Yield the code for the action of a part whose names end in `end`."""
    x, action, mask = f"x{end}", f"action{end}", f"mask{end}"
    if isinstance(made, Gaussian):
        yield from gaussian(made, end)
    elif isinstance(made, Switches):
        if has_mask:
            yield f"may = {mask}.reshape(*{mask}.shape[:-1], -1, 2)"
            yield "one = np.where(may[..., 1], np.float32(np.inf), np.float32(-np.inf))"
            yield f"{x} = np.where(may.all(axis=-1), {x}, one)"
        yield f"{action} = ({x} > 0).astype(np.int8)"
    else:
        if has_mask:
            yield f"{x} = np.where({mask}, {x}, -np.inf)"
        if len(made.shape) == 0:
            yield f"{action} = np.{made.dtype}({x}.argmax(axis=-1) + {made.start[0]})"
        else:
            ends = np.cumsum(made.sizes)[:-1].tolist()
            yield f"parts = np.split({x}, {ends}, axis=-1)"
            yield f"{action} = np.stack([part.argmax(axis=-1) for part in parts], axis=-1) + {list(made.start)}"
            yield f"{action} = {action}.astype(np.{made.dtype})"


def gaussian(made: Gaussian, end: str) -> Iterator[str]:
    """Yield the code for the mean, log σ and action of a real-valued part whose names end in `end`."""
    x, mean, log_std, action = (f"{name}{end}" for name in ("x", "mean", "log_std", "action"))
    if made.range_of_log_std is not None:
        low, high = made.range_of_log_std
        yield f"{x}, {log_std} = np.split({x}, 2, axis=-1)"
        yield f'{log_std} = np.clip(a["{log_std}"] + {log_std}, {low}, {high}) + a["log_unit{end}"]'
    scaled = f'a["centre{end}"] + a["half{end}"] * '
    yield f"{mean} = {x}" if made.is_squashed else f"{mean} = {scaled}{x}"
    taken = f"({scaled}np.tanh({mean}))" if made.is_squashed else mean
    yield f'{action} = np.clip({taken}.astype(np.{made.dtype}), a["low{end}"], a["high{end}"])'
    if made.range_of_log_std is None:
        yield f'{log_std} = np.broadcast_to(a["{log_std}"], {mean}.shape)'


def functions(plan: Plan) -> Iterator[str]:
    """Yield the functions that the class uses."""
    yield from (
        "",
        "",
        "def flat(x, shape, dtype=np.float32):",
        '    """Flatten an array of this shape, or each array of a batch."""',
        "    x = np.asarray(x).astype(dtype)",
        "    batch = x.shape[: x.ndim - len(shape)]",
        "    if x.shape != (*batch, *shape) or len(batch) > 1:",
        '        raise ValueError(f"The shape must be {shape}, with or without a batch axis, not {x.shape}.")',
        "    return x.reshape(*batch, -1)",
    )
    if plan.has_masks:
        yield from (
            "",
            "",
            "def allowed(mask, shape, ends):",
            '    """Convert the mask to flags; the choices of each decision end at the indices `ends`."""',
            "    flags = np.asarray(mask if mask is not None else [], bool)",
            "    if flags.shape != shape:",
            '        raise ValueError(f"The mask must have the shape {shape}, 1 where a choice is allowed.")',
            "    if not all(part.any(axis=-1).all() for part in np.split(flags, ends, axis=-1)):",
            '        raise ValueError("The mask allows no choice for some decision.")',
            "    return flags",
        )
    if isinstance(plan.memory, Gated):
        yield from ("", "", "def sigmoid(x):", "    return 0.5 + 0.5 * np.tanh(0.5 * x)")
    if any(isinstance(layer, Dense) and layer.activation == "silu" for layer in plan.layers):
        yield from ("", "", "def silu(x):", "    return x * (0.5 + 0.5 * np.tanh(0.5 * x))")
