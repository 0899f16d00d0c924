"""Convert a trained agent to a plan of what its policy computes: the only code that depends on how networks are built.

Anything unknown is refused with an error that names it, so no part of a policy is silently omitted. This covers unknown
classes, and fields that were added to known classes and do not have their default values.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import MISSING, fields
from typing import Any

import equinox
import numpy as np
from equinox.nn import Conv2d, GRUCell, LSTMCell

from upslope.errors import UpslopeError
from upslope.models import convolutions, encoders, heads, memories
from upslope.models.build import OwnModel, name_of_model
from upslope.models.composed import Branch, Separate, SharedTrunk, layout_of
from upslope.models.networks import Perceptron
from upslope.models.perceptrons import Actor, Perceptrons
from upslope.runs.export.plan import (
    Block,
    Bytes,
    Categories,
    Choices,
    Convolution,
    Dense,
    Gaussian,
    Gru,
    Head,
    Input,
    Lru,
    Lstm,
    Memory,
    Numbers,
    Picture,
    Plan,
    Spread,
    Stack,
    Switches,
    labelled,
)

FIELDS: dict[type, tuple[str, ...]] = {
    Perceptrons: ("actor", "critic", "encoder", "views"),
    Actor: ("network", "log_std", "head"),
    Separate: ("log_std", "encoder", "head", "networks", "actor", "critic", "views"),
    SharedTrunk: ("log_std", "encoder", "head", "networks", "trunk", "policy_layer", "value_layer"),
    Branch: ("pictures", "inward", "cell", "outward"),
    Perceptron: ("weights", "biases", "activation"),
    memories.Gated: ("layer",),
    memories.LinearRecurrence: ("nu", "theta", "inward", "outward", "skip"),
    convolutions.Convolutions: ("layers", "last"),
    convolutions.Stack: ("first", "blocks"),
    convolutions.Residual: ("first", "second"),
    encoders.BoxEncoder: ("shape",),
    encoders.ImageEncoder: ("shape", "has_kinds"),
    encoders.DiscreteEncoder: ("n", "start"),
    encoders.MultiDiscreteEncoder: ("shape", "sizes", "start"),
    encoders.MultiBinaryEncoder: ("shape",),
    encoders.DictEncoder: ("parts",),
    encoders.TupleEncoder: ("parts",),
    heads.DiscreteHead: ("n", "start", "dtype"),
    heads.BoxHead: ("shape", "low", "high", "dtype", "has_state_std"),
    heads.SquashedHead: ("shape", "low", "high", "dtype", "has_state_std"),
    heads.StateNoiseHead: ("shape", "low", "high", "dtype", "has_state_std", "num_features", "noise_every"),
    heads.MultiDiscreteHead: ("shape", "sizes", "start", "dtype"),
    heads.MultiBinaryHead: ("shape",),
    heads.DictHead: ("parts",),
    heads.TupleHead: ("parts",),
}
"""The supported classes and their fields."""


def plan_of(agent: Any, encoder: encoders.ObservationEncoder, *, has_masks: bool) -> Plan:
    """Convert the policy of this agent to a plan.

    Raises:
        UpslopeError: a part of the policy is not supported.
    """
    model = agent.model
    if isinstance(model, OwnModel):
        raise UpslopeError(
            f"The model {name_of_model(model.whole)} is custom, so upslope cannot tell what it computes. Add a "
            "method to_onnx(policy) that returns an onnx.ModelProto, and export it as onnx."
        )
    known(model)
    keys, spans = view_of(model)
    normaliser = agent.normaliser if agent.normalize_observations else None
    arrays = [(key_of(one), one, inner) for one, inner in inputs_of(encoder, normaliser)]
    read = [(key, one, inner) for key, one, inner in arrays if keys is None or key in keys]
    convolved = dict(getattr(model, "networks", ()))
    images = [(place, inner) for place, (key, _, inner) in enumerate(read) if key in convolved]
    networks = branch_of(model).pictures if convolved else ()
    pictures = tuple(picture_of(*image, network) for image, network in zip(images, networks, strict=True))
    chain, log_std = chain_of(model)
    if agent.head.num_features:
        chain[-1] = with_spread(chain[-1], agent.head, number(log_std))
    vectors = [(key, one.num_features) for key, one, _ in arrays if key not in convolved]
    if spans is not None and vectors:
        chain[0] = widened(chain[0], vectors, {key for key, _, _ in read}, spans)
    inputs = tuple(one for _, one, _ in read)
    return Plan(inputs, pictures, tuple(chain), labelled(list(heads_of(agent.head, log_std))), has_masks)


def key_of(one: Input) -> str:
    """Return the key that encoders use for this array."""
    return "/".join(map(str, one.path))


def known(part: Any) -> Any:
    """Return the part if all of it is supported; otherwise raise an error."""
    kind = type(part)
    if kind not in FIELDS:
        raise not_known(kind.__name__)
    for field in fields(part):
        if field.name in FIELDS[kind]:
            continue
        value = getattr(part, field.name)
        if field.default is MISSING or hasattr(value, "shape") or value != field.default:
            raise not_known(f"{kind.__name__} with {field.name}={str(value)[:60]}")
    return part


def not_known(words: str) -> UpslopeError:
    """Return the error for a part that is not supported."""
    return UpslopeError(
        f"This policy has a {words}, which cannot be exported yet. Use it from Python: upslope.load returns the policy."
    )


def view_of(model: Any) -> tuple[Any, Any]:
    """Return the keys of the arrays that the policy reads, and the spans of features that it reads.

    Spans are (first, one past the last) among the features that do not come from convolutions. None stands for all."""
    policy, *_ = getattr(model, "views", (None,))
    if policy is None:
        return None, None
    if {field.name for field in fields(policy)} != {"keys", "spans", "images"}:
        raise not_known(f"{type(policy).__name__} of the observations")
    return policy.keys, policy.spans


def widened(
    layer: Any, vectors: Sequence[tuple[str, int]], read: Collection[str], spans: Sequence[tuple[int, int]]
) -> Dense:
    """Extend a first layer that reads only some features of its arrays with rows of 0 for the others.

    `vectors` lists the arrays with their numbers of features; the arrays whose keys are in `read` are the layer's
    inputs.
    """
    is_read = np.zeros(sum(size for _, size in vectors), bool)
    for first, last in spans:
        is_read[first:last] = True
    is_input = np.concatenate([np.full(size, key in read) for key, size in vectors])
    places, count = np.flatnonzero(is_read[is_input]), int(is_input.sum())
    weight = np.zeros((count + len(layer.weight) - len(places), layer.weight.shape[1]), np.float32)
    weight[places], weight[count:] = layer.weight[: len(places)], layer.weight[len(places) :]
    return Dense(weight, layer.bias, layer.activation)


def inputs_of(
    encoder: encoders.ObservationEncoder, statistics: Any, path: tuple[str | int, ...] = ()
) -> Iterator[tuple[Input, encoders.ObservationEncoder]]:
    """Yield each array of an observation, with its encoder."""
    known(encoder)
    if isinstance(encoder, encoders.CompositeEncoder):
        for key, part in encoder.children:
            yield from inputs_of(part, None if statistics is None else statistics[key], (*path, key))
        return
    kind = type(encoder).__name__.removesuffix("Encoder").replace("Image", "image")
    yield Input(path, encoder.shapes, kind, coding_of(encoder, statistics)), encoder


def coding_of(encoder: Any, statistics: Any) -> Numbers | Bytes | Choices:
    """Return how an array is encoded as features."""
    if isinstance(encoder, encoders.DiscreteEncoder):
        return Choices((encoder.n,), (encoder.start,))
    if isinstance(encoder, encoders.MultiDiscreteEncoder):
        return Choices(encoder.sizes, encoder.start)
    if isinstance(encoder, encoders.ImageEncoder):
        return Bytes(not encoder.is_board)
    if statistics is None:
        return Numbers()
    mean, variance = (np.asarray(x, np.float32) for x in (statistics.mean, statistics.variance))
    return Numbers(mean, np.asarray(np.sqrt(variance + np.float32(1e-8))))


def chain_of(model: Any) -> tuple[list[Dense | Memory], Any]:
    """Return the layers from features to the policy's outputs, and the parameter log σ."""
    if isinstance(model, Perceptrons):
        actor = known(model.actor)
        return dense_layers(actor.network, None), actor.log_std
    branch = known(branch_of(model))
    chain: list[Dense | Memory] = []
    if branch.inward is not None:
        chain += dense_layers(branch.inward, branch.inward.activation)
    if branch.cell is not None:
        chain.append(memory_of(branch.cell))
    if isinstance(model, SharedTrunk):
        if branch.outward is not None:
            chain += dense_layers(branch.outward, branch.outward.activation)
        return chain + dense_layers(model.policy_layer, None), model.log_std
    return chain + dense_layers(branch.outward, None), model.log_std


def with_spread(layer: Any, head: Any, log_std: np.ndarray) -> Spread:
    """Return the last layer with additional outputs, after the means, for log σ of parts with state-dependent noise."""
    weight, bias, variance, share = [], [], [], []
    output = scale = 0
    for part in parts_of(head):
        columns = slice(output, output + part.num_outputs)
        none = np.zeros((len(layer.weight), part.num_outputs))
        pieces = [(layer.weight[:, columns], layer.bias[columns], none, 0.0)]
        if part.num_features:
            std = np.exp(log_std[scale : scale + part.num_scales]).reshape(part.num_features, -1)
            pieces.append((none, np.zeros(part.num_outputs), std**2, 0.5))
        for w, b, v, s in pieces:
            weight.append(w)
            bias.append(b)
            variance.append(v)
            share.append(np.full(len(b), s))
        output, scale = output + part.num_outputs, scale + part.num_scales
    joined = (np.concatenate(x, axis=-1).astype(np.float32) for x in (weight, bias, variance, share))
    w, b, v, s = joined
    return Spread(w, b, None, v, s)


def parts_of(head: Any) -> Iterator[Any]:
    """Yield the innermost heads, which have no parts, in order."""
    if isinstance(head, heads.ProductHead):
        for part in head.heads:
            yield from parts_of(part)
    else:
        yield head


def branch_of(model: Any) -> Branch:
    """Return the network that the policy uses to read observations."""
    return model.trunk if isinstance(model, SharedTrunk) else model.actor


def dense_layers(network: Any, last: str | None) -> list[Dense | Memory]:
    """Return the layers of a perceptron whose last layer has this activation."""
    known(network)
    activations = [network.activation] * (len(network.weights) - 1) + [last]
    layers = zip(network.weights, network.biases, activations, strict=True)
    return [Dense(number(weight), number(bias), activation) for weight, bias, activation in layers]


def memory_of(cell: Any) -> Memory:
    """Convert a memory cell."""
    known(cell)
    if isinstance(cell, memories.LinearRecurrence):
        decay, phase = np.exp(-np.exp(number(cell.nu))), np.exp(number(cell.theta))
        gain = np.sqrt(1 - decay**2)
        rate = np.stack([decay * np.cos(phase), decay * np.sin(phase)])
        return Lru(rate, gain[:, None] * number(cell.inward), number(cell.outward), number(cell.skip))
    layer: Any = cell.layer
    shared = number(layer.weight_ih), number(layer.weight_hh), number(layer.bias)
    if type(layer) is GRUCell:
        return Gru(*shared, number(layer.bias_n))
    if type(layer) is LSTMCell:
        return Lstm(*shared)
    raise not_known(type(layer).__name__)


def picture_of(place: int, encoder: Any, network: Any) -> Picture:
    """Convert an image encoder and the convolutional network that reads the image."""
    known(network)
    layout = layout_of(encoder)
    others = [axis for axis in range(len(layout.shape)) if axis not in (layout.height, layout.width)]
    layers = tuple(stack_of(layer) if isinstance(layer, equinox.Module) else layer for layer in network.layers)
    last = Dense(number(network.last.weight).T, number(network.last.bias), "relu")
    return Picture(place, (layout.height, layout.width, *others), layout.size, layers, last)


def stack_of(layer: Any) -> Convolution | Stack:
    """Convert a convolution, or a stack of a convolution and residual blocks."""
    if type(layer) is Conv2d:
        return convolution_of(layer)
    known(layer)
    if not isinstance(layer, convolutions.Stack):
        raise not_known(type(layer).__name__)
    blocks = [known(block) for block in layer.blocks]
    return Stack(
        convolution_of(layer.first),
        tuple(Block(convolution_of(block.first), convolution_of(block.second)) for block in blocks),
    )


def convolution_of(layer: Any) -> Convolution:
    """Convert a convolution with a square kernel."""
    if {*layer.dilation, layer.groups} != {1} or layer.bias is None or len(set(layer.padding)) != 1:
        raise not_known("convolution with dilation or groups")
    return Convolution(number(layer.weight), number(layer.bias)[:, 0, 0], layer.stride[0], layer.padding[0][0])


def heads_of(head: Any, log_std: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Head]]:
    """Yield the path and the head of each part of an action."""
    known(head)
    if isinstance(head, heads.ProductHead):
        start = 0
        for key, part in head.children:
            yield from heads_of(part, log_std[start : start + part.num_scales], (*path, key))
            start += part.num_scales
        return
    yield path, head_of(head, log_std)


def head_of(head: Any, log_std: Any) -> Head:
    """Convert the head of an action without parts."""
    if isinstance(head, heads.DiscreteHead):
        return Categories((), head.dtype, (head.n,), (head.start,))
    if isinstance(head, heads.MultiDiscreteHead):
        return Categories(head.shape, head.dtype, head.sizes, head.start)
    if isinstance(head, heads.MultiBinaryHead):
        return Switches(head.shape, "int8")
    centre, half = head.scaling
    low, high = head.bounds
    limits = heads.LOG_STD if head.has_state_std else None
    if head.num_features:  # the last layer computes all of log σ
        log_std, limits = np.zeros(len(centre)), EVERYTHING
    return Gaussian(
        head.shape,
        head.dtype,
        centre,
        half,
        number(log_std),
        low,
        high,
        is_squashed=isinstance(head, heads.SquashedHead),
        range_of_log_std=limits,
    )


EVERYTHING = (-1e30, 1e30)
"""Bounds that log σ never reaches."""


def number(x: Any) -> np.ndarray:
    """Convert a parameter to a NumPy array.

    Raises:
        UpslopeError: it contains a number that is not finite.
    """
    array = np.asarray(x, np.float32)
    if not np.isfinite(array).all():
        raise UpslopeError(
            "The policy's parameters are not finite, so it cannot act. To find out why, run: upslope doctor RUN. "
            "Export another seed, or --checkpoint best."
        )
    return array
