r"""Losses of controlled samplers: a divergence of the pair, or a balance that must hold along every path.

`ReverseKL` differentiates through its paths. The others read paths that are held fixed, so that these may come from anywhere: from P, from
P with more noise (`stretch`), from known states of the target run backward (`ends`, half of the paths). All are zero
where P = Q, but for the constant $\ln Z$ of the first.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray as Key

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import require
from thermojax.phase import position_of
from thermojax.samplers._abstract import AbstractSampler, Trace, walk, walk_back
from thermojax.samplers._underdamped import UnderdampedSampler


class ReverseKL(eqx.Module):
    r"""$\langle\ell\rangle_P = KL(P\|Q) - \ln Z$, minus the ELBO, with the gradient through the paths."""

    samples: int = eqx.field(static=True, default=128)
    """Paths in a batch."""

    def __check_init__(self):
        require(self.samples >= 1, "samples", "be at least 1", self.samples)

    def __call__(self, sampler: AbstractSampler, key: Key) -> Scalar:
        """The mean over one batch."""
        return jnp.mean(walk(sampler, self.samples, key=key).log_ratios)


class AbstractBalance(eqx.Module):
    """A loss on paths that are held fixed."""

    samples: eqx.AbstractVar[int]
    stretch: eqx.AbstractVar[Scalar]
    ends: eqx.AbstractVar[Float[Array, "state dim"] | None]

    @abc.abstractmethod
    def of_trace(self, sampler: AbstractSampler, trace: Trace) -> Scalar:
        """The loss on given paths."""

    def __call__(self, sampler: AbstractSampler, key: Key) -> Scalar:
        """The loss on one batch."""
        ahead_key, pick_key, speed_key, back_key = jr.split(key, 4)
        known = self.samples // 2 if self.ends is not None else 0
        trace = walk(sampler, self.samples - known, held=True, stretch=self.stretch, key=ahead_key)
        if self.ends is None:
            return self.of_trace(sampler, trace)
        dtype = position_of(trace.x0s).dtype
        picks = self.ends[jr.randint(pick_key, (known,), 0, self.ends.shape[0])].astype(dtype)
        back = walk_back(sampler, sampler.at_rest(picks, speed_key), key=back_key)
        return self.of_trace(sampler, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), trace, back))


class LogVariance(AbstractBalance):
    r"""$\mathrm{Var}\,\ell$ over the paths: it knows no $Z$, and its gradient vanishes on every batch where $P = Q$.

    Reference:
        L. Richter, J. Berner, arXiv:2307.01198 (2024).
    """

    samples: int = eqx.field(static=True, default=128)
    """Paths in a batch."""
    stretch: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """A factor of the noise of the paths."""
    ends: Float[Array, "state dim"] | None = eqx.field(converter=lambda a: None if a is None else as_float(a), default=None)
    """States of the target from which half of the paths start backward; none if omitted."""

    def __check_init__(self):
        _check(self, 2)

    def of_trace(self, sampler, trace):
        return jnp.var(trace.log_ratios, ddof=1)


class TrajectoryBalance(AbstractBalance):
    r"""$\langle(\ell + \ln Z_\theta)^2\rangle$ with the sampler's own `log_z`, which is learned along.

    Reference:
        N. Malkin et al., arXiv:2201.13259 (2022), eq. (14).
    """

    samples: int = eqx.field(static=True, default=128)
    """Paths in a batch."""
    stretch: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """A factor of the noise of the paths."""
    ends: Float[Array, "state dim"] | None = eqx.field(converter=lambda a: None if a is None else as_float(a), default=None)
    """States of the target from which half of the paths start backward; none if omitted."""

    def __check_init__(self):
        _check(self, 1)

    def of_trace(self, sampler, trace):
        return jnp.mean((trace.log_ratios + sampler.log_z) ** 2)


class SubTrajectoryBalance(AbstractBalance):
    r"""The same for all stretches of a path, with the model's flow $F_k(x)$ at their ends, weighted by $\lambda^{n - m}$:
    $\ln F_m + \sum_{k=m}^{n-1}\ln K_k/L_k - \ln F_n$. One number per pair of levels: memory grows as the square of the steps.

    Reference:
        K. Madan et al., arXiv:2209.12782 (2023), eq. (8).
    """

    samples: int = eqx.field(static=True, default=128)
    """Paths in a batch."""
    decay: Scalar = eqx.field(converter=as_scalar, default=0.9)
    r"""$\lambda$."""
    stretch: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """A factor of the noise of the paths."""
    ends: Float[Array, "state dim"] | None = eqx.field(converter=lambda a: None if a is None else as_float(a), default=None)
    """States of the target from which half of the paths start backward; none if omitted."""

    def __check_init__(self):
        _check(self, 1)

    def of_trace(self, sampler, trace):
        sums = jnp.pad(jnp.cumsum(trace.ratios, axis=1), ((0, 0), (1, 0)))
        # The balance of a stretch is a difference of one number per level.
        levels = trace.flows - sums
        gaps = levels[:, :, None] - levels[:, None, :]
        places = jnp.arange(levels.shape[1])
        length = places[None, :] - places[:, None]
        decay, size = self.decay.astype(levels.dtype), jnp.abs(length).astype(levels.dtype)
        weights = jnp.where(length > 0, decay**size, 0.0)
        return jnp.mean(jnp.sum(weights[None] * gaps**2, axis=(1, 2))) / jnp.sum(weights)


class DetailedBalance(AbstractBalance):
    r"""The balance of single steps, $\langle\sum_k(\ln F_k + \ln K_k - \ln L_k - \ln F_{k+1})^2\rangle$.

    Reference:
        Y. Bengio et al., J. Mach. Learn. Res. 24, 210 (2023), sec. 3.
    """

    samples: int = eqx.field(static=True, default=128)
    """Paths in a batch."""
    stretch: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """A factor of the noise of the paths."""
    ends: Float[Array, "state dim"] | None = eqx.field(converter=lambda a: None if a is None else as_float(a), default=None)
    """States of the target from which half of the paths start backward; none if omitted."""

    def __check_init__(self):
        _check(self, 1)

    def of_trace(self, sampler, trace):
        gaps = trace.flows[:, :-1] + trace.ratios - trace.flows[:, 1:]
        return jnp.mean(jnp.sum(gaps**2, axis=1))


def learned(sampler: AbstractSampler) -> Any:
    """What training changes, for ``fit(..., where=learned)``: all but the target."""
    network = (sampler.network.body, sampler.network.gain)
    leaves = (*network, sampler.log_steps, sampler.tempering, sampler.prior_mean, sampler.prior_log_scale, sampler.log_z)
    return (*leaves, sampler.log_damping) if isinstance(sampler, UnderdampedSampler) else leaves


@eqx.filter_jit
def replay(sampler: AbstractSampler, samples: int, *, key: Key) -> Float[Array, "sample dim"]:
    r"""Last states of paths of P, drawn again with their weights $e^{-\ell}$: states to start from backward, as `ends` of a loss.

    Paths that are not finite have no weight.
    """
    walk_key, pick_key = jr.split(key)
    trace = walk(sampler, samples, key=walk_key)
    logs = jnp.where(jnp.isfinite(trace.log_ratios), -trace.log_ratios, -jnp.inf)
    return position_of(trace.x1s)[jr.categorical(pick_key, logs, shape=(samples,))]


def _check(loss, least):
    require(loss.samples >= least, "samples", f"be at least {least}", loss.samples)
    if loss.ends is not None:
        require(loss.ends.ndim == 2, "ends", "have shape (state, dim)", f"shape {loss.ends.shape}")
        require(loss.samples >= 2, "samples", "be at least 2 with `ends`, which take half of them", loss.samples)
