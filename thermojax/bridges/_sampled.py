r"""A bridge between samples: entropic transport of the two clouds, made a process.

With the transition $N(\alpha x, v)$ of the reference from $t_0$ to $t_1$, the static problem is entropic transport with the cost
$\tfrac12|y - \alpha x|^2$ and the regularisation $\epsilon = v$; for a Brownian reference $\epsilon = \sigma^2(t_1 - t_0)$. Sinkhorn's
iteration (OTT-JAX) gives weights $e^{g_j/\epsilon}$ of the samples $y_j$, and the reference carries them back in time as a mixture:
$h_t(x) = \sum_j e^{g_j/\epsilon}N(y_j; bx, w)$, up to a constant, with the transition $(b, w)$ from $t$ to $t_1$.

Reference:
    C. Léonard, A survey of the Schrödinger problem and some of its connections with optimal transport, arXiv:1308.0215 (2013),
    theorem 2.4 and proposition 2.3, for potentials, coupling and process.
"""

import importlib
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jax.scipy.special import logsumexp
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray as Key

from thermojax._array import as_scalar, Scalar
from thermojax._check import check_times, ensure, library_of, require
from thermojax.bridges._bridge import AbstractBridge, check_interval, inside, pin, Samples
from thermojax.dynamics import AbstractNoising
from thermojax.estimators import Estimate
from thermojax.phase import check_configurations


class MixtureGuide(eqx.Module):
    r"""The guide $\nabla\ln h_t$ to weighted samples, $\frac bw\,(\sum_j p_j y_j - bx)$ with the share $p_j$ of each in $h_t(x)$."""

    reference: AbstractNoising
    """The reference process."""
    t1: Scalar
    """The end of the interval."""
    ys: Float[Array, "sample dim"]
    """The samples."""
    log_weights: Float[Array, " sample"]
    """The logarithms of their weights."""
    blur: Scalar
    """The variance that is added to $w$."""

    def __call__(self, t: Scalar, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """The guide at one place."""
        b, w = self.reference.transition(t, self.t1)
        return b / (w + self.blur) * (jax.nn.softmax(self._logs(b, w, x)) @ self.ys - b * x)

    def log_potential(self, t: Scalar, x: Float[Array, " dim"]) -> Scalar:
        r"""$\ln h_t(x)$."""
        b, w = self.reference.transition(t, self.t1)
        return logsumexp(self._logs(b, w, x)) - 0.5 * x.shape[0] * jnp.log(2 * jnp.pi * (w + self.blur))

    def _logs(self, b, w, x):
        return self.log_weights - 0.5 * jnp.sum((self.ys - b * x[None]) ** 2, axis=1) / (w + self.blur)


class ReverseMixtureGuide(eqx.Module):
    r"""The guide $\nabla\ln\hat h_t$ back to weighted samples, $\frac1q\,(a\sum_i p_i x_i - x)$; $(a, q)$ is the transition from $t_0$."""

    reference: AbstractNoising
    """The reference process."""
    t0: Scalar
    """The beginning of the interval."""
    xs: Float[Array, "sample dim"]
    """The samples."""
    log_weights: Float[Array, " sample"]
    """The logarithms of their weights."""

    def __call__(self, t: Scalar, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """The guide at one place."""
        a, q = self.reference.transition(self.t0, t)
        shares = jax.nn.softmax(self.log_weights - 0.5 * jnp.sum((a * self.xs - x[None]) ** 2, axis=1) / q)
        return (a * (shares @ self.xs) - x) / q


class SampledBridge(AbstractBridge):
    r"""The Schrödinger bridge between two clouds of samples; see `sampled_bridge`, which makes it.

    Without `blur` it ends in the samples themselves: its guide grows as $1/\sqrt w$ towards the end, and the path KL to the reference
    without bound as the time step falls. With one the guide is bounded and the path KL finite.
    """

    initial: Samples
    """The first samples."""
    final: Samples
    """The last samples. With a `blur` the process ends near them, see `sampled_bridge`."""
    reference: AbstractNoising
    """The reference process."""
    log_weights0: Float[Array, " sample"]
    r"""$f_i/\epsilon$: the coupling of two samples is $\exp[(f_i + g_j - \tfrac12|y_j - \alpha x_i|^2)/\epsilon]$."""
    log_weights1: Float[Array, " other"]
    r"""$g_j/\epsilon$."""
    t0: Scalar
    """The beginning of the interval."""
    t1: Scalar
    """Its end."""
    blur: Scalar
    """The variance by which each of the last samples is blurred."""
    entropic_cost: Estimate
    r"""$\langle\tfrac12|y - \alpha x|^2\rangle + \epsilon\,KL(\pi\|p_0\otimes p_1)$. The error bar is that of the samples, from the spread
    of the potentials; not trustworthy if Sinkhorn's iteration did not converge. The bias of finite samples is $O(1/n)$."""
    converged: Bool[Array, ""]
    """Whether Sinkhorn's iteration converged."""

    @property
    def guide(self) -> MixtureGuide:
        """See `AbstractBridge`."""
        return MixtureGuide(self.reference, self.t1, self.final.xs, self.log_weights1, self.blur)

    @property
    def reverse_guide(self) -> ReverseMixtureGuide:
        """See `AbstractBridge`."""
        return ReverseMixtureGuide(self.reference, self.t0, self.initial.xs, self.log_weights0)

    def log_ratio(self, x0: Float[Array, " dim"], x1: Float[Array, " dim"]) -> Scalar:
        r"""$\ln dP/dR = \ln h_{t_1}(x_1) - \ln h_{t_0}(x_0)$ of a path from `x0` to `x1`, a function of its ends alone.

        Raises:
            ValueError: if there is no `blur`: a path that ends in a sample has no density.
        """
        xp = library_of(self.blur)
        x1 = ensure(x1, xp.asarray(self.blur) > 0, "blur", "be positive for a log-ratio", self.blur)
        return self.guide.log_potential(self.t1, x1) - self.guide.log_potential(self.t0, x0)

    def pairs(self, n: int, *, key: Key) -> tuple[Float[Array, "draw dim"], Float[Array, "draw dim"]]:
        """Pairs of a first and a last sample, drawn from the coupling. Memory grows as `n` times the number of last samples."""
        return _pairs(self, n, key)

    def paths(self, ts: ArrayLike, n: int, *, key: Key) -> Float[Array, "time draw dim"]:
        """Paths at the times `ts`, with no error from a time step: pairs from the coupling, and the pinned reference between them.

        Raises:
            ValueError: if a time is outside of the interval.
        """
        ts = inside(self, check_times(jnp.asarray(ts, self.t1.dtype)), "ts")
        return _paths(self, ts, n, key)


def sampled_bridge(
    x0s: ArrayLike,
    x1s: ArrayLike,
    reference: AbstractNoising,
    *,
    t0: ArrayLike = 0.0,
    t1: ArrayLike = 1.0,
    blur: ArrayLike = 0.0,
    threshold: float = 1e-3,
    iterations: int = 2000,
) -> SampledBridge:
    r"""The Schrödinger bridge between two clouds of samples, by Sinkhorn's iteration. Needs the package ott-jax.

    Memory grows as the product of the numbers of samples. With a `blur` $\delta^2$ the problem is solved for last samples that carry noise
    of that variance: $\epsilon = v + \delta^2$, and a path from $x_i$ towards $y_j$ ends at
    $N((\delta^2\alpha x_i + v y_j)/\epsilon, v\delta^2/\epsilon)$. For a Brownian reference it is the bridge that would reach the samples a
    time $\delta^2/\sigma^2$ later.

    Args:
        x0s: Samples at `t0`, shape ``(sample, dim)``.
        x1s: Samples at `t1`, shape ``(other, dim)``.
        reference: The reference process, of one noise for all coordinates.
        t0: The beginning of the interval.
        t1: Its end.
        blur: The variance by which the last samples are blurred.
        threshold: The error of the first marginal, as a sum of absolute values, at which the iteration stops.
        iterations: Iterations, at most.

    Raises:
        ModuleNotFoundError: if ott-jax is missing.
        TypeError, ValueError: if shapes or numbers have no meaning.
    """
    x0s, x1s = check_configurations(x0s), check_configurations(x1s, "x1s")
    require(x0s.shape[1] == x1s.shape[1], "x1s", f"have the dimension of `x0s`, {x0s.shape[1]}", x1s.shape[1])
    smallest = min(x0s.shape[0], x1s.shape[0])
    require(smallest >= 2, "x0s", "hold at least two samples, like `x1s`", smallest)
    t0, t1 = as_scalar(t0).astype(x0s.dtype), as_scalar(t1).astype(x0s.dtype)
    check_interval(reference, t0, t1)
    blur = as_scalar(blur).astype(x0s.dtype)
    blur = ensure(blur, library_of(blur).asarray(blur) >= 0, "blur", "not be negative", blur)
    require(threshold > 0, "threshold", "be positive", threshold)
    require(iterations >= 1, "iterations", "be at least 1", iterations)
    _ott()
    return _solved(x0s, x1s.astype(x0s.dtype), reference, t0, t1, blur, threshold, iterations)


@eqx.filter_jit
def _solved(x0s, x1s, reference, t0, t1, blur, threshold, iterations):
    alpha, v = reference.transition(t0, t1)
    epsilon = v + blur
    pointcloud, linear = _ott()
    # OTT is not written for strict promotion; its cost is |x - y|^2, twice ours.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        geometry = pointcloud.PointCloud(alpha * x0s, x1s, epsilon=2 * epsilon)
        found = linear.solve(geometry, threshold=threshold, max_iterations=iterations)
    g = lax.stop_gradient(found.g) / (2 * epsilon)
    # One more half step in our own form: rows sum to one exactly, so that the process starts from the first samples.
    h = MixtureGuide(reference, t1, x1s, g.astype(x0s.dtype), blur)
    norm = 0.5 * x0s.shape[1] * jnp.log(2 * jnp.pi * epsilon)
    counts = jnp.asarray(x0s.shape[0], x0s.dtype), jnp.asarray(x1s.shape[0], x0s.dtype)
    f = -jax.vmap(lambda x: h.log_potential(t0, x) + norm)(x0s) - jnp.log(counts[0])
    value = epsilon * (jnp.mean(f) + jnp.log(counts[0]) + jnp.mean(h.log_weights) + jnp.log(counts[1]))
    variance = jnp.var(f, ddof=1) / counts[0] + jnp.var(h.log_weights, ddof=1) / counts[1]
    converged, count = jnp.asarray(found.converged), jnp.minimum(*counts)
    cost = Estimate(value, epsilon * jnp.sqrt(variance), count, converged, count, jnp.zeros_like(count))
    return SampledBridge(Samples(x0s), Samples(x1s), reference, f, h.log_weights, t0, t1, blur, cost, converged)


@eqx.filter_jit
def _pairs(bridge, n, key):
    first_key, last_key = jr.split(key)
    alpha, v = bridge.reference.transition(bridge.t0, bridge.t1)
    # Every first sample as often as every other, up to one: less noise than independent draws.
    size = bridge.initial.xs.shape[0]
    shuffled = jr.permutation(first_key, size)
    x0s = bridge.initial.xs[shuffled[jnp.arange(n) % size]]

    def draw(x, k):
        away = jnp.sum((bridge.final.xs - alpha * x[None]) ** 2, axis=1)
        return jr.categorical(k, bridge.log_weights1 - 0.5 * away / (v + bridge.blur))

    return x0s, bridge.final.xs[jax.vmap(draw)(x0s, jr.split(last_key, n))]


@eqx.filter_jit
def _paths(bridge, ts, n, key):
    pair_key, noise_key = jr.split(key)
    x0s, ys = _pairs(bridge, n, pair_key)

    def move(state, inputs):
        xs, t = state
        later, step_key = inputs
        r, s, tau = pin(bridge.reference, t, later, bridge.t1, bridge.blur)
        spread = jnp.sqrt(jnp.maximum(tau, 0.0))
        moved = r * xs + s * ys + spread * jr.normal(step_key, xs.shape, xs.dtype)
        # At the beginning itself nothing has moved yet.
        moved = jnp.where(later > t, moved, xs)
        return (moved, later), moved

    return lax.scan(move, (x0s, bridge.t0), (ts, jr.split(noise_key, ts.shape[0])))[1]


def _ott() -> Any:
    try:
        with warnings.catch_warnings():
            # A package that OTT imports says on import that it is no longer maintained.
            warnings.filterwarnings("ignore", "JAXopt is no longer maintained", DeprecationWarning)
            return importlib.import_module("ott.geometry.pointcloud"), importlib.import_module("ott.solvers.linear")
    except ImportError as missing:
        raise ModuleNotFoundError("`sampled_bridge` needs OTT-JAX; install the extra `thermojax[ott]`.") from missing
