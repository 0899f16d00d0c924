"""Memory cells, which keep information from step to step.

A cell has two methods: `start(num)` returns the memory at the start of an episode, and `over_time` runs the cell over
[T, N] inputs and restarts it where an episode begins. The weights are those of Equinox's layers, run over time by
`recurrences.py`; only the linear recurrence is implemented here.
"""

from abc import abstractmethod
from typing import Any

import equinox
import jax
import jax.numpy as jnp
import numpy as np
from equinox.nn import GRUCell, LSTMCell
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from upslope.models.networks import orthogonal
from upslope.models.recurrences import gated_over_time


class Cell(equinox.Module):
    """A memory of `size` units."""

    @property
    @abstractmethod
    def size(self) -> int:
        """H, the number of outputs."""

    @abstractmethod
    def start(self, num: int) -> Any:
        """The memory of `num` columns at the start of an episode."""

    @abstractmethod
    def over_time(
        self, x: Float[Array, "T N D"], carry: Any, fresh: Bool[Array, "T N"]
    ) -> tuple[Float[Array, "T N H"], Any]:
        """Outputs [T, N, H], and the carry after each step [T, N, …]. The carry restarts where `fresh` is true."""

    def once(self, x: Float[Array, "N D"], carry: Any) -> tuple[Float[Array, "N H"], Any]:
        """Compute one step of N columns. Their carry has already been reset where an episode begins."""
        outputs, after = self.over_time(x[None], carry, jnp.zeros((1, x.shape[0]), bool))
        return outputs[0], jax.tree.map(lambda c: c[0], after)


class Gated(Cell):
    """A GRU (Cho et al. 2014) or an LSTM (Hochreiter and Schmidhuber 1997)."""

    layer: GRUCell | LSTMCell

    @property
    def size(self) -> int:
        return self.layer.hidden_size

    def start(self, num: int) -> Any:
        zeros = jnp.zeros((num, self.size))
        return (zeros, zeros) if isinstance(self.layer, LSTMCell) else zeros

    def over_time(
        self, x: Float[Array, "T N D"], carry: Any, fresh: Bool[Array, "T N"]
    ) -> tuple[Float[Array, "T N H"], Any]:
        after = gated_over_time(self.layer, x, carry, fresh)
        return (after[0] if isinstance(self.layer, LSTMCell) else after), after


class LinearRecurrence(Cell):
    """The linear recurrent unit, h_t = λ ⊙ h_{t−1} + γ ⊙ B x_t and y_t = Re(C h_t) + D x_t (Orvieto et al. 2023).

    λ is complex with |λ| < 1, and γ = √(1 − |λ|²). A linear recurrence is associative, so a scan of depth log T
    computes T steps. The nonlinearity comes from the surrounding layers.
    """

    nu: Float[Array, "H"]
    """|λ| = exp(−exp(ν))."""
    theta: Float[Array, "H"]
    """The phase of λ is exp(θ)."""
    inward: Float[Array, "2 H D"]
    """The real and imaginary parts of B."""
    outward: Float[Array, "2 H H"]
    """The real and imaginary parts of C."""
    skip: Float[Array, "H D"]
    """The matrix D."""

    @property
    def size(self) -> int:
        return self.nu.shape[0]

    def start(self, num: int) -> Any:
        zeros = jnp.zeros((num, self.size))
        return zeros, zeros  # the real and imaginary parts, because files hold only real numbers

    def over_time(
        self, x: Float[Array, "T N D"], carry: Any, fresh: Bool[Array, "T N"]
    ) -> tuple[Float[Array, "T N H"], Any]:
        decay = jnp.exp(-jnp.exp(self.nu))
        rate = jax.lax.complex(decay * jnp.cos(jnp.exp(self.theta)), decay * jnp.sin(jnp.exp(self.theta)))
        gain = jnp.sqrt(1.0 - decay**2)
        real, imaginary = (gain * (x @ part.T) for part in self.inward)
        kept = jnp.where(fresh[..., None], 0.0, rate)  # nothing crosses the start of an episode
        before = jax.lax.complex(*carry)

        def joined(first: Any, second: Any) -> Any:
            return first[0] * second[0], second[0] * first[1] + second[1]

        factor, states = jax.lax.associative_scan(joined, (kept, jax.lax.complex(real, imaginary)))
        states = states + factor * before
        outputs = states.real @ self.outward[0].T - states.imag @ self.outward[1].T + x @ self.skip.T
        return outputs, (states.real, states.imag)


def gated(kind: Any, inputs: int, size: int, key: PRNGKeyArray, draw: np.random.Generator) -> Gated:
    """A GRU or LSTM with orthogonal recurrent weights for each gate; an LSTM's forget gate starts open (bias 1)."""
    layer = kind(inputs, size, key=key)
    gates = layer.weight_hh.shape[0] // size
    recurrent = np.concatenate([orthogonal(draw, size, size, 1.0) for _ in range(gates)])
    bias = np.zeros(layer.bias.shape, np.float32)
    if isinstance(layer, LSTMCell):
        bias[size : 2 * size] = 1.0  # the order of the gates is input, forget, cell, output
    where = lambda made: (made.weight_hh, made.bias)  # noqa: E731
    return Gated(equinox.tree_at(where, layer, jax.device_put((recurrent, bias))))


SLOWEST, FASTEST, LARGEST_PHASE = 0.999, 0.9, np.pi / 10
"""Initially, λ is drawn uniformly over the area between the radii `FASTEST` and `SLOWEST`, which gives time constants
of 10 to 1,000 steps. The phases are small."""


def linear_recurrence(inputs: int, size: int, key: PRNGKeyArray, draw: np.random.Generator) -> LinearRecurrence:
    """A new linear recurrence, initialised as in Orvieto et al. 2023."""
    square = draw.uniform(FASTEST**2, SLOWEST**2, size)
    phase = draw.uniform(1e-3, LARGEST_PHASE, size)
    parts = (
        np.log(-0.5 * np.log(square)),
        np.log(phase),
        draw.standard_normal((2, size, inputs)) / np.sqrt(2 * inputs),
        draw.standard_normal((2, size, size)) / np.sqrt(size),
        draw.standard_normal((size, inputs)) / np.sqrt(inputs),
    )
    return LinearRecurrence(*jax.device_put([part.astype(np.float32) for part in parts]))


def cell_of(memory: str, inputs: int, size: int, key: PRNGKeyArray, draw: np.random.Generator) -> Cell:
    """A new cell of the named kind: gru, lstm or lru."""
    if memory == "lru":
        return linear_recurrence(inputs, size, key, draw)
    return gated({"gru": GRUCell, "lstm": LSTMCell}[memory], inputs, size, key, draw)
