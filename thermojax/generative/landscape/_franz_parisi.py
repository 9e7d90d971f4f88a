r"""The Franz-Parisi potential: how likely is denoising to end at a given distance from the datum that was noised?"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import logsumexp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._check import require
from thermojax.distributions import Gaussian, GaussianMixture
from thermojax.dynamics import AbstractNoising
from thermojax.estimators import Estimate, mean
from thermojax.generative.landscape._coupling import coupled_log, draw, prepare, seen_from, spectrum
from thermojax.generative.landscape._potential import normal_nodes

# Samples whose inner integrals are done at once; nodes on half a contour, and where the integrand there is small enough to stop.
BATCH, NODES, DEPTH = 16, 96, 37.0


class FranzParisi(NamedTuple):
    """The Franz-Parisi potential by Monte Carlo, in nats; one entry for each squared distance. All share the same samples."""

    value: Estimate
    """The potential."""
    slope: Estimate
    """Its derivative by the squared distance."""


class FranzParisiCurve(NamedTuple):
    """The Franz-Parisi potential by quadrature, in nats; one entry for each squared distance."""

    value: Float[Array, " distance"]
    """The potential."""
    slope: Float[Array, " distance"]
    """Its derivative by the squared distance."""
    curvature: Float[Array, " distance"]
    """Its second derivative by the squared distance."""


def franz_parisi(
    noising: AbstractNoising,
    data: Gaussian | GaussianMixture,
    qs: ArrayLike,
    t: ArrayLike,
    *,
    samples: int = 10_000,
    key: Key,
) -> FranzParisi:
    r"""The Franz-Parisi potential in any dimension, by Monte Carlo over references and noise:
    $V(q, t) = -\bigl\langle\ln\int dx_0\,p_0(x_0)\,e^{-|x_t - \alpha x_0|^2/2v}\,\delta(q - |x_0 - x^*|^2)\bigr\rangle$ with $x^* \sim p_0$
    and $x_t \mid x^*$ noised to time `t`.

    The integral over the sphere is exact: one over the polar angle where all components are isotropic, else one over complex fields, since
    the potential of one sample and its coupled free energy are a pair of Laplace transforms.

    Args:
        noising: The noising process.
        data: The density of the data.
        qs: Squared distances, positive, shape ``(distance,)``.
        t: A time at which the process has noise.
        samples: Number of references, each with its own noise.
        key: Random key.

    Reference:
        Z. Yu, H. Huang, arXiv:2405.11932 (2024); S. Franz, G. Parisi, J. Phys. I 5, 1401 (1995).
    """
    mixture, qs, t = prepare(noising, data, qs, t)
    require(samples >= 2, "samples", "be at least 2", samples)
    values, slopes = _franz_parisi(noising, mixture, qs, t, samples, key)
    return FranzParisi(jax.vmap(mean)(values.T), jax.vmap(mean)(slopes.T))


def franz_parisi_quadrature(
    noising: AbstractNoising, data: Gaussian | GaussianMixture, qs: ArrayLike, t: ArrayLike, *, nodes: int = 801
) -> FranzParisiCurve:
    r"""The Franz-Parisi potential of data of one dimension, and its first two derivatives.

    In one dimension the reference has two neighbours, $x^* \pm\sqrt q$, each with the Jacobian $1/2\sqrt q$. The averages over reference
    and noise are trapezoidal sums, whose error falls exponentially with `nodes`; late times and narrow components of the data, for which
    $\sqrt{q}\,\alpha/\sqrt v$ or the distance of components in units of their width is above about 20, need more of them.

    Args:
        noising: The noising process.
        data: The density of the data, of one dimension.
        qs: Squared distances, positive, shape ``(distance,)``.
        t: A time at which the process has noise.
        nodes: Nodes for each component of the data, and for the noise.
    """
    mixture, qs, t = prepare(noising, data, qs, t)
    require(mixture.means.shape[1] == 1, "data", "have one dimension", mixture.means.shape[1])
    require(nodes >= 3, "nodes", "be at least 3", nodes)
    return _quadrature(noising, mixture, qs, t, nodes)


@eqx.filter_jit
def _franz_parisi(noising, mixture, qs, t, samples, key):
    references, zs = draw(mixture, samples, key)
    dim, components = mixture.means.shape[1], spectrum(mixture)
    strength = noising.alpha(t) ** 2 / noising.variance(t)
    shell = _shell if mixture.covariances.ndim == 1 else _shell_by_laplace

    def potential(reference, z, q):
        # The mean of |z|^2 is known, and takes the place of its value.
        logs = shell(*seen_from(components, reference, jnp.sqrt(strength) * z), q)
        return 0.5 * (dim + strength * q) - logsumexp(logs + components.log_weights)

    def derivatives(inputs):
        return lax.map(lambda q: jax.jvp(lambda p: potential(inputs[0], inputs[1], p), (q,), (jnp.ones_like(q),)), qs)

    return lax.map(derivatives, (references, zs), batch_size=BATCH)


def _shell(offsets, pulls, variances, q):
    r"""For each component, $\ln\int N(y; \delta, \lambda)\,e^{h\cdot y}\,\delta(q - |y|^2)\,dy$ where $\lambda$ is one number."""
    dim, variances = offsets.shape[1], variances[:, 0]
    forces = pulls + offsets / variances[:, None]
    levels = -0.5 * (jnp.sum(offsets**2, axis=1) + q) / variances - 0.5 * dim * jnp.log(2 * jnp.pi * variances)
    # The shell has the measure q^(d/2 - 1) / 2 times that of the unit sphere.
    return levels + log_sphere(jnp.sqrt(q) * jnp.linalg.norm(forces, axis=1), dim) + (0.5 * dim - 1.0) * jnp.log(q) - math.log(2.0)


def _shell_by_laplace(offsets, pulls, variances, q):
    r"""The same for any $\lambda$: the inverse Laplace transform of the coupled integral $e^{K(x)}$.

    Here $x > 0$ is the field above the one at which that diverges. The contour is the parabola of steepest descent through the saddle of
    $xq + K(x)$, on which the trapezoidal rule converges exponentially.
    """

    def component(offset, pull, variance):
        base = 1.0 / jnp.max(variance)
        level = lambda x: x * q.astype(x.dtype) + coupled_log(offset, pull, variance, 2.0 * x - base.astype(x.dtype))
        place, width, bend = jax.tree.map(lax.stop_gradient, _saddle(offset, pull, variance, base, q))
        top = level(place)
        contour = lambda y: lax.complex(place - bend * y**2, y)
        steady = lax.stop_gradient(top)

        def halve(_, bracket):
            low, high = bracket
            middle = 0.5 * (low + high)
            deep = jnp.real(level(contour(width * jnp.exp(middle)))) < steady - DEPTH
            return jnp.where(deep, low, middle), jnp.where(deep, middle, high)

        _, reach = lax.fori_loop(0, 12, halve, (jnp.zeros_like(q), jnp.full_like(q, 8.0)))
        ys = lax.stop_gradient(width * jnp.exp(reach)) * jnp.linspace(0.0, 1.0, NODES + 1, dtype=q.dtype)
        heights = jax.vmap(level)(contour(ys))
        steps = jnp.exp(heights - top.astype(heights.dtype)) * lax.complex(jnp.ones_like(ys), 2.0 * bend * ys)
        total = jnp.sum(jnp.real(steps)) - 0.5
        return top - 0.5 * base * q + jnp.log(total * ys[1] / jnp.pi)

    return jax.vmap(component)(offsets, pulls, variances)


def _saddle(offset, pull, variance, base, q):
    """The saddle of one component, the width of the integrand there, and the curvature of the steepest descent."""
    centre2 = (offset + variance * pull) ** 2

    def growth(x):
        return 1.0 - variance * base + 2.0 * x * variance

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        g = growth(jnp.exp(middle))
        near = jnp.sum(centre2 / g**2 + variance / g) < q
        return jnp.where(near, low, middle), jnp.where(near, middle, high)

    guess = jnp.log(0.5 * variance.shape[0] / q)
    low, high = lax.fori_loop(0, 40, halve, (guess - 30.0, guess + 30.0))
    place = jnp.exp(0.5 * (low + high))
    g = growth(place)
    second = jnp.sum(2.0 * variance * (2.0 * centre2 / g**3 + variance / g**2))
    third = jnp.sum(8.0 * variance**2 * (3.0 * centre2 / g**4 + variance / g**3))
    return place, 1.0 / jnp.sqrt(second), third / (6.0 * second)


def log_sphere(strengths: Float[Array, " *any"], dim: int) -> Float[Array, " *any"]:
    r"""$\ln\int e^{\kappa\,n\cdot e}\,dn$ over the unit sphere in `dim` dimensions, for any unit vector $e$ and $\kappa \ge 0$.

    With $\cos\theta = \tanh u$ the integrand $e^{\kappa\tanh u}\cosh^{1-d}u$ is smooth on the whole line and about as wide for every
    $\kappa$: the trapezoidal rule around its maximum is accurate to rounding.
    """
    if dim == 1:
        return jnp.logaddexp(strengths, -strengths)
    power = dim - 1.0
    reach = 9.0 + 37.0 / math.sqrt(power)
    nodes = 2 * math.ceil(reach / min(0.13 * math.sqrt(power), 0.6)) + 1
    steps = jnp.linspace(-reach, reach, nodes, dtype=strengths.dtype) / math.sqrt(power)
    # The sum does not depend on where the nodes lie, and so does no derivative.
    top = lax.stop_gradient(jnp.arcsinh(2 * strengths / jnp.sqrt(2 * power * (power + jnp.hypot(power, 2 * strengths)))))
    us = top[..., None] + jnp.broadcast_to(steps, (*strengths.shape, nodes))
    # ln cosh u without overflow; kappa (tanh u - 1) keeps its digits at large kappa.
    log_cosh = jnp.logaddexp(us, -us) - math.log(2.0)
    logs = -2.0 * strengths[..., None] * jax.nn.sigmoid(-2.0 * us) - power * log_cosh
    area = math.log(2.0) + 0.5 * power * math.log(math.pi) - math.lgamma(0.5 * power)
    return logsumexp(logs, axis=-1) + strengths + jnp.log(steps[1] - steps[0]) + area


@eqx.filter_jit
def _quadrature(noising, mixture, qs, t, nodes):
    zs, masses = normal_nodes(nodes, qs.dtype)
    shares = jnp.outer(mixture.weights / jnp.sum(mixture.weights), masses).ravel()
    references = (mixture.means + jnp.outer(jnp.sqrt(mixture.covariances.reshape(-1)), zs)).ravel()
    signal = noising.alpha(t) / jnp.sqrt(noising.variance(t))
    logs = jax.vmap(lambda x: mixture.log_prob(x[None]))

    def value(q):
        root = jnp.sqrt(q)
        right, left, pull = logs(references + root), logs(references - root), signal * root * zs
        cosh = jnp.logaddexp(right[:, None] + pull[None], left[:, None] - pull[None])
        return 0.5 + 0.5 * signal**2 * q + math.log(2.0) + jnp.log(root) - shares @ (cosh @ masses)

    def derivatives(q):
        once = lambda y: jax.jvp(value, (y,), (jnp.ones_like(y),))
        (found, slope), (_, bend) = jax.jvp(once, (q,), (jnp.ones_like(q),))
        return FranzParisiCurve(found, slope, bend)

    return lax.map(derivatives, qs)
