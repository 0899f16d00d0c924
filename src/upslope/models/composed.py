"""Networks composed of image encoders, a memory, hidden layers and heads. Policy and critic are separate or share a
trunk.

observation → encoders → features → (layer → memory) → hidden layers → policy and value
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, count, pairwise
from typing import Any

import equinox
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from upslope.core.arrays import ACTIVATIONS
from upslope.core.keys import key_of, same_key
from upslope.core.messages import unknown
from upslope.errors import UpslopeError
from upslope.models.convolutions import NETWORKS, Convolutions, convolutions, flat_size
from upslope.models.convolve import fractions
from upslope.models.encoders import BOARD, BoxEncoder, ImageEncoder, ObservationEncoder, image_layout
from upslope.models.head import ActionHead
from upslope.models.memories import Cell, cell_of
from upslope.models.model import POLICY, SHARED, VALUE, Outputs
from upslope.models.networks import Perceptron, generator_of, initialise_perceptron
from upslope.models.views import WHOLE, Features, View, Views, parts_of


class Branch(equinox.Module):
    """A network from features to outputs: image encoders, an optional memory, and a perceptron."""

    pictures: tuple[Convolutions, ...]
    inward: Perceptron | None
    """The layer before the memory."""
    cell: Cell | None
    outward: Perceptron | None
    """The hidden layers and the output layer; None if there are neither."""

    def start(self, num: int) -> Any:
        """The memory of `num` columns at the start of an episode."""
        return () if self.cell is None else self.cell.start(num)

    def before(self, features: Features) -> Float[Array, "B F"]:
        """Compute the input of the memory, or of the hidden layers if there is no memory."""
        vector, images = features
        seen = [] if vector is None else [vector]
        seen += [network(image) for network, image in zip(self.pictures, images, strict=True)]
        x = seen[0] if len(seen) == 1 else jnp.concatenate(seen, axis=-1)
        return x if self.inward is None else ACTIVATIONS[self.inward.activation](self.inward(x))

    def after(self, x: Float[Array, "... F"]) -> Float[Array, "... K"]:
        """Apply the hidden layers and the output layer to the memory's outputs."""
        return x if self.outward is None else self.outward(x)

    def hidden(self, x: Float[Array, "... F"]) -> Float[Array, "... H"]:
        """Apply only the hidden layers."""
        return x if self.outward is None else self.outward.hidden(x)

    def once(self, features: Features, carry: Any) -> tuple[Float[Array, "N K"], Any]:
        """Compute one step of N columns."""
        x, carry = self.remembered(features, carry)
        return self.after(x), carry

    def remembered(self, features: Features, carry: Any) -> tuple[Float[Array, "N F"], Any]:
        """The input of the hidden layers in one step of N columns, and the memory after this step."""
        x = self.before(features)
        return (x, carry) if self.cell is None else self.cell.once(x, carry)

    def over_time(self, features: Features, carry: Any, fresh: Bool[Array, "T N"]) -> tuple[Float[Array, "T N K"], Any]:
        """Compute T steps of N columns. Only the memory runs step by step; everything else is one batch."""
        x, carry = self.remembered_over_time(features, carry, fresh)
        return self.after(x), carry

    def remembered_over_time(
        self, features: Features, carry: Any, fresh: Bool[Array, "T N"]
    ) -> tuple[Float[Array, "T N F"], Any]:
        """The input of the hidden layers in T steps of N columns, and the memory after each step."""
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), features)
        x = self.before(flat)
        x = x.reshape(*fresh.shape, *x.shape[1:])
        return (x, carry) if self.cell is None else self.cell.over_time(x, carry, fresh)


class Reading(equinox.Module):
    """The base class of all networks that read observations. It prepares their inputs."""

    encoder: ObservationEncoder = equinox.field(static=True)
    networks: tuple[tuple[str, str], ...] = equinox.field(static=True)
    """(key, network) of each image in the observation."""

    def prepare(self, observation: Any) -> Features:
        """Encode all arrays except images. Images keep their values, with channels last, until `legible`
        converts them."""
        leaves = list(self.encoder.leaves(observation))
        convolved = dict(self.networks)
        vectors = [encoder.encode(x) for key, encoder, x in leaves if key not in convolved]
        images = tuple(layout_of(encoder).channels_last(x) for key, encoder, x in leaves if key in convolved)
        if len(vectors) > 1:
            # Keep normalisation from fusing with the concatenation, which would make rounding depend on the program.
            return jnp.concatenate(jax.lax.optimization_barrier(vectors), axis=-1), images
        return (vectors[0] if vectors else None), images

    def legible(self, features: Features) -> Features:
        """The features as the networks read them: pictures as bytes, everything else as floats of magnitude about 1."""
        vector, images = features
        convolved = dict(self.networks)
        encoders = [encoder for key, encoder, _ in self.encoder.leaves(self.encoder.shapes) if key in convolved]
        read = tuple(legible_image(encoder, jnp.asarray(x)) for encoder, x in zip(encoders, images, strict=True))
        return (None if vector is None else jnp.asarray(vector)), read

    def floating(self, features: Features) -> Features:
        """The features as floats of magnitude about 1, pictures included."""
        vector, images = self.legible(features)
        return vector, tuple(map(fractions, images))


class Composed(Reading):
    """The common base class of separate networks and a shared trunk."""

    log_std: Float[Array, "K"]
    head: ActionHead = equinox.field(static=True)

    def policy_of(self, layer: Perceptron, hidden: Float[Array, "... H"]) -> Any:
        """π(·|s) from the activations of the last hidden layer, computed by the last layer of this perceptron."""
        return self.head.distribution(layer.last_layer(hidden), self.log_std, hidden)


class Separate(Composed):
    """π_θ and V_θ as separate networks."""

    actor: Branch
    critic: Branch
    views: Views = equinox.field(static=True)
    """Which parts of an observation the policy and the critic read."""

    def start(self, num: int) -> Any:
        carry = {POLICY: self.actor.start(num), VALUE: self.critic.start(num)}
        return carry if jax.tree.leaves(carry) else ()

    def seen(self, features: Features) -> tuple[Features, Features]:
        """The inputs of the policy and of the critic."""
        legible = self.legible(features)
        policy, critic = (view.of(legible) for view in self.views)
        return policy, critic

    def step(self, features: Features, carry: Any, fresh: Bool[Array, "N"]) -> tuple[Outputs, Any]:
        seen, known = self.seen(features)
        x, mine = self.actor.remembered(seen, carry[POLICY] if carry else ())
        value, its = self.critic.once(known, carry[VALUE] if carry else ())
        return Outputs(self.policy_from(x), value[..., 0]), {POLICY: mine, VALUE: its} if carry else ()

    def policy_from(self, x: Float[Array, "... F"]) -> Any:
        """π(·|s) from the input of the policy's hidden layers."""
        assert self.actor.outward is not None
        return self.policy_of(self.actor.outward, self.actor.hidden(x))

    def unroll(self, features: Features, carry: Any, fresh: Bool[Array, "T N"]) -> tuple[Outputs, Any]:
        """Compute T steps at once; see `upslope.models.model.unroll`."""
        seen, known = self.seen(features)
        x, mine = self.actor.remembered_over_time(seen, carry[POLICY], fresh)
        value, its = self.critic.over_time(known, carry[VALUE], fresh)
        return Outputs(self.policy_from(x), value[..., 0]), {POLICY: mine, VALUE: its}

    def groups(self) -> dict[str, Any]:
        return {POLICY: (self.actor, self.log_std), VALUE: self.critic}


class SharedTrunk(Composed):
    """π_θ and V_θ as two output layers of one network."""

    trunk: Branch
    policy_layer: Perceptron
    value_layer: Perceptron

    def start(self, num: int) -> Any:
        return self.trunk.start(num)

    def outputs(self, x: Float[Array, "... F"]) -> Outputs:
        """Policy and value from the trunk's outputs."""
        if self.trunk.outward is not None:
            x = ACTIVATIONS[self.trunk.outward.activation](x)
        return Outputs(self.policy_of(self.policy_layer, x), self.value_layer(x)[..., 0])

    def step(self, features: Features, carry: Any, fresh: Bool[Array, "N"]) -> tuple[Outputs, Any]:
        x, carry = self.trunk.once(self.legible(features), carry)
        return self.outputs(x), carry

    def unroll(self, features: Features, carry: Any, fresh: Bool[Array, "T N"]) -> tuple[Outputs, Any]:
        """Compute T steps at once; see `upslope.models.model.unroll`."""
        x, carry = self.trunk.over_time(self.legible(features), carry, fresh)
        return self.outputs(x), carry

    def groups(self) -> dict[str, Any]:
        return {SHARED: self}


def layout_of(encoder: ObservationEncoder) -> Any:
    """The layout of an encoder's observations as images; None if they are not images."""
    if not isinstance(encoder, BoxEncoder | ImageEncoder):
        return None
    return image_layout(encoder.shape, is_bytes=isinstance(encoder, ImageEncoder))


def legible_image(encoder: ObservationEncoder, images: Array) -> Shaped[Array, "..."]:
    """Images as a convolution reads them. Floats are kept as the environment or the normaliser produced them."""
    if not isinstance(encoder, ImageEncoder):
        return images.astype(jnp.float32)
    is_picture = not encoder.is_board and images.dtype == jnp.uint8
    return images if is_picture else encoder.scaled(images)


PERCEPTRON = "perceptron"


def has_images(encoder: ObservationEncoder) -> bool:
    """Whether an observation contains images that a convolutional network can read."""
    return any(layout_of(inner) for _, inner, _ in encoder.leaves(encoder.shapes))


def networks_of(encoder: ObservationEncoder, wanted: Sequence[str] = ()) -> tuple[tuple[str, str], ...]:
    """(key, network) of each image in an observation that a convolutional network reads.

    Boards of up to 16 cells per side are read by `board`, images of at least 36 pixels per side by `nature`, and images
    in between by `impala`. `wanted` overrides this with a network for all images, or key=network for one.

    Raises:
        UpslopeError: a network or key is unknown, or the images are too small for the network.
    """
    refuse_shared_keys(encoder)
    images = {key: layout for key, inner, _ in encoder.leaves(encoder.shapes) if (layout := layout_of(inner))}
    found = {key: chosen_by_size(layout.size) for key, layout in images.items()}
    for words in wanted:
        key, _, network = words.rpartition("=")
        if network not in (*NETWORKS, PERCEPTRON):
            raise UpslopeError(unknown("encoder", network, [*NETWORKS, PERCEPTRON]))
        if "=" in words and key not in images:
            raise UpslopeError(
                f"--encoder {words}: the observation has no image `{key}`. The images are: "
                f"{', '.join(images) or 'none'}."
            )
        found |= {name: network for name in images if "=" not in words or name == key}
    for key, network in found.items():
        height, width, _ = images[key].size
        if network != PERCEPTRON and min(height, width) < NETWORKS[network][2]:
            raise UpslopeError(
                f"--encoder {network} requires images of at least {NETWORKS[network][2]} pixels per side, but the "
                f"environment's are {height} × {width}. Use `impala`, `board` or `perceptron`."
            )
    return tuple((key, network) for key, network in found.items() if network != PERCEPTRON)


def refuse_shared_keys(encoder: ObservationEncoder) -> None:
    """Refuse an image that shares its key with another array, since networks are assigned to images by key."""
    arrays = [part for part in parts_of(encoder) if part.is_array]
    for key, inner, _ in encoder.leaves(encoder.shapes):
        same = [other.path for other in arrays if key_of(other.path) == key]
        if layout_of(inner) and len(same) > 1:
            raise UpslopeError(f"An image must have a name of its own, but {same_key(key, same)}")


def chosen_by_size(size: tuple[int, int, int]) -> str:
    """The network for images of this size."""
    height, width, _ = size
    if max(height, width) <= BOARD:
        return "board"
    return "nature" if min(height, width) >= NETWORKS["nature"][2] else "impala"


def composed(
    encoder: ObservationEncoder,
    head: ActionHead,
    *,
    key: PRNGKeyArray,
    hidden_sizes: tuple[int, ...] = (64, 64),
    activation: str = "tanh",
    log_std_init: float = 0.0,
    networks: tuple[tuple[str, str], ...] = (),
    memory: str | None = None,
    memory_size: int = 128,
    shared_trunk: bool = False,
    views: Views = (WHOLE, WHOLE),
) -> Separate | SharedTrunk:
    """Newly initialised networks. The policy's last layer has gain 0.01, so the initial policy hardly depends on the
    state."""
    draw = generator_of(key)
    further = (jax.random.fold_in(key, number) for number in count())
    keys = chain(jax.random.split(key, 16), further)
    settings: dict[str, Any] = {"hidden_sizes": hidden_sizes, "activation": activation, "networks": networks}
    settings |= {"memory": memory, "memory_size": memory_size}

    def branch(view: View, *ends: tuple[int, float]) -> tuple[Branch, int]:
        return branch_of(encoder, view, ends, keys, draw, **settings)

    scales = jax.device_put(np.full(head.num_scales, log_std_init, np.float32))
    if shared_trunk:
        trunk, width = branch(WHOLE)
        layers = (initialise_perceptron(draw, (width, *last), gain, activation) for *last, gain in last_layers(head))
        return SharedTrunk(encoder, networks, scales, head, trunk, *layers)
    ends = zip(views, last_layers(head), strict=True)
    actor, critic = (branch(view, last)[0] for view, last in ends)
    return Separate(encoder, networks, scales, head, actor, critic, views)


def branch_of(
    encoder: ObservationEncoder,
    view: View,
    ends: Sequence[tuple[int, float]],
    keys: Iterator[PRNGKeyArray],
    draw: np.random.Generator,
    *,
    hidden_sizes: tuple[int, ...],
    activation: str,
    networks: tuple[tuple[str, str], ...] = (),
    memory: str | None = None,
    memory_size: int = 128,
) -> tuple[Branch, int]:
    """Create a network that ends in this layer (outputs, gain), if one is given. Also return its number of outputs."""
    leaves = [(key, inner) for key, inner, _ in encoder.leaves(encoder.shapes)]
    pictures = tuple(
        convolutions(network, layout_of(dict(leaves)[key]).size, next(keys), draw)
        for key, network in view.chosen(networks)
    )
    width = view.width(sum(inner.num_features for key, inner in leaves if key not in dict(networks)))
    width += sum(network.num_features for network in pictures)
    inward = cell = None
    if memory is not None:
        inward = initialise_perceptron(draw, (width, memory_size), np.sqrt(2), activation)
        cell = cell_of(memory, memory_size, memory_size, next(keys), draw)
        width = memory_size
    sizes = (width, *hidden_sizes, *(size for size, _ in ends))
    gain = ends[0][1] if ends else np.sqrt(2)
    outward = initialise_perceptron(draw, sizes, gain, activation) if len(sizes) > 1 else None
    return Branch(pictures, inward, cell, outward), sizes[-1]


def last_layers(head: ActionHead) -> tuple[tuple[int, float], tuple[int, float]]:
    """(outputs, gain) of the last layers of policy and value."""
    return (head.num_outputs, 0.01), (1, 1.0)


def least_numbers_of(
    encoder: ObservationEncoder, networks: tuple[tuple[str, str], ...], settings: Mapping[str, Any]
) -> int:
    """A lower bound on the number of parameters, computed without creating them. `networks` lists the images that are
    read."""
    shapes = {key: layout_of(inner).size for key, inner, _ in encoder.leaves(encoder.shapes) if key in dict(networks)}
    last = sum(flat_size(network, shapes[key]) * NETWORKS[network][1] for key, network in networks)
    memory = 5 * settings["memory_size"] ** 2 if settings.get("memory") else 0
    return last + memory + sum(i * o for i, o in pairwise(settings["hidden_sizes"]))
