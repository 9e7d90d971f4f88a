"""Samplers: the reversed process as an SDE, and the probability flow as an ODE."""

from typing import Any, cast, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._check import ensure, require
from thermojax.distributions import AbstractDistribution
from thermojax.dynamics import AbstractDynamics, AbstractNoising, ProbabilityFlow, Reversed, Score
from thermojax.ensemble import accumulate
from thermojax.steppers import AbstractGaussianStepper, AbstractStepper


def log_snr_grid(noising: AbstractNoising, start: ArrayLike, horizon: ArrayLike, steps: int) -> Float[Array, " time"]:
    """Times from `start` to `horizon` at equal steps of the log signal-to-noise ratio.

    Steps of a sampler on this grid each remove the same factor of noise. Keep a `start` before which there is no noise out of it.

    Args:
        noising: The noising process.
        start: Earliest time, at which there is noise.
        horizon: Latest time.
        steps: Number of steps, one less than that of the times.

    Raises:
        ValueError: if the ratio is not finite at both ends.
    """
    require(steps >= 1, "steps", "be at least 1", steps)
    start, horizon = (jnp.asarray(t, jnp.result_type(float, t)) for t in (start, horizon))
    ends = jnp.stack([noising.log_snr(start), noising.log_snr(horizon)])
    ends = ensure(ends, jnp.isfinite(ends), "start", "have a finite log signal-to-noise ratio, like `horizon`", ends)
    return _log_snr_grid(noising, start, horizon, jnp.linspace(ends[0], ends[1], steps + 1))


@eqx.filter_jit
def _log_snr_grid(noising, start, horizon, levels):
    def halve(interval, _):
        low, high = interval
        middle = 0.5 * (low + high)
        early = jax.vmap(noising.log_snr)(middle) > levels
        return (jnp.where(early, middle, low), jnp.where(early, high, middle)), None

    interval = jnp.full_like(levels, start), jnp.full_like(levels, horizon)
    (low, high), _ = jax.lax.scan(halve, interval, length=60)
    return (0.5 * (low + high)).at[0].set(start).at[-1].set(horizon)


class Ancestral(AbstractGaussianStepper):
    r"""The denoising kernel of DDPM, for `Reversed` noising processes.

    From the noisier time $t_1$ to $t_0$ with forward transition $N(a\,x_0, w)$: mean $(x + w\,s)/a$ and variance $v_0 w/v_1$, the exact
    posterior were the denoised data exact. Its log density makes the path-measure bound term by term that of DDPM.

    Reference:
        J. Ho, A. Jain, P. Abbeel, arXiv:2006.11239 (2020), eqs. (6) and (7).
    """

    normals: ClassVar[int] = 1
    clock: ClassVar[float] = 0.0

    def reversal(self):
        raise TypeError("`stepper` must have a reversal by the same kernels, got Ancestral.")

    def check(self, dynamics, ts, x0s):
        del ts
        good = isinstance(dynamics, Reversed) and isinstance(dynamics.forward, AbstractNoising)
        require(good, "dynamics", "be a noising process `Reversed` for `Ancestral`", type(dynamics).__name__)
        return x0s

    def increment(self, dynamics: Any, t0, t1, x0):
        noisy, clean = dynamics.horizon - t0, dynamics.horizon - t1
        factor, added = dynamics.forward.transition(clean, noisy)
        mean = (x0 + added * dynamics.score(noisy, x0)) / factor
        before, after = dynamics.forward.variance(clean), dynamics.forward.variance(noisy)
        return mean - x0, jnp.sqrt(before * added / after)

    def __call__(self, dynamics, t0, t1, x0, zs):
        mean, spread = self.increment(dynamics, t0, t1, x0)
        return x0 + mean + spread * zs[0]


def sample_sde(
    noising: AbstractDynamics,
    score: Score,
    n: int,
    ts: ArrayLike,
    *,
    prior: AbstractDistribution,
    stepper: AbstractStepper | None = None,
    key: Key,
) -> Float[Array, "n dim"]:
    """Draw `n` configurations by running the reversed process from `prior`.

    Args:
        noising: The forward process.
        score: ``score(t, x)`` in the time of the forward process.
        n: Number of draws.
        ts: Increasing times of the *forward* process; the reversal runs from the last to the first.
        prior: Where the reversal starts.
        stepper: One-step kernel; `EulerMaruyama` if omitted, `Ancestral` for that of DDPM.
        key: Random key.

    Returns:
        Configurations at ``ts[0]``: divide by ``noising.alpha(ts[0])`` where the data have shrunk there.
    """
    start_key, noise_key = jr.split(key)
    ts = jnp.asarray(ts)
    backward = Reversed(noising, score, ts[-1])
    xs = prior.sample(n, key=start_key)
    return accumulate((), backward, xs, (ts[-1] - ts)[::-1], stepper=stepper, key=noise_key)[0]


def sample_ode(
    noising: AbstractDynamics,
    score: Score,
    n: int,
    *,
    prior: AbstractDistribution,
    start: ArrayLike = 0.0,
    horizon: ArrayLike = 1.0,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    key: Key,
) -> Float[Array, "n dim"]:
    """Draw `n` configurations by the probability flow from `prior` at `horizon` back to `start`, with adaptive steps (Tsit5).

    See `sample_sde` for the arguments.
    """
    start, horizon = (jnp.asarray(t, float) for t in (start, horizon))
    require(start.ndim == 0 and horizon.ndim == 0, "start", "be one number, like `horizon`", start.shape)
    flow = ProbabilityFlow(noising, score, horizon)
    return _flow(flow, prior.sample(n, key=key), horizon - start, rtol, atol)


@eqx.filter_jit
def _flow(flow, xs, duration, rtol, atol):
    term = diffrax.ODETerm(lambda t, x, args: flow.drift(t, x))
    controller = diffrax.PIDController(rtol=rtol, atol=atol)

    def solve(x):
        solution = diffrax.diffeqsolve(
            term, diffrax.Tsit5(), jnp.zeros_like(duration), duration, None, x, stepsize_controller=controller, max_steps=None
        )
        return cast(Array, solution.ys)[-1]

    return jax.vmap(solve)(xs)
