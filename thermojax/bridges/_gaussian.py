"""The Schrödinger bridge between two Gaussians, in closed form."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax.scipy.linalg import solve
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import as_scalar, Scalar
from thermojax._check import require
from thermojax._symmetric import square_root
from thermojax.bridges._bridge import AbstractBridge, check_interval, Guided, inside, pin
from thermojax.distributions import Gaussian
from thermojax.dynamics import AbstractNoising
from thermojax.steppers import AbstractGaussianStepper

Matrix = Float[Array, "dim dim"]


class LinearGuide(eqx.Module):
    r"""The guide of a Gaussian bridge, linear in $x$.

    With the transitions $(\alpha, v)$ from $t_0$ to $t_1$ and $(b, w)$ from $t$ to $t_1$ and $\omega = w/v$ it is
    $\frac bv M^{-1}[c - b\,(1 - W)\,x]$, where $M = (1 - \omega)W + \omega$ for the forward direction and $M = \omega W + 1 - \omega$ for
    the backward one. $M$ is positive definite in the whole interval, ends included.
    """

    reference: AbstractNoising
    """The reference process."""
    t0: Scalar
    """The beginning of the interval."""
    t1: Scalar
    """Its end."""
    width: Matrix
    """$W$: the covariance of one end given the other, in units of the reference's."""
    pull: Float[Array, " dim"]
    """$c$."""
    backward: bool = eqx.field(static=True)
    """Whether it is the guide of the backward direction."""

    def __call__(self, t: Scalar, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """The guide at one place."""
        _, v = self.reference.transition(self.t0, self.t1)
        b, _ = self.reference.transition(t, self.t1)
        one = jnp.eye(x.shape[0], dtype=x.dtype)
        rest = self.pull - b * (x - self.width @ x)
        # One inverse for all particles, which differ in the right-hand side alone.
        return b / v * (solve(self.mixed(t, one), one, assume_a="pos") @ rest)

    def mixed(self, t: Scalar, one: Matrix) -> Matrix:
        """The matrix $M$ at time t."""
        _, v = self.reference.transition(self.t0, self.t1)
        _, w = self.reference.transition(t, self.t1)
        share = w / v
        return share * self.width + (1 - share) * one if self.backward else (1 - share) * self.width + share * one


class GaussianBridge(AbstractBridge):
    r"""The Schrödinger bridge between $N(m_0, C_0)$ and $N(m_1, C_1)$: of all processes with these ends the one nearest to the reference,
    $\min KL(P\|R)$.

    With $A = \alpha^2C_0$ and $D = (4A^{1/2}C_1A^{1/2} + v^2)^{1/2}$ the ends are jointly Gaussian, of cross-covariance
    $\mathrm{Cov}(x_{t_0}, x_{t_1}) = \frac{1}{2\alpha}(A^{1/2}DA^{-1/2} - v)$. Everything is evaluated in a form that loses no digits where
    $v$ is small (optimal transport) or large (independent ends).

    References:
        C. Bunne, Y.-P. Hsieh, M. Cuturi, A. Krause, The Schrödinger bridge between Gaussian measures has a closed form, AISTATS (2023),
        theorems 1 and 3. H. Janati, B. Muzellec, G. Peyré, M. Cuturi, Entropic optimal transport between unbalanced Gaussian measures has
        a closed form, NeurIPS (2020), theorem 1.
    """

    initial: Gaussian
    """The first density."""
    final: Gaussian
    """The last density."""
    reference: AbstractNoising
    """The reference, a process of one noise for all coordinates: `Brownian`, `dynamics.OrnsteinUhlenbeck`, or any other noising."""
    t0: Scalar = eqx.field(converter=as_scalar, default=0.0)
    """The beginning of the interval."""
    t1: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """Its end."""

    def __check_init__(self):
        for name, density in (("initial", self.initial), ("final", self.final)):
            if not isinstance(density, Gaussian):
                raise TypeError(f"`{name}` must be a `Gaussian`, got {type(density).__name__}.")
        dim, other = self.initial.mean.shape[0], self.final.mean.shape[0]
        require(dim == other, "final", f"have the dimension of `initial`, {dim}", other)
        check_interval(self.reference, self.t0, self.t1)

    @property
    def guide(self) -> LinearGuide:
        """See `AbstractBridge`."""
        alpha, _, width, _ = self._widths()
        pull = self.final.mean - alpha * (width @ self.initial.mean)
        return LinearGuide(self.reference, self.t0, self.t1, width, pull, backward=False)

    @property
    def reverse_guide(self) -> LinearGuide:
        """See `AbstractBridge`."""
        alpha, _, _, width = self._widths()
        pull = alpha * self.initial.mean - width @ self.final.mean
        return LinearGuide(self.reference, self.t0, self.t1, width, pull, backward=True)

    @property
    def coupling(self) -> Gaussian:
        """The joint density of both ends, in ``2 dim`` dimensions: the static bridge."""
        first, last, cross = full(self.initial), full(self.final), self._cross()
        joint = jnp.block([[first, cross], [cross.T, last]])
        return Gaussian(jnp.concatenate([self.initial.mean, self.final.mean]), joint)

    def marginal(self, t: ArrayLike) -> Gaussian:
        r"""The density $p_t$.

        Raises:
            ValueError: if the time is outside of the interval.
        """
        t = inside(self, as_scalar(t), "t")
        r, s, tau = pin(self.reference, self.t0, t, self.t1)
        cross = self._cross()
        spread = r**2 * full(self.initial) + s**2 * full(self.final) + r * s * (cross + cross.T)
        one = jnp.eye(spread.shape[0], dtype=spread.dtype)
        return Gaussian(r * self.initial.mean + s * self.final.mean, spread + tau * one)

    def path_kl(self) -> Scalar:
        r"""The value of the problem, $KL(P\|R)$ in nats, with the reference started from the first density."""
        alpha, v, width, _ = self._widths()
        one = jnp.eye(width.shape[0], dtype=width.dtype)
        shift = self.final.mean - alpha * self.initial.mean
        moved = (width - one) @ full(self.initial) @ (width - one) * alpha**2
        return 0.5 * (jnp.trace(width - one) - jnp.linalg.slogdet(width)[1] + (shift @ shift + jnp.trace(moved)) / v)

    def entropic_cost(self) -> Scalar:
        r"""The value of entropic transport, $\langle\tfrac12|x_{t_1} - \alpha x_{t_0}|^2\rangle + v\,KL(\pi\|p_0 \otimes p_1)$.

        It is $v\,[KL(P\|R) + S(p_1) - \tfrac d2\ln 2\pi v]$ with the entropy $S$.
        """
        _, v = self.reference.transition(self.t0, self.t1)
        dim = self.final.mean.shape[0]
        return v * (self.path_kl() + self.final.entropy() - 0.5 * dim * jnp.log(2 * jnp.pi * v))

    def log_ratio(self, x0: Float[Array, " dim"], x1: Float[Array, " dim"]) -> Scalar:
        r"""$\ln dP/dR$ of a path from `x0` to `x1`, a function of its ends alone: $\ln\pi(x_1|x_0) - \ln p_R(x_1|x_0)$."""
        alpha, v, width, _ = self._widths()
        mean = self.final.mean + alpha * (width @ (x0 - self.initial.mean))
        return Gaussian(mean, v * width).log_prob(x1) - Gaussian(alpha * x0, v).log_prob(x1)

    def _cross(self):
        """Cov(x0, x1) = alpha C0 W."""
        alpha, _, width, _ = self._widths()
        return alpha * (full(self.initial) @ width)

    def _widths(self):
        r"""Transition of the reference, and the conditional covariances: $v W$ of $x_1|x_0$ and $v\hat W/\alpha^2$ of $x_0|x_1$.

        $W = \frac{1}{2}A^{-1/2}(D - v)A^{-1/2}$, with $D - v = (D + v)^{-1}\,4A^{1/2}C_1A^{1/2}$; $\hat W = 2A^{1/2}(D + v)^{-1}A^{1/2}$.
        """
        alpha, v = self.reference.transition(self.t0, self.t1)
        root = alpha * square_root(full(self.initial))
        one = jnp.eye(root.shape[0], dtype=root.dtype)
        inner = symmetric(root @ full(self.final) @ root)
        total = square_root(4 * inner + v**2 * one) + v * one
        product = solve(total, inner, assume_a="pos")
        half = solve(root, symmetric(product), assume_a="pos")
        width = 2 * solve(root, half.T, assume_a="pos")
        reverse = 2 * root @ solve(total, root, assume_a="pos")
        return alpha, v, symmetric(width), symmetric(reverse)


class ExactBridge(AbstractGaussianStepper):
    r"""The exact transition of a Gaussian bridge, for any step.

    With the matrices $M$ of the `LinearGuide` at both ends of the step and the transition $(a, q)$ of the reference between them it is
    $N(M_0^{-1}[a M_1x_0 + q\frac{b_1}{v}c],\; qM_0^{-1}M_1)$.
    """

    clock: float = eqx.field(static=True, default=0.5)
    """Where in the step functionals read the coefficients, from 0 (left) to 1 (right)."""
    normals: ClassVar[int] = 1

    def __check_init__(self):
        require(0.0 <= self.clock <= 1.0, "clock", "lie between 0 and 1", self.clock)

    def reversal(self):
        return ExactBridge(1.0 - self.clock)

    def check(self, dynamics, ts, x0s):
        guide = getattr(dynamics, "guide", None)
        linear = isinstance(dynamics, Guided) and isinstance(guide, LinearGuide) and not guide.backward
        require(linear, "dynamics", "be that of a `GaussianBridge` for `ExactBridge`; use `EulerMaruyama`", type(dynamics).__name__)
        return x0s

    def increment(self, dynamics: Any, t0, t1, x0):
        guide = dynamics.guide
        one = jnp.eye(x0.shape[0], dtype=x0.dtype)
        a, q = guide.reference.transition(t0, t1)
        b, _ = guide.reference.transition(t1, guide.t1)
        _, v = guide.reference.transition(guide.t0, guide.t1)
        before, after = guide.mixed(t0, one), guide.mixed(t1, one)
        # a M_1 - M_0 = (a - 1) M_1 - (b^2 q / v)(1 - W): no difference of large numbers, however short the step.
        away = (a - 1) * (after @ x0) + q * b / v * (guide.pull - b * (x0 - guide.width @ x0))
        inverse = solve(before, one, assume_a="pos")
        return inverse @ away, jnp.linalg.cholesky(symmetric(q * inverse @ after))

    def __call__(self, dynamics, t0, t1, x0, zs):
        moved, factor = self.increment(dynamics, t0, t1, x0)
        return x0 + moved + factor @ zs[0]


def full(density: Gaussian) -> Matrix:
    """The covariance of a Gaussian as a matrix."""
    dim, covariance = density.mean.shape[0], density.covariance
    return covariance if covariance.ndim == 2 else jnp.diag(jnp.broadcast_to(covariance, (dim,)))


def symmetric(matrix: Matrix) -> Matrix:
    """The symmetric part of a matrix."""
    return 0.5 * (matrix + matrix.T)
