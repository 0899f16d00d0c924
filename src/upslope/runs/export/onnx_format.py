"""Write a policy as an ONNX graph, operator by operator (extra `onnx`)."""

from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from upslope.core.distributions import VARIANCE_FLOOR
from upslope.errors import UpslopeError
from upslope.models.normaliser import OBSERVATION_CLIP
from upslope.runs.export.plan import (
    Block,
    Bytes,
    Categories,
    Choices,
    Convolution,
    Dense,
    Gaussian,
    Gru,
    Input,
    Lstm,
    Memory,
    Part,
    Picture,
    Plan,
    Spread,
    Stack,
    Switches,
)

OPSET, IR_VERSION = 17, 8
"""Versions of the operators and of the file format: those of onnx 1.12 (2022), which onnxruntime has supported since
version 1.12."""
MASK, OWN = "action_mask", "upslope:"
"""The name of the mask input, and the prefix of every internal name."""
KINDS = {"Box": "float32", "image": "uint8", "Discrete": "int64", "MultiDiscrete": "int64", "MultiBinary": "int8"}
"""The dtype of the input for each kind of space."""


def require_onnx() -> Any:
    """Return the package onnx.

    Raises:
        UpslopeError: it is not installed.
    """
    if find_spec("onnx") is None:
        raise UpslopeError('ONNX needs onnx, which is not installed: pip install "upslope[onnx]". Or export as numpy.')
    return import_module("onnx")


def files_of(plan: Plan, path: Path) -> dict[Path, bytes]:
    """Return the graph as the content of the file at this path.

    Raises:
        UpslopeError: onnx is not installed.
    """
    require_onnx()
    return {path: GraphWriter().model(plan).SerializeToString()}


def own_files_of(own: Any, policy: Any, path: Path) -> dict[Path, bytes]:
    """Return the graph that a user's model builds with its own `to_onnx`.

    Raises:
        UpslopeError: onnx is not installed, or the graph is not valid.
    """
    onnx = require_onnx()
    made = own.to_onnx(policy)
    name = type(own).__name__
    if not isinstance(made, onnx.ModelProto):
        raise UpslopeError(f"{name}.to_onnx() returns a {type(made).__name__}, but an onnx.ModelProto is needed.")
    try:
        onnx.checker.check_model(made, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UpslopeError(f"{name}.to_onnx() returns an invalid graph: {error}.") from error
    return {path: made.SerializeToString()}


def input_names(plan: Plan) -> list[str]:
    """Return the names of the observation's arrays: their keys, prefixed with `observation/` to avoid clashes with
    other names."""
    carries = plan.memory.carries if plan.memory else ()
    actions = (part.action for part in plan.parts)
    taken = {MASK, *actions, *plan.parameters, *carries, *(f"next_{name}" for name in carries)}
    names: list[str] = []
    for one in plan.inputs:
        name = one.name
        while name in taken or name.startswith(OWN):
            name = f"observation/{name}"
        taken.add(name)
        names.append(name)
    return names


class GraphWriter:
    """A graph under construction: operators in order, and constants."""

    def __init__(self) -> None:
        onnx = require_onnx()
        self.helper, self.numpy_helper, self.checker = onnx.helper, onnx.numpy_helper, onnx.checker
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.count = 0

    def fresh(self) -> str:
        """Return a name that is not in use."""
        self.count += 1
        return f"{OWN}{self.count}"

    def op(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Append an operator with one output, and return that output's name."""
        return self.ops(kind, *inputs, outputs=[output or self.fresh()], **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: Sequence[str], **attributes: Any) -> Sequence[str]:
        """Append an operator."""
        self.nodes.append(self.helper.make_node(kind, list(inputs), list(outputs), **attributes))
        return outputs

    def constant(self, x: Any, dtype: Any = np.float32) -> str:
        """Add a constant array and return its name."""
        name = self.fresh()
        self.constants.append(self.numpy_helper.from_array(np.array(x, dtype), name))
        return name

    def cast(self, x: str, dtype: str, output: str | None = None) -> str:
        """Cast x to another dtype."""
        return self.op("Cast", x, output=output, to=self.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def reshape(self, x: str, *shape: int, output: str | None = None) -> str:
        """Reshape x, except for its batch axis."""
        return self.op("Reshape", x, self.constant((-1, *shape), np.int64), output=output)

    def declared(self, name: str, dtype: str, *shape: int) -> Any:
        """Declare an input or output of the graph."""
        kind = self.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.helper.make_tensor_value_info(name, kind, ["batch", *shape])

    def model(self, plan: Plan) -> Any:
        """Build the complete graph."""
        names = input_names(plan)
        inputs = [self.declared(n, KINDS[one.kind], *one.shape) for n, one in zip(names, plan.inputs, strict=True)]
        outputs = [self.declared(part.action, part.head.dtype, *part.head.shape) for part in plan.parts]
        outputs += [self.declared(n, "float32", part.head.width) for part in plan.parts for n in part.parameters]
        if plan.has_masks:
            inputs.append(self.declared(MASK, "bool", plan.num_choices))
        if plan.memory:
            inputs += [self.declared(name, "float32", plan.memory.size) for name in plan.memory.carries]
            outputs += [self.declared(f"next_{name}", "float32", plan.memory.size) for name in plan.memory.carries]
        x = self.features(plan, names)
        for layer in plan.layers:
            x = self.dense(x, layer) if isinstance(layer, Dense) else self.memory(x, layer)
        self.heads(x, plan)
        graph = self.helper.make_graph(self.nodes, "policy", inputs, outputs, self.constants)
        opset = [self.helper.make_opsetid("", OPSET)]
        model = self.helper.make_model(
            graph, opset_imports=opset, producer_name="upslope", producer_version=version("upslope")
        )
        model.ir_version = IR_VERSION
        self.checker.check_model(model, full_check=True)
        return model

    def features(self, plan: Plan, names: list[str]) -> str:
        """Add the operators for the input of the first layer."""
        codings = [self.coded(name, one) for name, one in zip(names, plan.inputs, strict=True)]
        convolved = {picture.place for picture in plan.pictures}
        seen = [
            self.reshape(x, one.num_features)
            for place, (x, one) in enumerate(zip(codings, plan.inputs, strict=True))
            if place not in convolved
        ]
        seen += [self.picture(codings[picture.place], picture) for picture in plan.pictures]
        return seen[0] if len(seen) == 1 else self.op("Concat", *seen, axis=1)

    def coded(self, name: str, one: Input) -> str:
        """Encode an array as numbers of magnitude about 1, in the same shape, or as one-hot vectors."""
        coding = one.coding
        if isinstance(coding, Choices):
            which, what = coding.meanings
            each = self.op("Gather", self.reshape(name, len(coding.sizes)), self.constant(which, np.int64), axis=1)
            return self.cast(self.op("Equal", each, self.constant(what, np.int64)), "float32")
        x = self.cast(name, "float32")
        if isinstance(coding, Bytes):
            if coding.is_picture:
                return self.op("Div", x, self.constant(255))
            return self.op("Log", self.op("Add", x, self.constant(1)))
        if coding.mean is None:
            return x
        z = self.op("Div", self.op("Sub", x, self.constant(coding.mean)), self.constant(coding.deviation))
        return self.op("Clip", z, self.constant(-OBSERVATION_CLIP), self.constant(OBSERVATION_CLIP))

    def picture(self, x: str, picture: Picture) -> str:
        """Compute the features [batch, F] of an image [batch, *shape]."""
        height, width, channels = picture.size
        last = self.op("Transpose", x, perm=[0, *(axis + 1 for axis in picture.axes)])
        x = self.op("Transpose", self.reshape(last, height, width, channels), perm=[0, 3, 1, 2])
        for layer in picture.layers:
            x = self.op("Relu", self.stack(x, layer) if isinstance(layer, Stack) else self.convolution(x, layer))
        x = self.op("Transpose", x, perm=[0, 2, 3, 1])
        return self.dense(self.reshape(x, picture.last.weight.shape[0]), picture.last)

    def convolution(self, x: str, layer: Convolution) -> str:
        """Add a convolution, with channels first."""
        stride, padding = [layer.stride] * 2, [layer.padding] * 4
        return self.op("Conv", x, self.constant(layer.weight), self.constant(layer.bias), strides=stride, pads=padding)

    def stack(self, x: str, layer: Stack) -> str:
        """Add a convolution, pooling, and residual blocks."""
        x = self.convolution(x, layer.first)
        x = self.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        for block in layer.blocks:
            x = self.op("Add", x, self.residual(x, block))
        return x

    def residual(self, x: str, block: Block) -> str:
        """Compute second(relu(first(relu(x))))."""
        inner = self.convolution(self.op("Relu", x), block.first)
        return self.convolution(self.op("Relu", inner), block.second)

    def product(self, x: str, weight: np.ndarray) -> str:
        """Compute x W."""
        return self.op("MatMul", x, self.constant(weight))

    def dense(self, x: str, layer: Dense) -> str:
        """Add act(x W + b), including log σ if the noise is a function of x."""
        before = x
        x = self.op("Add", self.product(x, layer.weight), self.constant(layer.bias))
        if isinstance(layer, Spread):
            square = self.product(self.op("Mul", before, before), layer.variance)
            log = self.op("Log", self.op("Add", square, self.constant(VARIANCE_FLOOR)))
            return self.op("Add", x, self.op("Mul", self.constant(layer.share), log))
        if layer.activation == "silu":
            return self.op("Mul", x, self.op("Sigmoid", x))
        return x if layer.activation is None else self.op({"tanh": "Tanh", "relu": "Relu"}[layer.activation], x)

    def memory(self, x: str, layer: Memory) -> str:
        """Add one step of the layer with memory."""
        if isinstance(layer, Gru):
            return self.gru(x, layer)
        if isinstance(layer, Lstm):
            return self.lstm(x, layer)
        before, now = layer.carries, [f"next_{name}" for name in layer.carries]
        (p, q), (b, d), (c, e) = layer.rate, layer.inward, layer.outward
        self.op("Add", self.turned("Sub", before, (p, q)), self.product(x, b.T), output=now[0])
        self.op("Add", self.turned("Add", before, (q, p)), self.product(x, d.T), output=now[1])
        y = self.op("Sub", self.product(now[0], c.T), self.product(now[1], e.T))
        return self.op("Add", y, self.product(x, layer.skip.T))

    def turned(self, kind: str, carries: Sequence[str], factors: Sequence[np.ndarray]) -> str:
        """Compute first · factor ± second · factor, where `kind` is the operator for ±."""
        first, second = (self.op("Mul", carry, self.constant(f)) for carry, f in zip(carries, factors, strict=True))
        return self.op(kind, first, second)

    def gru(self, x: str, layer: Gru) -> str:
        """Add one step of a GRU."""
        (before,) = layer.carries
        of_input = self.op("Add", self.product(x, layer.input_weight.T), self.constant(layer.bias))
        (r, z, n), (hr, hz, hn) = self.gates(of_input, 3), self.gates(self.product(before, layer.state_weight.T), 3)
        r, z = (self.op("Sigmoid", self.op("Add", a, b)) for a, b in ((r, hr), (z, hz)))
        kept = self.op("Mul", r, self.op("Add", hn, self.constant(layer.state_bias)))
        new = self.op("Tanh", self.op("Add", n, kept))
        return self.op("Add", new, self.op("Mul", z, self.op("Sub", before, new)), output=f"next_{before}")

    def lstm(self, x: str, layer: Lstm) -> str:
        """Add one step of an LSTM."""
        hidden, cell = layer.carries
        of_both = self.op("Add", self.product(x, layer.input_weight.T), self.product(hidden, layer.state_weight.T))
        i, f, g, o = self.gates(self.op("Add", of_both, self.constant(layer.bias)), 4)
        i, f, o = (self.op("Sigmoid", gate) for gate in (i, f, o))
        kept, added = self.op("Mul", f, cell), self.op("Mul", i, self.op("Tanh", g))
        now = self.op("Add", kept, added, output=f"next_{cell}")
        return self.op("Mul", o, self.op("Tanh", now), output=f"next_{hidden}")

    def gates(self, x: str, count: int) -> Sequence[str]:
        """Split the last axis into equal parts."""
        return self.ops("Split", x, outputs=[self.fresh() for _ in range(count)], axis=1)

    def split(self, x: str, sizes: Sequence[int]) -> Sequence[str]:
        """Split the last axis into parts of the given sizes."""
        return self.ops("Split", x, self.constant(sizes, np.int64), outputs=[self.fresh() for _ in sizes], axis=1)

    def heads(self, x: str, plan: Plan) -> None:
        """Add the action and the distribution's parameters of each part."""
        masked = [part for part in plan.parts if plan.is_masked(part)]
        outputs, masks = [x], [MASK]
        if len(plan.parts) > 1:
            outputs = self.split(x, [part.head.num_outputs for part in plan.parts])
        if len(masked) > 1:
            masks = self.split(MASK, [part.head.num_choices for part in masked])
        mask_of = {part.label: mask for part, mask in zip(masked, masks, strict=False)}
        for part, output in zip(plan.parts, outputs, strict=True):
            if isinstance(part.head, Gaussian):
                self.gaussian(output, part, part.head)
            elif isinstance(part.head, Switches):
                self.switches(output, part, part.head, mask_of.get(part.label))
            else:
                self.categories(output, part, part.head, mask_of.get(part.label))

    def gaussian(self, x: str, part: Part, head: Gaussian) -> None:
        """Add the mean, log σ, and the action within its bounds."""
        mean, log_std = part.parameters
        if head.range_of_log_std is not None:
            x, more = self.split(x, [head.width] * 2)
            low, high = map(self.constant, head.range_of_log_std)
            bounded = self.op("Clip", self.op("Add", self.constant(head.log_std), more), low, high)
            self.op("Add", bounded, self.constant(head.log_unit), output=log_std)
        if head.is_squashed:
            self.op("Identity", x, output=mean)
            taken = self.scaled(self.op("Tanh", mean), head)
        else:
            taken = self.scaled(x, head, output=mean)
        if head.range_of_log_std is None:
            self.op("Expand", self.constant(head.log_std + head.log_unit), self.op("Shape", mean), output=log_std)
        taken = self.cast(taken, head.dtype)
        taken = self.op("Max", taken, self.constant(head.low, head.dtype))
        taken = self.op("Min", taken, self.constant(head.high, head.dtype))
        self.reshape(taken, *head.shape, output=part.action)

    def scaled(self, x: str, head: Gaussian, output: str | None = None) -> str:
        """Compute centre + half · x."""
        return self.op("Add", self.constant(head.centre), self.op("Mul", self.constant(head.half), x), output=output)

    def switches(self, x: str, part: Part, head: Switches, mask: str | None) -> None:
        """Add the logits, infinite where a mask leaves only one value, and the bits, 1 where the logit is positive."""
        (logits,) = part.parameters
        if mask is not None:
            pairs = self.reshape(mask, head.num_outputs, 2)
            off, on = (self.op("Gather", pairs, self.constant(k, np.int64), axis=2) for k in (0, 1))
            bound = self.op("Where", on, self.constant(np.inf), self.constant(-np.inf))
            self.op("Where", self.op("And", off, on), x, bound, output=logits)
        else:
            self.op("Identity", x, output=logits)
        is_on = self.cast(self.op("Greater", logits, self.constant(0)), head.dtype)
        self.reshape(is_on, *head.shape, output=part.action)

    def categories(self, x: str, part: Part, head: Categories, mask: str | None) -> None:
        """Add the logits, −∞ where the mask forbids a choice, and the index of the highest logit of each choice (the
        first in a tie)."""
        (logits,) = part.parameters
        if mask is not None:
            self.op("Where", mask, x, self.constant(-np.inf), output=logits)
        else:
            self.op("Identity", x, output=logits)
        parts: Sequence[str] = [logits]
        if len(head.sizes) > 1:
            parts = self.split(logits, head.sizes)
        best = [self.op("ArgMax", part, axis=1, keepdims=1) for part in parts]
        chosen = best[0] if len(best) == 1 else self.op("Concat", *best, axis=1)
        taken = self.op("Add", chosen, self.constant(head.start, np.int64))
        self.reshape(self.cast(taken, head.dtype), *head.shape, output=part.action)
