"""Write a policy as a C99 header that allocates no memory, for microcontrollers."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from upslope.core.distributions import VARIANCE_FLOOR
from upslope.errors import UpslopeError
from upslope.models.normaliser import OBSERVATION_CLIP
from upslope.runs.export.plan import Categories, Dense, Gaussian, Gru, Head, Lru, Lstm, Numbers, Plan, Spread, Switches

C_TYPES = {"float32": "float", "float64": "double"} | {
    name: f"{name}_t" for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}
"""C type for each dtype of actions."""
ACTIVATIONS = {"tanh": "tanhf(sum)", "relu": "sum > 0.0f ? sum : 0.0f", "silu": "sum / (1.0f + expf(-sum))"}
"""C expression for each activation."""
GRU_ARRAYS = ("input_weight", "state_weight", "bias", "state_bias")
NUMBERS_A_LINE = 8


def files_of(plan: Plan, path: Path) -> dict[Path, bytes]:
    """Return the header as the content of the file at this path.

    Raises:
        UpslopeError: part of the policy cannot be expressed in C.
    """
    refuse_what_c_has_not(plan)
    return {path: source(plan, prefix_of(path)).encode()}


def refuse_what_c_has_not(plan: Plan) -> None:
    """Refuse observations other than vectors, memories other than a GRU, and 16-bit floats."""
    pictures = {picture.place for picture in plan.pictures}
    parts = [
        f"`{one.name}` ({one.kind})"
        for place, one in enumerate(plan.inputs)
        if place in pictures or not isinstance(one.coding, Numbers)
    ]
    if isinstance(plan.memory, Lstm | Lru):
        parts.append(f"{type(plan.memory).__name__.upper()} memory")
    kinds = dict.fromkeys(part.head.dtype for part in plan.parts)
    parts += [f"actions of {kind}" for kind in kinds if kind not in C_TYPES]
    if parts:
        remedy = "onnx" if plan.pictures else "numpy or onnx"
        raise UpslopeError(
            f"This policy has {', '.join(parts)}; the C format supports only real vectors, perceptrons and a GRU. "
            f"Export it as {remedy}."
        )


def prefix_of(path: Path) -> str:
    """Return the prefix of every name in the header: the file's name converted to an identifier."""
    word = re.sub(r"[^A-Za-z0-9_]", "_", path.stem)
    return word if re.match(r"[A-Za-z]", word) else f"policy_{word}"


def sizes_of(plan: Plan) -> tuple[int, int]:
    """Return the size of the policy in C: (bytes of constants, bytes of state)."""
    normaliser = 2 * 4 * num_inputs(plan) if is_normalised(plan) else 0
    layers = sum(x.size for layer in plan.layers for x in vars(layer).values() if isinstance(x, np.ndarray))
    heads = sum(x.nbytes for part in plan.parts for x, _ in constants_of(part.head).values())
    remembered = plan.memory.size if plan.memory else 0
    return normaliser + 4 * layers + heads, 4 * (2 * widest(plan) + remembered)


def num_inputs(plan: Plan) -> int:
    """Return the length of an observation after concatenating its arrays."""
    return sum(one.num_features for one in plan.inputs)


def widest(plan: Plan) -> int:
    """Return the largest number of inputs or outputs of any layer."""
    widths = [layer.weight.shape[1] if isinstance(layer, Dense) else layer.size for layer in plan.layers]
    return max(num_inputs(plan), *widths)


def is_normalised(plan: Plan) -> bool:
    """Return whether any array of the observation is normalised."""
    return any(isinstance(one.coding, Numbers) and one.coding.mean is not None for one in plan.inputs)


def source(plan: Plan, prefix: str) -> str:
    """Return the text of the header."""
    guard = f"{prefix.upper()}_H"
    lines = [
        *beginning(plan, prefix),
        f"#ifndef {guard}",
        f"#define {guard}",
        "",
        "#include <math.h>",
        "#include <stdint.h>",
        "",
        *types(plan, prefix),
        *constants(plan, prefix),
        *functions(plan, prefix),
        *reset(plan, prefix),
        *step(plan, prefix),
        f"#endif /* {guard} */",
    ]
    return "\n".join(lines) + "\n"


def beginning(plan: Plan, prefix: str) -> Iterator[str]:
    """Yield the comment that describes inputs and outputs."""
    mask = ", mask" if plan.has_masks else ""
    yield "/* A policy trained by upslope, in C99, without allocation. Link with -lm."
    yield " *"
    yield f" *     static {prefix}_state state;"
    yield f" *     {prefix}_result result;"
    yield f" *     {prefix}_reset(&state);                      at the start of an episode"
    yield f" *     {prefix}_step(&state, observation{mask}, &result);"
    yield " *"
    yield " * The observation is the concatenation of:"
    start = 0
    for one in plan.inputs:
        kind = f"{one.kind} of shape {list(one.shape)}"
        yield f" *   [{start}] to [{start + one.num_features - 1}]  {plain(one.name)}, {kind}"
        start += one.num_features
    if plan.has_masks:
        yield f" * The mask has {plan.num_choices} entries, 1 where a choice is allowed."
    yield f" * The action is {plan.chosen}:"
    start = 0
    for part, field in zip(plan.parts, fields_of(plan), strict=True):
        kind = f"{part.head.dtype} of shape {list(part.head.shape)}"
        place = f", entries {start} to {start + part.head.num_choices - 1} of the mask" if plan.is_masked(part) else ""
        key = f"  {plain(part.label)}," if part.path else ""
        yield f" *   {field['action']}{key} {kind}{place}"
        start += part.head.num_choices
    yield " */"


def plain(name: str) -> str:
    """Replace all characters in a key except plain ones, since others could end the comment."""
    return re.sub(r"[^A-Za-z0-9_/. -]", "?", name).replace("*/", "?").replace("/*", "?")


def fields_of(plan: Plan) -> list[dict[str, str]]:
    """Return, for each part of the action, the names of the result's fields that hold its action and its parameters."""
    endings: list[str] = []
    for part in plan.parts:
        ending = whole = "".join(f"_{word_of(key)}" for key in part.path)
        count = 1
        while ending.upper() in [other.upper() for other in endings]:  # macros use them in upper case
            count += 1
            ending = f"{whole}_{count}"
        endings.append(ending)
    pairs = zip(plan.parts, endings, strict=True)
    return [{what: f"{what}{ending}" for what in ("action", *part.head.parameters)} for part, ending in pairs]


def word_of(key: str | int) -> str:
    """Convert a key to a part of an identifier."""
    return re.sub(r"[^A-Za-z0-9]+", "_", str(key)).strip("_") or "part"


def ending_of(field: dict[str, str]) -> str:
    """Return the suffix that all names of a part share."""
    return field["action"].removeprefix("action")


def types(plan: Plan, prefix: str) -> Iterator[str]:
    """Yield the sizes, and the types of the state and the result."""
    yield f"#define {prefix.upper()}_OBSERVATION {num_inputs(plan)}"
    if plan.has_masks:
        yield f"#define {prefix.upper()}_MASK {plan.num_choices}"
    for part, field in zip(plan.parts, fields_of(plan), strict=True):
        yield f"#define {prefix.upper()}_ACTION{ending_of(field).upper()} {math.prod(part.head.shape)}"
        yield f"#define {prefix.upper()}_OUTPUTS{ending_of(field).upper()} {part.head.width}"
    yield ""
    yield "typedef struct {"
    if plan.memory:
        yield f"    float memory[{plan.memory.size}];"
    yield f"    float a[{widest(plan)}], b[{widest(plan)}]; /* the values that one layer passes to the next */"
    yield f"}} {prefix}_state;"
    yield ""
    yield "typedef struct {"
    for part, field in zip(plan.parts, fields_of(plan), strict=True):
        action, *parameters = field.values()
        yield f"    {C_TYPES[part.head.dtype]} {action}[{math.prod(part.head.shape)}];"
        yield from (f"    float {name}[{part.head.width}]; /* of the distribution */" for name in parameters)
    yield f"}} {prefix}_result;"
    yield ""


def constants(plan: Plan, prefix: str) -> Iterator[str]:
    """Yield the constants: statistics, weights and bounds."""
    if is_normalised(plan):
        mean, deviation = [], []
        for one in plan.inputs:
            assert isinstance(one.coding, Numbers)
            zeros, ones = np.zeros(one.num_features, np.float32), np.ones(one.num_features, np.float32)
            mean.append(zeros if one.coding.mean is None else one.coding.mean.ravel())
            deviation.append(ones if one.coding.deviation is None else one.coding.deviation.ravel())
        yield from array(f"{prefix}_mean", np.concatenate(mean))
        yield from array(f"{prefix}_deviation", np.concatenate(deviation))
    for k, layer in enumerate(plan.layers):
        if isinstance(layer, Dense):
            yield from array(f"{prefix}_weight_{k}", layer.weight.T)
            yield from array(f"{prefix}_bias_{k}", layer.bias)
            if isinstance(layer, Spread):
                yield from array(f"{prefix}_variance_{k}", layer.variance.T)
                yield from array(f"{prefix}_share_{k}", layer.share)
        elif isinstance(layer, Gru):
            for name in GRU_ARRAYS:
                yield from array(f"{prefix}_{name}_{k}", getattr(layer, name))
    for part, field in zip(plan.parts, fields_of(plan), strict=True):
        for name, (numbers, kind) in constants_of(part.head).items():
            yield from array(f"{prefix}_{name}{ending_of(field)}", numbers, kind)


def constants_of(head: Head) -> dict[str, tuple[np.ndarray, str]]:
    """Return the constant arrays of a head and their C types, by name."""
    if not isinstance(head, Gaussian):
        return {}
    numbers = {"centre": head.centre, "half": head.half}
    if head.range_of_log_std is None:
        numbers["log_std"] = head.log_std + head.log_unit
    else:
        numbers |= {"log_std": head.log_std, "log_unit": head.log_unit}
    bounds = {name: (getattr(head, name), C_TYPES[head.dtype]) for name in ("low", "high")}
    return {name: (x, "float") for name, x in numbers.items()} | bounds


def array(name: str, numbers: np.ndarray, kind: str = "float") -> Iterator[str]:
    """Yield the definition of a constant array."""
    written = [literal(float(x), kind) for x in numbers.ravel()]
    yield f"static const {kind} {name}[{len(written)}] = {{"
    for start in range(0, len(written), NUMBERS_A_LINE):
        yield f"    {', '.join(written[start : start + NUMBERS_A_LINE])},"
    yield "};"
    yield ""


def literal(x: float, kind: str) -> str:
    """Write a number as a literal with all its digits."""
    text = f"{x:.9g}" if kind == "float" else f"{x:.17g}"
    if not any(mark in text for mark in ".en"):
        text += ".0"
    return f"{text}f" if kind == "float" else text


def functions(plan: Plan, prefix: str) -> Iterator[str]:
    """Yield the functions that compute the policy's layers."""
    for activation in dict.fromkeys(layer.activation for layer in plan.layers if isinstance(layer, Dense)):
        yield f"static inline void {prefix}_{activation or 'linear'}("
        yield "    const float *x, int inputs, const float *weight, const float *bias, int outputs, float *y)"
        yield "{"
        yield "    for (int k = 0; k < outputs; k++) {"
        yield "        float sum = bias[k];"
        yield "        for (int i = 0; i < inputs; i++)"
        yield "            sum += weight[k * inputs + i] * x[i];"
        yield f"        y[k] = {ACTIVATIONS[activation] if activation else 'sum'};"
        yield "    }"
        yield "}"
        yield ""
    if any(isinstance(layer, Spread) for layer in plan.layers):
        yield from spread(prefix)
    if plan.memory:
        yield from gru(prefix)


def spread(prefix: str) -> list[str]:
    """Return the function for layers that compute log σ of state-dependent noise from their inputs."""
    return f"""\
static inline void {prefix}_spread(
    const float *x, int inputs, const float *variance, const float *share, int outputs, float *y)
{{
    for (int k = 0; k < outputs; k++) {{
        float sum = {literal(VARIANCE_FLOOR, "float")};
        for (int i = 0; i < inputs; i++)
            sum += variance[k * inputs + i] * x[i] * x[i];
        y[k] += share[k] * logf(sum);
    }}
}}
""".split("\n")


def gru(prefix: str) -> list[str]:
    """Return the functions for one step of a GRU."""
    return f"""\
static inline float {prefix}_product(const float *weight, const float *x, int size)
{{
    float sum = 0.0f;
    for (int i = 0; i < size; i++)
        sum += weight[i] * x[i];
    return sum;
}}

static inline float {prefix}_sigmoid(float x)
{{
    return 1.0f / (1.0f + expf(-x));
}}

static inline void {prefix}_gru(
    const float *x, int inputs, const float *input_weight, const float *state_weight, const float *bias,
    const float *state_bias, int size, float *memory, float *y)
{{
    for (int k = 0; k < size; k++) {{
        const int r = k, z = size + k, n = 2 * size + k;
        const float reset = {prefix}_sigmoid({prefix}_product(input_weight + r * inputs, x, inputs) + bias[r]
            + {prefix}_product(state_weight + r * size, memory, size));
        const float keep = {prefix}_sigmoid({prefix}_product(input_weight + z * inputs, x, inputs) + bias[z]
            + {prefix}_product(state_weight + z * size, memory, size));
        const float made = tanhf({prefix}_product(input_weight + n * inputs, x, inputs) + bias[n]
            + reset * ({prefix}_product(state_weight + n * size, memory, size) + state_bias[k]));
        y[k] = made + keep * (memory[k] - made);
    }}
    for (int k = 0; k < size; k++)
        memory[k] = y[k];
}}
""".split("\n")


def reset(plan: Plan, prefix: str) -> Iterator[str]:
    """Yield the function that begins an episode."""
    yield f"static inline void {prefix}_reset({prefix}_state *state)"
    yield "{"
    if plan.memory:
        yield f"    for (int k = 0; k < {plan.memory.size}; k++)"
        yield "        state->memory[k] = 0.0f;"
    else:
        yield "    (void)state; /* nothing is remembered */"
    yield "}"
    yield ""


def step(plan: Plan, prefix: str) -> Iterator[str]:
    """Yield the function that takes a step."""
    mask = " const uint8_t *mask," if plan.has_masks else ""
    yield f"static inline void {prefix}_step("
    yield f"    {prefix}_state *state, const float *observation,{mask} {prefix}_result *result)"
    yield "{"
    yield "    float *x = state->a, *y = state->b, *other;"
    yield f"    for (int i = 0; i < {num_inputs(plan)}; i++)" + (" {" if is_normalised(plan) else "")
    if is_normalised(plan):
        clip = f"{OBSERVATION_CLIP}f"
        yield f"        const float z = (observation[i] - {prefix}_mean[i]) / {prefix}_deviation[i];"
        yield f"        x[i] = z < -{clip} ? -{clip} : z > {clip} ? {clip} : z;"
        yield "    }"
    else:
        yield "        x[i] = observation[i];"
    for k, layer in enumerate(plan.layers):
        if isinstance(layer, Dense):
            inputs, outputs = layer.weight.shape
            called = f"{prefix}_{layer.activation or 'linear'}"
            yield f"    {called}(x, {inputs}, {prefix}_weight_{k}, {prefix}_bias_{k}, {outputs}, y);"
            if isinstance(layer, Spread):
                yield f"    {prefix}_spread(x, {inputs}, {prefix}_variance_{k}, {prefix}_share_{k}, {outputs}, y);"
        elif isinstance(layer, Gru):
            arrays = ", ".join(f"{prefix}_{name}_{k}" for name in GRU_ARRAYS)
            inputs = layer.input_weight.shape[1]
            yield f"    {prefix}_gru(x, {inputs}, {arrays}, {layer.size}, state->memory, y);"
        yield "    other = x, x = y, y = other;"
    output, choice = 0, 0
    for part, field in zip(plan.parts, fields_of(plan), strict=True):
        if output:
            yield f"    x += {output};"
        output = part.head.num_outputs
        if choice and plan.is_masked(part):
            yield f"    mask += {choice};"
        if plan.is_masked(part):
            choice = part.head.num_choices
        yield from head(part.head, field, prefix, has_mask=plan.is_masked(part))
    yield "}"
    yield ""


def head(made: Head, field: dict[str, str], prefix: str, *, has_mask: bool) -> Iterator[str]:
    """Yield the code that converts the outputs of a part to its action and stores it in the given fields of the
    result."""
    if isinstance(made, Gaussian):
        yield from gaussian(made, field, prefix)
        return
    logits, action = field["logits"], field["action"]
    yield f"    for (int k = 0; k < {made.num_outputs}; k++) {{"
    if isinstance(made, Switches):
        free = "mask[2 * k] && mask[2 * k + 1] ? x[k] : mask[2 * k + 1] ? INFINITY : -INFINITY"
        yield f"        result->{logits}[k] = {free if has_mask else 'x[k]'};"
        yield f"        result->{action}[k] = result->{logits}[k] > 0.0f;"
    else:
        yield f"        result->{logits}[k] = {'mask[k] ? x[k] : -INFINITY' if has_mask else 'x[k]'};"
    yield "    }"
    if isinstance(made, Categories):
        yield from highest(made, field)


def gaussian(made: Gaussian, field: dict[str, str], prefix: str) -> Iterator[str]:
    """Yield the code for the mean, log σ and action of a real-valued part."""
    end, kind = ending_of(field), C_TYPES[made.dtype]
    scaled = f"{prefix}_centre{end}[k] + {prefix}_half{end}[k] * "
    yield f"    for (int k = 0; k < {made.width}; k++) {{"
    yield f"        const float mean = {'' if made.is_squashed else scaled}x[k];"
    yield f"        const {kind} taken = ({kind})({f'{scaled}tanhf(mean)' if made.is_squashed else 'mean'});"
    yield f"        result->{field['mean']}[k] = mean;"
    if made.range_of_log_std is None:
        yield f"        result->{field['log_std']}[k] = {prefix}_log_std{end}[k];"
    else:
        low, high = (literal(x, "float") for x in made.range_of_log_std)
        yield f"        const float free = {prefix}_log_std{end}[k] + x[{made.width} + k];"
        yield f"        const float bounded = free < {low} ? {low} : free > {high} ? {high} : free;"
        yield f"        result->{field['log_std']}[k] = bounded + {prefix}_log_unit{end}[k];"
    yield f"        result->{field['action']}[k] = taken < {prefix}_low{end}[k] ? {prefix}_low{end}[k]"
    yield f"            : taken > {prefix}_high{end}[k] ? {prefix}_high{end}[k] : taken;"
    yield "    }"


def highest(made: Categories, field: dict[str, str]) -> Iterator[str]:
    """Yield the code that selects the highest logit of each choice, or the first of them in a tie."""
    logits = field["logits"]
    for k, (first, size, start) in enumerate(
        zip(np.cumsum([0, *made.sizes]).tolist(), made.sizes, made.start, strict=False)
    ):
        yield "    {"
        yield f"        int best = {first};"
        yield f"        for (int k = {first + 1}; k < {first + size}; k++)"
        yield f"            if (result->{logits}[k] > result->{logits}[best])"
        yield "                best = k;"
        yield f"        result->{field['action']}[{k}] = ({C_TYPES[made.dtype]})(best - {first} + ({integer(start)}));"
        yield "    }"


def integer(x: int) -> str:
    """Write an integer as a literal that is wide enough for any start."""
    return f"INT64_C({x})"
