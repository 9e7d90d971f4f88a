"""Protocols as series, and as a network."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import require
from thermojax.protocols._knots import check_rows, combine
from thermojax.protocols._protocol import AbstractFiniteTime, AbstractModified, between, ends_of, finite_time, inside_values, Protocol


class Fourier(AbstractFiniteTime):
    r"""A straight line between two free inner ends and a sine series, $\lambda(s) = a + (b - a)s + \sum_k c_k\sin k\pi s$."""

    start: Array = eqx.field(converter=as_float)
    """The control before the protocol, a number or an array."""
    ends: Float[Array, "2 ..."] = eqx.field(converter=as_float)
    """The controls just inside both ends, $a$ and $b$, shape ``(2, *shape of start)``."""
    coefficients: Float[Array, "mode ..."] = eqx.field(converter=as_float)
    """$c_1, c_2, \\ldots$, shape ``(mode, *shape of start)``."""
    stop: Array = eqx.field(converter=as_float)
    """The control after the protocol."""
    duration: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """How long the protocol takes."""

    def __check_init__(self):
        check_rows(self.coefficients, self.start, "coefficients", "mode", 1)
        shape = (2, *self.start.shape)
        require(self.ends.shape == shape, "ends", f"have shape {shape}", f"shape {self.ends.shape}")

    @classmethod
    def like(cls, protocol: Protocol, *, modes: int = 8, duration: ArrayLike | None = None) -> "Fourier":
        """The series with the jumps of `protocol` that meets it at `modes` equal times between."""
        require(modes >= 1, "modes", "be at least 1", modes)
        start, stop, duration = ends_of(protocol, duration)
        values = inside_values(protocol, jnp.linspace(0.0, 1.0, modes + 2, dtype=duration.dtype), duration)
        ends, k = values[jnp.asarray([0, -1])], np.arange(1, modes + 1)
        sines = np.sin(np.pi * np.outer(k, k) / (modes + 1)) * 2 / (modes + 1)
        off_line = values[1:-1] - jnp.linspace(ends[0], ends[1], modes + 2)[1:-1]
        return cls(start, ends, combine(jnp.asarray(sines, off_line.dtype), off_line), stop, duration)

    def inside(self, s):
        k = jnp.arange(1, self.coefficients.shape[0] + 1, dtype=self.coefficients.dtype)
        return between(self.ends[0], self.ends[1], s) + combine(jnp.sin(jnp.pi * k * s), self.coefficients)

    @property
    def free(self) -> Any:
        """The inner ends and the coefficients."""
        return self.ends, self.coefficients


class Chebyshev(AbstractFiniteTime):
    r"""A polynomial of the share of the duration, $\lambda(s) = \sum_n c_n T_n(2s - 1)$, with free jumps at both ends."""

    start: Array = eqx.field(converter=as_float)
    """The control before the protocol, a number or an array."""
    coefficients: Float[Array, "order ..."] = eqx.field(converter=as_float)
    """$c_0, c_1, \\ldots$, shape ``(order, *shape of start)``, at least two."""
    stop: Array = eqx.field(converter=as_float)
    """The control after the protocol."""
    duration: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """How long the protocol takes."""

    def __check_init__(self):
        check_rows(self.coefficients, self.start, "coefficients", "order", 2)

    @classmethod
    def like(cls, protocol: Protocol, *, degree: int = 8, duration: ArrayLike | None = None) -> "Chebyshev":
        """The polynomial with the jumps of `protocol` that meets it at the extrema of $T_n$, ends included."""
        require(degree >= 1, "degree", "be at least 1", degree)
        start, stop, duration = ends_of(protocol, duration)
        nodes = -np.cos(np.pi * np.arange(degree + 1) / degree)
        values = inside_values(protocol, jnp.asarray((nodes + 1) / 2, duration.dtype), duration)
        inverse = np.linalg.inv(np.polynomial.chebyshev.chebvander(nodes, degree))
        return cls(start, combine(jnp.asarray(inverse, values.dtype), values), stop, duration)

    def inside(self, s):
        u = 2.0 * s - 1.0

        def clenshaw(later, c):
            return (c + 2.0 * u * later[0] - later[1], later[0]), None

        nothing = jnp.zeros_like(self.coefficients[0])
        (b1, b2), _ = jax.lax.scan(clenshaw, (nothing, nothing), self.coefficients[1:], reverse=True)
        return self.coefficients[0] + u * b1 - b2

    @property
    def free(self) -> Any:
        """The coefficients."""
        return self.coefficients


class Neural(AbstractModified):
    """Another protocol plus a small network of the share of the duration, with free jumps at both ends."""

    protocol: AbstractFiniteTime
    """What the network is added to; it stays as it is."""
    network: eqx.nn.MLP
    """From one number, the share of the duration scaled to [-1, 1], to as many as the control has."""

    def __init__(self, protocol: Protocol, network: eqx.nn.MLP):
        """A protocol of finite duration, and what is added to it."""
        self.protocol = finite_time(protocol)
        sizes, rule = (network.in_size, network.out_size), f"take vectors of length 1 to length {self.start.size}"
        require(sizes == (1, self.start.size), "network", rule, f"lengths {sizes}")
        self.network = network

    @classmethod
    def like(cls, protocol: Protocol, *, width: int = 16, depth: int = 2, key: Key) -> "Neural":
        """`protocol` itself: the last layer of the network starts at zero.

        Args:
            protocol: What the network is added to, of finite duration.
            width: Units of a hidden layer.
            depth: Number of hidden layers.
            key: Random key of the other weights.
        """
        network = eqx.nn.MLP(1, finite_time(protocol).start.size, width, depth, jnp.tanh, key=key)
        last = lambda n: (n.layers[-1].weight, n.layers[-1].bias)
        return cls(protocol, eqx.tree_at(last, network, replace_fn=jnp.zeros_like))

    def inside(self, s):
        correction = self.network(jnp.reshape(2.0 * s - 1.0, (1,)))
        return self.protocol.inside(s) + jnp.reshape(correction, self.start.shape)

    @property
    def free(self) -> Any:
        """The network."""
        return self.network
