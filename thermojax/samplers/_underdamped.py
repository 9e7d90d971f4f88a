"""Controlled samplers with inertia."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import require
from thermojax.measures import draw, Unnormalised
from thermojax.phase import Phase
from thermojax.samplers._abstract import AbstractSampler, hold, log_normal
from thermojax.samplers._network import Control
from thermojax.samplers._overdamped import beta_at, look, SIDES

BASES = ("annealed", "equilibrium")


class UnderdampedSampler(AbstractSampler):
    r"""Each step refreshes the velocity, $v' = \eta_k v + \sqrt{1 - \eta_k^2}\,(z + u)$, and then makes one leapfrog of size $h_k$ from
    level k to k + 1; backward it undoes the leapfrog and refreshes in the same way with the control $w$.

    A leapfrog keeps volumes, so the log-ratio is that of the two refreshments. A control is $u = a(t, x) + b(t, x)\odot v$, so that one
    call of the network serves both directions. Velocities are in units of their thermal spread at both ends. The base, without controls,
    is Langevin dynamics in $\pi_k \propto p_0^{1-\beta_k}\gamma^{\beta_k}$ ("annealed") or in the prior ("equilibrium").

    On paths that are held fixed the leapfrogs are held too (their steps and the tempering): two states determine them.

    References:
        T. Geffner, J. Domke, arXiv:2208.07743 (2022); D. Blessing et al., arXiv:2503.01006 (2025).
    """

    target: Unnormalised
    r"""$\ln\gamma$."""
    network: Control
    """What controls; two heads for each control that `side` asks for."""
    prior_mean: Float[Array, " dim"] = eqx.field(converter=as_float)
    """Mean of the first positions."""
    prior_log_scale: Float[Array, " dim"] = eqx.field(converter=as_float)
    """Logarithm of their spread, one per coordinate."""
    log_steps: Float[Array, "step dim"] = eqx.field(converter=as_float)
    r"""$\ln h_k$, one per step and coordinate."""
    tempering: Float[Array, " step"] = eqx.field(converter=as_float)
    r"""Logarithms of $\beta_{k+1} - \beta_k$, up to a constant."""
    log_damping: Float[Array, " step"] = eqx.field(converter=as_float)
    r"""$\ln(-\ln\eta_k)$: how much of the velocity a step forgets."""
    log_z: Scalar = eqx.field(converter=as_scalar, default=0.0)
    r"""What is believed of $\ln Z$, for the balance losses."""
    base: str = eqx.field(static=True, default="annealed")
    """"annealed" or "equilibrium"."""
    side: str = eqx.field(static=True, default="opposite")
    """Which refreshments are controlled: "none", "forward", "backward", "both", or "opposite", where $w = -u$."""

    def __check_init__(self):
        require(self.base in BASES, "base", f"be one of {', '.join(BASES)}", repr(self.base))
        require(self.side in SIDES, "side", f"be one of {', '.join(SIDES)}", repr(self.side))
        heads = 2 * SIDES[self.side]
        require(self.network.heads == heads, "network", f"have {heads} heads for the side {self.side!r}", self.network.heads)
        dim = self.prior_mean.shape
        require(self.prior_log_scale.shape == dim, "prior_log_scale", f"have shape {dim}", f"shape {self.prior_log_scale.shape}")
        shape = (*self.tempering.shape, *dim)
        require(self.log_steps.shape == shape, "log_steps", f"have shape {shape}", f"shape {self.log_steps.shape}")
        levels = self.tempering.shape
        require(self.log_damping.shape == levels, "log_damping", f"have shape {levels}", f"shape {self.log_damping.shape}")

    def noise(self, samples, key):
        place_key, speed_key = jr.split(key)
        return Phase(*(jr.normal(k, (samples, *self.prior_mean.shape), self.prior_mean.dtype) for k in (place_key, speed_key)))

    def last(self, samples, key):
        place_key, speed_key = jr.split(key)
        places = draw(self.target, samples, name="target", key=place_key).astype(self.prior_mean.dtype)
        return self.at_rest(places, speed_key)

    def at_rest(self, places, key):
        return Phase(places, jr.normal(key, places.shape, places.dtype))

    def first(self, z):
        return Phase(self.prior_mean + jnp.exp(self.prior_log_scale) * z.position, z.velocity)

    def log_first(self, x0):
        return self._log_prior(x0.position) + _log_thermal(x0.velocity)

    def look(self, k, x):
        return look(self.target, self.network, jnp.asarray(k, x.position.dtype) / self.steps, x.position)

    def move(self, k, x0, here, z, *, held):
        mean, log_scale = self._refreshed(k, x0.velocity, here, ahead=True)
        speed = hold(mean + jnp.exp(log_scale) * z, held=held)
        z = (speed - mean) * jnp.exp(-log_scale) if held else z
        step = jnp.exp(self.log_steps[k])
        half = speed + 0.5 * step * self._score(k, x0.position, here)
        place = hold(x0.position + step * half, held=held)
        there = self.look(k + 1, Phase(place, half))
        x1 = hold(Phase(place, half + 0.5 * step * self._score(k + 1, place, there)), held=held)
        back, _ = self._refreshed(k, speed, here, ahead=False)
        return x1, there, log_normal(z, log_scale) - log_normal((x0.velocity - back) * jnp.exp(-log_scale), log_scale)

    def move_back(self, k, x1, there, z):
        step = jnp.exp(self.log_steps[k])
        half = x1.velocity - 0.5 * step * self._score(k + 1, x1.position, there)
        place = hold(x1.position - step * half, held=True)
        here = self.look(k, Phase(place, half))
        speed = hold(half - 0.5 * step * self._score(k, place, here), held=True)
        back, log_scale = self._refreshed(k, speed, here, ahead=False)
        before = hold(back + jnp.exp(log_scale) * z, held=True)
        mean, _ = self._refreshed(k, before, here, ahead=True)
        ahead = log_normal((speed - mean) * jnp.exp(-log_scale), log_scale)
        gain = ahead - log_normal((before - back) * jnp.exp(-log_scale), log_scale)
        return Phase(place, before), here, gain

    def log_last(self, x1, there):
        return there.log_target + _log_thermal(x1.velocity)

    def log_flow(self, k, x, here):
        beta, log_prior = beta_at(self.tempering, k), self._log_prior(x.position) + self.log_z
        between = (1 - beta) * log_prior + beta * here.log_target + here.flow
        return jnp.where(k == 0, log_prior, between) + _log_thermal(x.velocity)

    def _log_prior(self, place):
        z = (place - self.prior_mean) * jnp.exp(-self.prior_log_scale)
        return log_normal(z, self.prior_log_scale) - 0.5 * place.shape[0] * jnp.log(2 * jnp.pi)

    def _score(self, k, place, seen):
        beta = beta_at(self.tempering, k) if self.base == "annealed" else 0.0
        return beta * seen.force - (1 - beta) * (place - self.prior_mean) * jnp.exp(-2 * self.prior_log_scale)

    def _refreshed(self, k, velocity, here, *, ahead):
        """Mean and logarithm of the spread of a velocity after it was refreshed."""
        rate = jnp.exp(self.log_damping[k])
        mean, log_scale = jnp.exp(-rate) * velocity, 0.5 * jnp.log(-jnp.expm1(-2 * rate))
        sides = ("forward", "opposite", "both") if ahead else ("backward", "opposite", "both")
        if self.side not in sides:
            return mean, log_scale
        first, second = here.controls[:2] if ahead or self.side != "both" else here.controls[2:]
        sign = -1.0 if self.side == "opposite" and not ahead else 1.0
        return mean + sign * jnp.exp(log_scale) * (first + second * velocity), log_scale


def _log_thermal(velocity):
    return log_normal(velocity, jnp.zeros((), velocity.dtype)) - 0.5 * velocity.shape[0] * jnp.log(2 * jnp.pi)
