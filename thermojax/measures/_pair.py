"""What a pair of path measures is: paths from either side, each with its log-ratio."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray as Key

from thermojax.distributions import AbstractDistribution

Unnormalised = AbstractDistribution | Callable[[Any], Array]
r"""A density known up to its normaliser: a distribution, or any callable that returns $\ln\gamma(x)$. With a method
``sample(n, key=key)`` it can be drawn from."""


class Walks(NamedTuple):
    """Paths that were drawn from one of the two measures."""

    x0s: Any
    """First states."""
    x1s: Any
    """Last states."""
    log_ratios: Float[Array, " sample"]
    r"""$\ell = \ln dP/dQ$ of each path, with the normaliser of $Q$ left out."""


class AbstractPair(eqx.Module):
    r"""Two path measures on the same paths: $P$, known with its normaliser, and $Q$, known up to it.

    $P$ starts from a first density and moves by forward kernels; $Q$ starts from a last density $\gamma/Z$ and moves by backward ones.
    With $\gamma$ for the last density in $\ell = \ln dP/dQ$, $\langle e^{-\ell}\rangle_P = Z$ and $\langle e^{\ell}\rangle_Q = 1/Z$.
    """

    @abc.abstractmethod
    def forward(self, samples: int, *, key: Key) -> Walks:
        """Independent paths from P, with their log-ratios."""

    @abc.abstractmethod
    def backward(self, samples: int, *, key: Key) -> Walks:
        """Independent paths from Q, with their log-ratios, of the same sign.

        Raises:
            ValueError: if nothing is known that Q can start from.
        """


def log_of(density: Unnormalised) -> Callable[[Any], Array]:
    """The logarithm of a density, normalised or not."""
    return density.log_prob if isinstance(density, AbstractDistribution) else density


def check_normalised(density: Any, name: str) -> None:
    """Raise ``TypeError`` unless a density is a distribution, drawn from and known with its normaliser."""
    if not isinstance(density, AbstractDistribution):
        kind = type(density).__name__
        raise TypeError(f"`{name}` must be a normalised distribution that can be drawn from (see `distributions`), got {kind}.")


def draw(density: Unnormalised, samples: int, *, name: str, key: Key) -> Any:
    """Independent states from a density.

    Raises:
        ValueError: if it cannot be drawn from.
    """
    sample = getattr(density, "sample", None)
    if sample is None:
        kind = type(density).__name__
        raise ValueError(f"`{name}` must have a method sample(n, key=key) for paths that start from it, got {kind}.")
    return sample(samples, key=key)
