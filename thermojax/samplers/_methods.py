"""The samplers of the literature, by name."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import ArrayLike, PRNGKeyArray as Key

from thermojax._array import as_float
from thermojax._check import check_positive, require
from thermojax.measures import Unnormalised
from thermojax.samplers._network import Control
from thermojax.samplers._overdamped import OverdampedSampler, SIDES
from thermojax.samplers._underdamped import UnderdampedSampler


class Method(NamedTuple):
    """A sampler of the literature as a base and the kernels that are controlled."""

    words: str
    """What it is called."""
    base: str
    """See `OverdampedSampler`."""
    side: str
    """See `OverdampedSampler`."""
    inertia: bool
    """Whether it has an underdamped form."""


METHODS = {
    "ula": Method("unadjusted Langevin annealing", "annealed", "none", inertia=True),
    "mcd": Method("Monte Carlo diffusion", "annealed", "backward", inertia=True),
    "cmcd": Method("controlled Monte Carlo diffusion", "annealed", "opposite", inertia=True),
    "gbs": Method("general bridge sampler", "annealed", "both", inertia=True),
    "dds": Method("denoising diffusion sampler", "equilibrium", "forward", inertia=True),
    "dis": Method("time-reversed diffusion sampler", "reversed", "forward", inertia=False),
    "pis": Method("path integral sampler", "pinned", "forward", inertia=False),
}


def controlled(
    method: str,
    target: Unnormalised,
    *,
    dim: int,
    steps: int = 64,
    mean: ArrayLike = 0.0,
    scale: ArrayLike = 1.0,
    step: ArrayLike | None = None,
    inertia: bool = False,
    width: int = 64,
    depth: int = 2,
    clip: float = 50.0,
    key: Key,
) -> OverdampedSampler | UnderdampedSampler:
    """An untrained sampler, already unbiased.

    Args:
        method: "ula", "mcd", "cmcd", "gbs", "dds", "dis" or "pis"; see `METHODS`.
        target: The logarithm of an unnormalised density: any callable, or a distribution.
        dim: Coordinates of a configuration.
        steps: Number of steps.
        mean: Mean of the prior, a number or one per coordinate.
        scale: Spread of the prior, likewise; where it starts pinned, of the uncontrolled process at its end.
        step: Size of a step in time, one number or one per coordinate; with inertia, of a leapfrog. If omitted, three relaxation times of
            the prior in all, and no step longer than a tenth of one.
        inertia: Whether velocities take part.
        width: Units of a hidden layer.
        depth: Hidden layers.
        clip: Longest gradient of the target that drifts and network see.
        key: Random key of the network's weights.

    Raises:
        ValueError: if the method is unknown or has no underdamped form, or a number has no meaning.

    References:
        A. Doucet et al., arXiv:2208.07698 (2022), MCD. F. Vargas et al., arXiv:2307.01050 (2024), CMCD; arXiv:2302.13834 (2023), DDS.
        J. Berner et al., arXiv:2211.01364 (2022), DIS. Q. Zhang, Y. Chen, arXiv:2111.15141 (2022), PIS.
        L. Richter, J. Berner, arXiv:2307.01198 (2024), GBS. With inertia: D. Blessing et al., arXiv:2503.01006 (2025).
    """
    require(method in METHODS, "method", f"be one of {', '.join(METHODS)}", repr(method))
    _, base, side, can = METHODS[method]
    able = ", ".join(name for name, m in METHODS.items() if m.inertia)
    require(can or not inertia, "method", f"have an underdamped form ({able}) with `inertia`", repr(method))
    require(dim >= 1 and steps >= 1, "steps", "be at least 1, like `dim`", (steps, dim))
    wide = lambda a: jnp.broadcast_to(as_float(a), (dim,)).astype(float)
    scales = check_positive(wide(scale), "scale")
    share = min(0.1, 3.0 / steps)
    # A leapfrog of h diffuses by h^2/2.
    sizes = scales * (2 * share) ** 0.5 if inertia else scales**2 * share
    sizes = sizes if step is None else check_positive(wide(step), "step")
    log_steps = jnp.broadcast_to(jnp.log(sizes), (steps, dim))
    heads = SIDES[side] * (2 if inertia else 1)
    typical = float(jnp.sqrt(jnp.mean(scales**2 + wide(mean) ** 2)))
    network = Control(dim, heads, width=width, depth=depth, scale=typical, clip=clip, key=key)
    tempering = jnp.zeros(steps)
    if not inertia:
        return OverdampedSampler(target, network, wide(mean), jnp.log(scales), log_steps, tempering, base=base, side=side)
    # Velocities forget themselves over a tenth of the way.
    log_damping = jnp.full(steps, jnp.log(10.0 / max(steps, 10)))
    return UnderdampedSampler(
        target, network, wide(mean), jnp.log(scales), log_steps, tempering, log_damping=log_damping, base=base, side=side
    )
