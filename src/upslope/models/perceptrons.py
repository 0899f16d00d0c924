"""The default model: a perceptron for the policy and one for the critic, without memory.

The networks are separate (Andrychowicz et al. 2021 find this better on four of five tasks), with orthogonal
initialisation and a small policy head.
"""

from dataclasses import field
from itertools import pairwise
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, PRNGKeyArray, Shaped

from upslope.core.arrays import STATIC, pytree
from upslope.core.arrays import AnyArray as Array
from upslope.core.distributions import Distribution
from upslope.models.encoders import ImageEncoder, ObservationEncoder
from upslope.models.head import ActionHead
from upslope.models.model import POLICY, VALUE, Outputs
from upslope.models.networks import Perceptron, generator_of, initialise_perceptron
from upslope.models.views import WHOLE, View, Views


@pytree
class Actor:
    """π_θ(·|features). `log_std` is a state-independent parameter; it is empty for discrete actions."""

    network: Perceptron
    log_std: Float[Array, "K"]
    head: ActionHead = field(metadata=STATIC)

    def __call__(self, features: Float[Array, "... D"]) -> Distribution:
        hidden = self.network.hidden(features)
        return self.head.distribution(self.network.last_layer(hidden), self.log_std, hidden)


@pytree
class Perceptrons:
    """π_θ and V_θ, each a perceptron over the encoded observation."""

    actor: Actor
    critic: Perceptron
    encoder: ObservationEncoder = field(metadata=STATIC)
    views: Views = field(default=(WHOLE, WHOLE), metadata=STATIC)
    """Which parts of an observation the policy and the critic read."""

    def prepare(self, observation: Any) -> Shaped[Array, "... D"]:
        """Encode observations. A single image keeps its bytes until `floating` converts them, since minibatches of
        bytes are copied several times as fast."""
        if isinstance(self.encoder, ImageEncoder):
            return self.encoder.flattened(observation)
        return self.encoder.encode(observation)

    def floating(self, features: Shaped[Array, "... D"]) -> Float[Array, "... D"]:
        """The features as floating-point numbers."""
        return self.encoder.scaled(features) if isinstance(self.encoder, ImageEncoder) else features

    def seen(self, view: View, features: Shaped[Array, "... D"]) -> Float[Array, "... K"]:
        """The features that a network with this view reads."""
        return self.floating(view.vector(features))

    def start(self, num: int) -> tuple[()]:
        return ()

    def step(self, features: Shaped[Array, "N D"], carry: Any, fresh: Bool[Array, "N"]) -> tuple[Outputs, Any]:
        return Outputs(self.policy(features), self.value(features)), carry

    def groups(self) -> dict[str, Any]:
        return {POLICY: self.actor, VALUE: self.critic}

    def policy(self, features: Shaped[Array, "... D"]) -> Distribution:
        """Compute only π(·|s). NumPy arrays are accepted, so that the host acts without a compiled program."""
        return self.actor(self.seen(self.views[0], features))

    def value(self, features: Shaped[Array, "... D"]) -> Float[Array, "..."]:
        """Compute only V(s), over any batch axes."""
        return self.critic(self.seen(self.views[1], features))[..., 0]

    def hidden_units(self, features: Shaped[Array, "B D"]) -> dict[str, tuple[Array, str]]:
        """The first layer's pre-activations [B, K] of each group, and the name of the activation; empty if there are no
        hidden layers."""
        networks = {POLICY: (self.views[0], self.actor.network), VALUE: (self.views[1], self.critic)}
        return {
            name: (network.first_layer(self.seen(view, features)), network.activation)
            for name, (view, network) in networks.items()
            if len(network.weights) > 1
        }


def perceptrons(
    encoder: ObservationEncoder,
    head: ActionHead,
    *,
    key: PRNGKeyArray,
    hidden_sizes: tuple[int, ...] = (64, 64),
    activation: str = "tanh",
    log_std_init: float = 0.0,
    views: Views = (WHOLE, WHOLE),
) -> Perceptrons:
    """Create the networks. The policy head has gain 0.01, so the initial policy hardly depends on the state."""
    generator = generator_of(key)
    policy, critic = ((view.width(encoder.num_features), *hidden_sizes) for view in views)
    actor = Actor(
        network=initialise_perceptron(generator, (*policy, head.num_outputs), 0.01, activation),
        log_std=jax.device_put(np.full(head.num_scales, log_std_init, np.float32)),
        head=head,
    )
    return Perceptrons(actor, initialise_perceptron(generator, (*critic, 1), 1.0, activation), encoder, views)


def num_parameters(
    encoder: ObservationEncoder, head: ActionHead, hidden_sizes: tuple[int, ...], views: Views = (WHOLE, WHOLE)
) -> int:
    """A lower bound on the number of weights in both networks."""
    ends = zip(views, (head.num_outputs, 1), strict=True)
    layers = ((view.width(encoder.num_features), *hidden_sizes, last) for view, last in ends)
    return sum(i * o for sizes in layers for i, o in pairwise(sizes))
