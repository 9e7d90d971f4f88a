r"""Escorting: flows $u(t, x)$ that carry a driven ensemble along with its equilibrium.

An escorted particle moves by $dx = [\mu F + u]\,dt + \sqrt{2\mu/\beta}\,dW$ (`dynamics.Escorted`). Its reduced work
$Y = \int\{\partial_t(\beta V) + u\cdot\nabla(\beta V) - \nabla\cdot u\}\,dt$ obeys $\langle e^{-Y}\rangle = Z_\tau/Z_0$ for *any*
flow; on the grid it is `functionals.escorted_work`, for which that holds at every step size. A better flow only means less dissipation
$\langle Y\rangle - \Delta(\beta F) = \mathrm{KL}(P\|Q) \ge 0$, and so a smaller error of every free energy.

The best flow transports the equilibrium density $\pi_t$ itself, $\partial_t\pi + \nabla\cdot(u\pi) = 0$: in continuous time
$Y = \Delta(\beta F)$ on every path. It is known in closed form for quadratic potentials (`counterdiabatic`) and by quadrature in one
dimension (`counterdiabatic_line`). On the grid the divergence of a flow that stretches is seen through the noise of each step: the spread
of $Y$ falls as $\sqrt h$ and the dissipation as $h$ (as $h$ and $h^2$ for a flow that only shifts). Elsewhere the flow is learned
(`AffineFlow`, `NeuralFlow`) by descent on the mean log-ratio $\langle\ell\rangle$, which is the dissipation on the grid: no flow can push
it below zero, and a learned one may fall below the best flow of continuous time.

The flow follows the slope $d\lambda/dt$ of the protocol. A jump has none: it is not escorted, and dissipates as a sudden switch does.

References:
    S. Vaikuntanathan, C. Jarzynski, Phys. Rev. Lett. 100, 190601 (2008) and J. Chem. Phys. 134, 054107 (2011).
    A. Patra, C. Jarzynski, New J. Phys. 19, 125009 (2017), for the flow in one dimension.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import check_positive, require
from thermojax._symmetric import lyapunov
from thermojax.distributions import Gaussian
from thermojax.dynamics import Escorted, Overdamped
from thermojax.fokker_planck import Grid
from thermojax.potentials import energy
from thermojax.switching import equilibrium_at

# Below exp(-60) of its maximum a density is taken to be flat: nothing is there, and its reciprocal stays a number in float32.
_CUTOFF = 60.0


class Counterdiabatic(eqx.Module):
    r"""The flow that carries the equilibrium of a quadratic potential: $u = \dot m + A\,(x - m)$ with $AC + CA = \dot C$.

    $m(t)$ and $C(t)$ are mean and covariance of the equilibrium under the control and the bath of time $t$. Of all flows that do it this
    one is a gradient: $A$ is symmetric. It holds its own copy of the dynamics.
    """

    driven: Overdamped
    """The dynamics whose equilibrium is followed."""

    def __call__(self, t: Scalar, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """The flow at `t` and `x`."""
        moments = lambda s: _moments(self.driven, s, x.shape[0])
        (mean, covariance), (speed, growth) = jax.jvp(moments, (t,), (jnp.ones_like(t),))
        return speed + lyapunov(covariance, growth) @ (x - mean)


class CounterdiabaticLine(eqx.Module):
    r"""The flow that carries the equilibrium of any potential in one dimension: $u = -\partial_t\Pi/\pi$, $\Pi$ the cumulative of $\pi$.

    A quadrature over the cells of a grid at each time, of second order in their width, linear between their faces. The flow is zero
    outside the grid, and too small where the density is below $e^{-60}$ of its maximum. It holds its own copy of the dynamics.
    """

    driven: Overdamped
    """The dynamics whose equilibrium is followed."""
    grid: Grid
    """Cells that hold the equilibrium at all times; see `fokker_planck.propose_grid`."""

    def __check_init__(self):
        require(self.grid.dim == 1, "grid", "have one dimension", self.grid.dim)

    def __call__(self, t: Scalar, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """The flow at `t` and `x`."""
        require(x.shape == (1,), "x", "be one coordinate: on a line", f"shape {x.shape}")
        width = self.grid.spacing[0]
        faces = self.grid.low[0] + width * jnp.arange(self.grid.cells[0] + 1, dtype=width.dtype)
        reduced = lambda s, places: jax.vmap(lambda y: self.driven.bath(s) * self.driven.energy(s, y[None]))(places)
        energies, rates = jax.jvp(lambda s: reduced(s, self.grid.lines[0]), (t,), (jnp.ones_like(t),))
        lowest = lax.stop_gradient(jnp.min(energies))
        weight = lambda u: jnp.exp(-jnp.minimum(u - lowest, _CUTOFF))
        weights = weight(energies)
        masses = weights / jnp.sum(weights)
        gains = (rates - jnp.sum(masses * rates)) * masses
        # Each half from its own end: what has passed a face is then never the difference of large numbers.
        nothing = jnp.zeros_like(gains[:1])
        from_left = jnp.concatenate([nothing, jnp.cumsum(gains)])
        from_right = -jnp.concatenate([jnp.cumsum(gains[::-1])[::-1], nothing])
        below = jnp.concatenate([nothing, jnp.cumsum(masses)])
        passed = jnp.where(below < 0.5, from_left, from_right)
        flow = passed * jnp.sum(weights) * width / weight(reduced(t, faces))
        return jnp.interp(x, faces, flow, left=0.0, right=0.0)


class AffineFlow(eqx.Module):
    r"""A flow $u = b(t) + A(t)\,x$ with straight lines between knots at equal distances in time, constant outside."""

    shifts: Float[Array, "knot dim"] = eqx.field(converter=as_float)
    r"""$b$ at the knots, at least two."""
    slopes: Float[Array, "knot dim dim"] = eqx.field(converter=as_float)
    r"""$A$ at the knots."""
    duration: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """The time of the last knot; the first one is at time 0."""

    def __check_init__(self):
        shape = self.shifts.shape
        require(len(shape) == 2 and shape[0] >= 2, "shifts", "have shape (knot >= 2, dim)", f"shape {shape}")
        require(self.slopes.shape == (*shape, shape[1]), "slopes", f"have shape {(*shape, shape[1])}", f"shape {self.slopes.shape}")
        check_positive(self.duration, "duration")

    def __call__(self, t: Scalar, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """The flow at `t` and `x`."""
        intervals = self.shifts.shape[0] - 1
        position = jnp.clip(t / self.duration, 0.0, 1.0) * intervals
        left = jnp.clip(jnp.floor(position), 0, intervals - 1)
        k, share = left.astype(int), position - left
        between = lambda knots: knots[k] + share * (knots[k + 1] - knots[k])
        return between(self.shifts) + between(self.slopes) @ x


class NeuralFlow(eqx.Module):
    r"""A flow that is a network of the scaled time and configuration, $u = \frac{\ell}{\tau}\,f_\theta(2t/\tau - 1, x/\ell)$."""

    network: eqx.nn.MLP
    r"""$f_\theta$, from ``dim + 1`` numbers to ``dim``."""
    duration: Scalar = eqx.field(converter=as_scalar)
    r"""$\tau$."""
    scale: Scalar = eqx.field(converter=as_scalar)
    r"""$\ell$, the size of the region in which the particles move."""

    def __check_init__(self):
        check_positive(self.duration, "duration")
        check_positive(self.scale, "scale")

    def __call__(self, t: Scalar, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """The flow at `t` and `x`."""
        features = jnp.concatenate([(2.0 * t / self.duration - 1.0)[None], x / self.scale])
        return self.scale / self.duration * self.network(features)


def counterdiabatic(dynamics: Overdamped, *, dim: int = 1) -> Escorted:
    r"""Dynamics in a quadratic potential with the escort that keeps them in equilibrium, at any speed.

    Args:
        dynamics: What moves, in a potential that is quadratic in $x$ for every control; control and bath may both change.
        dim: Number of coordinates.

    Returns:
        The escorted dynamics: its first states belong in the equilibrium at the first control.

    Raises:
        ValueError: if the potential at time 0 is not quadratic or does not confine, or there is a force that is no gradient. The choice
            looks at numbers: inside `jax.jit` write ``Escorted(dynamics, Counterdiabatic(dynamics))``.
    """
    _check_gradient(dynamics)
    start = equilibrium_at(dynamics, 0.0, dim=dim)
    rule = "have a quadratic potential; in one dimension `counterdiabatic_line` takes any, elsewhere a flow is learned"
    require(isinstance(start, Gaussian), "dynamics", rule, f"an equilibrium {type(start).__name__}")
    return Escorted(dynamics, Counterdiabatic(dynamics))


def counterdiabatic_line(dynamics: Overdamped, grid: Grid) -> Escorted:
    r"""Dynamics in one dimension with the escort that keeps them in equilibrium, by quadrature.

    The flow is finite, but large on top of high barriers: there it needs short steps.

    Args:
        dynamics: What moves; control and bath may both change.
        grid: Cells that hold the equilibrium at all times.

    Raises:
        ValueError: if the grid is not in one dimension, or there is a force that is no gradient.
    """
    _check_gradient(dynamics)
    return Escorted(dynamics, CounterdiabaticLine(dynamics, grid))


def still_flow(dim: int, duration: ArrayLike = 1.0, *, knots: int = 8) -> AffineFlow:
    """The affine flow that is zero: where an optimisation starts from.

    Args:
        dim: Number of coordinates.
        duration: How long the protocol takes.
        knots: Number of knots in time, at least two.

    Raises:
        ValueError: if a number has no meaning.
    """
    require(dim >= 1, "dim", "be at least 1", dim)
    require(knots >= 2, "knots", "be at least 2", knots)
    return AffineFlow(jnp.zeros((knots, dim)), jnp.zeros((knots, dim, dim)), duration)


def neural_flow(dim: int, duration: ArrayLike = 1.0, *, scale: ArrayLike = 1.0, width: int = 32, depth: int = 2, key: Key) -> NeuralFlow:
    """A neural flow that is zero before training, so that learning starts from the experiment without an escort.

    Args:
        dim: Number of coordinates.
        duration: How long the protocol takes.
        scale: The size of the region in which the particles move.
        width: Units in a hidden layer.
        depth: Number of hidden layers.
        key: Random key of the initial weights.

    Raises:
        ValueError: if a number has no meaning.
    """
    require(dim >= 1, "dim", "be at least 1", dim)
    require(depth >= 1 and width >= 1, "depth", "be at least 1, like `width`", (depth, width))
    network = eqx.nn.MLP(dim + 1, dim, width, depth, jnp.tanh, key=key)
    last = lambda net: (net.layers[-1].weight, net.layers[-1].bias)
    return NeuralFlow(eqx.tree_at(last, network, replace_fn=jnp.zeros_like), duration, scale)


def _check_gradient(dynamics):
    rule = "have no force that is not a gradient: what it drives has no equilibrium to follow"
    require(dynamics.nonconservative is None, "dynamics", rule, "a `nonconservative` force")


def _moments(driven, t, dim):
    """Mean and covariance of the equilibrium of a quadratic potential at one time."""
    lam, origin = driven.protocol(t), jnp.zeros(dim, t.dtype)
    beta = jnp.asarray(driven.bath(t))
    require(beta.ndim == 0, "bath", "return one beta for an equilibrium", f"shape {beta.shape}")
    value = lambda x: energy(driven.potential, x, lam)
    inverse = jnp.linalg.inv(jax.hessian(value)(origin))
    return -inverse @ jax.grad(value)(origin), 0.5 * (inverse + inverse.T) / beta
