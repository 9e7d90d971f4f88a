"""Controlled samplers without inertia."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import require
from thermojax.measures import draw, log_of, Unnormalised
from thermojax.samplers._abstract import AbstractSampler, hold, log_normal, Look
from thermojax.samplers._network import Control

BASES = ("annealed", "equilibrium", "reversed", "pinned")
SIDES = {"none": 0, "forward": 1, "backward": 1, "opposite": 1, "both": 2}


class OverdampedSampler(AbstractSampler):
    r"""Kernels $K_k = N(x + f_k(x) + s_k u, s_k^2)$ forward and $L_k = N(x + g_k(x) + r_k v, r_k^2)$ backward. $K_k$ is read at level $k$
    and $L_k$ at $k + 1$, where its step starts: every state is looked at once, for the step that made it and for the next.

    The base, without controls, with steps $\epsilon_k$, $s_k^2 = 2\epsilon_k$ and a prior $N(m, c^2)$:

    - "annealed": Langevin steps in $\pi_k \propto p_0^{1-\beta_k}\gamma^{\beta_k}$ both ways, $f_k = g_k = \epsilon_k\nabla\ln\pi_k$;
    - "equilibrium": exact relaxation to the prior both ways;
    - "reversed": backward, Euler steps of that relaxation; forward, its time reversal with the score $\nabla\ln\pi_k$ for a first guess;
    - "pinned": Brownian motion from one point, of variance $c^2$ at the end, and backward the Brownian bridge. It starts after the
      first of ``steps + 1`` equal steps.
    """

    target: Unnormalised
    r"""$\ln\gamma$."""
    network: Control
    """What controls; its heads are those that `side` asks for."""
    prior_mean: Float[Array, " dim"] = eqx.field(converter=as_float)
    """$m$."""
    prior_log_scale: Float[Array, " dim"] = eqx.field(converter=as_float)
    r"""$\ln c$, one per coordinate."""
    log_steps: Float[Array, "step dim"] = eqx.field(converter=as_float)
    r"""$\ln\epsilon_k$, one per step and coordinate."""
    tempering: Float[Array, " step"] = eqx.field(converter=as_float)
    r"""Logarithms of $\beta_{k+1} - \beta_k$, up to a constant: zeros for equal differences."""
    log_z: Scalar = eqx.field(converter=as_scalar, default=0.0)
    r"""What is believed of $\ln Z$, for the balance losses."""
    base: str = eqx.field(static=True, default="annealed")
    """"annealed", "equilibrium", "reversed" or "pinned"."""
    side: str = eqx.field(static=True, default="opposite")
    """Which kernels are controlled: "none", "forward", "backward", "both", or "opposite", where $v = -u$."""

    def __check_init__(self):
        require(self.base in BASES, "base", f"be one of {', '.join(BASES)}", repr(self.base))
        require(self.side in SIDES, "side", f"be one of {', '.join(SIDES)}", repr(self.side))
        heads = SIDES[self.side]
        require(self.network.heads == heads, "network", f"have {heads} heads for the side {self.side!r}", self.network.heads)
        dim = self.prior_mean.shape
        require(self.prior_log_scale.shape == dim, "prior_log_scale", f"have shape {dim}", f"shape {self.prior_log_scale.shape}")
        shape = (*self.tempering.shape, *dim)
        require(self.log_steps.shape == shape, "log_steps", f"have shape {shape}", f"shape {self.log_steps.shape}")

    def noise(self, samples, key):
        return jr.normal(key, (samples, *self.prior_mean.shape), self.prior_mean.dtype)

    def last(self, samples, key):
        return draw(self.target, samples, name="target", key=key).astype(self.prior_mean.dtype)

    def first(self, z):
        return self.prior_mean + jnp.exp(self._log_first_scale()) * z

    def log_first(self, x0):
        log_scale = self._log_first_scale()
        constant = 0.5 * x0.shape[0] * jnp.log(2 * jnp.pi)
        return log_normal((x0 - self.prior_mean) * jnp.exp(-log_scale), log_scale) - constant

    def look(self, k, x):
        return look(self.target, self.network, jnp.asarray(k, x.dtype) / self.steps, x)

    def move(self, k, x0, here, z, *, held):
        mean, log_scale = self._ahead(k, x0, here)
        x1 = hold(mean + jnp.exp(log_scale) * z, held=held)
        z = (x1 - mean) * jnp.exp(-log_scale) if held else z
        there = self.look(k + 1, x1)
        back, log_spread = self._back(k, x1, there)
        return x1, there, log_normal(z, log_scale) - log_normal((x0 - back) * jnp.exp(-log_spread), log_spread)

    def move_back(self, k, x1, there, z):
        back, log_spread = self._back(k, x1, there)
        x0 = hold(back + jnp.exp(log_spread) * z, held=True)
        here = self.look(k, x0)
        mean, log_scale = self._ahead(k, x0, here)
        ahead = log_normal((x1 - mean) * jnp.exp(-log_scale), log_scale)
        return x0, here, ahead - log_normal((x0 - back) * jnp.exp(-log_spread), log_spread)

    def log_last(self, x1, there):
        return there.log_target

    def log_flow(self, k, x, here):
        beta = self._beta(k)
        log_prior = self._log_prior(x) if self.base != "pinned" else self.log_first(x)
        between = (1 - beta) * (log_prior + self.log_z) + beta * here.log_target + here.flow
        return jnp.where(k == 0, self.log_first(x) + self.log_z, between)

    def _beta(self, k):
        return beta_at(self.tempering, k)

    def _log_first_scale(self):
        return self.prior_log_scale + (0.5 * jnp.log(self._share(0)) if self.base == "pinned" else 0.0)

    def _log_prior(self, x):
        z = (x - self.prior_mean) * jnp.exp(-self.prior_log_scale)
        return log_normal(z, self.prior_log_scale) - 0.5 * x.shape[0] * jnp.log(2 * jnp.pi)

    def _share(self, k):
        """The share of the time of a pinned path that has passed at level k."""
        return (jnp.asarray(k, self.prior_mean.dtype) + 1) / (self.steps + 1)

    def _score(self, k, x, here):
        """Of the annealed density at level k."""
        beta = self._beta(k)
        return beta * here.force - (1 - beta) * (x - self.prior_mean) * jnp.exp(-2 * self.prior_log_scale)

    def _relax(self, k, x):
        """Exact relaxation to the prior."""
        rate = jnp.exp(self.log_steps[k] - 2 * self.prior_log_scale)
        mean = self.prior_mean + jnp.exp(-rate) * (x - self.prior_mean)
        return mean, self.prior_log_scale + 0.5 * jnp.log(-jnp.expm1(-2 * rate))

    def _ahead(self, k, x, here):
        log_scale = 0.5 * (jnp.log(2.0).astype(x.dtype) + self.log_steps[k])
        step = jnp.exp(self.log_steps[k])
        if self.base == "annealed":
            mean = x + step * self._score(k, x, here)
        elif self.base == "equilibrium":
            mean, log_scale = self._relax(k, x)
        elif self.base == "reversed":
            pull = (x - self.prior_mean) * jnp.exp(-2 * self.prior_log_scale)
            mean = x + step * (pull + 2 * self._score(k, x, here))
        else:
            mean, log_scale = x, self.prior_log_scale - 0.5 * jnp.log(jnp.asarray(self.steps + 1, x.dtype))
        if self.side in ("forward", "opposite", "both"):
            mean = mean + jnp.exp(log_scale) * here.controls[0]
        return mean, log_scale

    def _back(self, k, x, there):
        log_scale = 0.5 * (jnp.log(2.0).astype(x.dtype) + self.log_steps[k])
        step = jnp.exp(self.log_steps[k])
        if self.base == "annealed":
            mean = x + step * self._score(k + 1, x, there)
        elif self.base == "equilibrium":
            mean, log_scale = self._relax(k, x)
        elif self.base == "reversed":
            mean = x - step * (x - self.prior_mean) * jnp.exp(-2 * self.prior_log_scale)
        else:
            kept = self._share(k) / self._share(k + 1)
            mean = self.prior_mean + kept * (x - self.prior_mean)
            log_scale = self.prior_log_scale + 0.5 * jnp.log(kept / (self.steps + 1))
        if self.side in ("backward", "opposite", "both"):
            control = -there.controls[0] if self.side == "opposite" else there.controls[-1]
            mean = mean + jnp.exp(log_scale) * control
        return mean, log_scale


def look(target: Any, network: Control, t: Scalar, x: Float[Array, " dim"]) -> Look:
    """Target, its gradient and the network at one place, each once."""
    log_target, force = jax.value_and_grad(log_of(target))(x)
    force = network.clipped(force)
    return Look(log_target, force, *network(t, x, force))


def beta_at(tempering: Float[Array, " step"], k: Any) -> Scalar:
    r"""$\beta_k$ from the logarithms of its differences."""
    # All of them first: in a loop over k that part does not change, and compilers take it out.
    ends = jnp.cumsum(jax.nn.softmax(tempering))
    return jnp.where(k == 0, 0.0, ends[jnp.maximum(k - 1, 0)])
