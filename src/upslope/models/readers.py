"""Networks that map an observation to numbers but are not part of an agent, for exploration bonuses.

They are built from the same parts as the agent's networks, so that they support images, boards and observations with
several parts.
"""

from collections.abc import Sequence

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from upslope.models.composed import Branch, Reading, branch_of
from upslope.models.encoders import ObservationEncoder
from upslope.models.networks import generator_of
from upslope.models.views import WHOLE, Features


class Reader(Reading):
    """A network without memory that maps observations to K numbers. With K = 1, it is a critic (see `value`)."""

    branch: Branch

    def start(self, num: int) -> tuple[()]:
        """No memory."""
        return ()

    def __call__(self, features: Features) -> Float[Array, "B K"]:
        """The K numbers for B prepared observations."""
        return self.of_legible(self.legible(features))

    def of_legible(self, features: Features) -> Float[Array, "B K"]:
        """The K numbers for features that `legible` has converted, which may have been normalised since."""
        return self.branch.after(self.branch.before(features))

    def value(self, features: Features) -> Float[Array, "B"]:
        """V(s) for B prepared observations, if K = 1."""
        return self(features)[..., 0]


def reader(
    encoder: ObservationEncoder,
    outputs: int,
    *,
    key: PRNGKeyArray,
    hidden_sizes: tuple[int, ...] = (64, 64),
    activation: str = "tanh",
    networks: Sequence[tuple[str, str]] = (),
    gain: float = 1.0,
) -> Reader:
    """Create a network. `networks` lists (key, network) for each image, and `gain` is the gain of the last layer."""
    keys = iter(jax.random.split(key, 16))
    branch, _ = branch_of(
        encoder, WHOLE, ((outputs, gain),), keys, generator_of(key),
        hidden_sizes=hidden_sizes, activation=activation, networks=tuple(networks),
    )  # fmt: skip
    return Reader(encoder=encoder, networks=tuple(networks), branch=branch)
