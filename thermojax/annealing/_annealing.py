"""The annealing chain, its reversal, and the loss by which it is tuned."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import cast, Scalar
from thermojax._check import require
from thermojax.annealing._kernels import AbstractKernel
from thermojax.annealing._levels import as_schedule, FreeSchedule
from thermojax.annealing._paths import AbstractPath, as_path
from thermojax.distributions import AbstractDistribution
from thermojax.measures import AbstractPair, check_normalised, draw, Unnormalised, Walks


class Annealing(AbstractPair):
    r"""Annealed importance sampling, and its reversal: $\langle e^{-\ell}\rangle_P = Z = \int\gamma_1\,dx$.

    So for any kernel and any number of levels. The weight is updated first, then the state moves with the kernel of the new density. The
    reversed chain starts from exact samples of the last density. The path need not begin at `initial`: the mismatch is in the weights.
    """

    path: AbstractPath = eqx.field(converter=as_path)
    r"""$\ln\gamma_\lambda(x)$: a `Geometric` path, or any callable ``(x, lam)``."""
    initial: AbstractDistribution
    """The first density $p_0$, normalised."""
    schedule: Float[Array, " level"] | FreeSchedule = eqx.field(converter=as_schedule)
    r"""The levels $\lambda_0 = 0 < \dots < \lambda_K = 1$, or a `FreeSchedule`, which stays one while it is tuned."""
    kernel: AbstractKernel
    """What moves at each level after the first."""
    moves: int = eqx.field(static=True, default=1)
    """Moves at each level."""
    final: Unnormalised | None = None
    r"""Draws from $\gamma_1/Z$ for the reversed chain; the target of the path, if it has one, if omitted."""

    def __check_init__(self):
        check_normalised(self.initial, "initial")
        require(self.moves >= 1, "moves", "be at least 1", self.moves)

    @property
    def lams(self) -> Float[Array, " level"]:
        r"""The levels $\lambda_k$."""
        return self.schedule.lams if isinstance(self.schedule, FreeSchedule) else self.schedule

    def along(self, schedule: ArrayLike | list | tuple | FreeSchedule) -> "Annealing":
        """The same chain along another schedule."""
        return Annealing(self.path, self.initial, schedule, self.kernel, self.moves, self.final)

    def forward(self, samples, *, key):
        start_key, noise_key = jr.split(key)
        x0s = self.kernel.check(self.path, self.initial.sample(samples, key=start_key), self.lams)
        x1s, ratios = _forward(self, x0s, noise_key)
        return Walks(x0s, x1s, ratios)

    def backward(self, samples, *, key):
        start_key, noise_key = jr.split(key)
        final: Any = getattr(self.path, "target", None) if self.final is None else self.final
        kernel = self.kernel.reversal()
        x1s = kernel.check(self.path, draw(final, samples, name="final", key=start_key), self.lams)
        x0s, ratios = _backward(self, kernel, x1s, noise_key)
        return Walks(x0s, x1s, ratios)


class NegativeElbo(eqx.Module):
    r"""The mean log-ratio $\langle\ell\rangle_P$ of a chain, a loss for `optimize.fit`.

    Its least value is $-\ln Z$, where nothing is dissipated. Gradients go through the moves, to steps, schedule, first density and path:
    pick those that are free, as in ``fit(NegativeElbo(256), chain, where=lambda c: (c.schedule, c.kernel), ...)``; the leaves of the
    target are not.
    """

    samples: int = eqx.field(static=True)
    """Chains for each estimate."""

    def __call__(self, chain: Annealing, key: Key) -> Scalar:
        """The loss; not a number if one of the chains was not.

        Raises:
            ValueError: if the kernel accepts and rejects: the gradient would miss its decisions.
        """
        rule = "make moves that are smooth in all parameters (`Langevin` and `Relaxation` do) for gradients"
        require(chain.kernel.smooth, "kernel", rule, type(chain.kernel).__name__)
        return jnp.mean(chain.forward(self.samples, key=key).log_ratios)


def look(chain: Annealing, xs: Any) -> Any:
    """The places of states, as the path sees them."""
    return jax.vmap(lambda x: chain.path.at(x, gradient=chain.kernel.gradients))(xs)


def mismatch(chain: Annealing, places: Any, lam: Scalar) -> Float[Array, " sample"]:
    r"""$\ln p_0(x_0) - \ln\gamma_{\lambda_0}(x_0)$."""
    return jax.vmap(lambda place: chain.initial.log_prob(place.x) - chain.path.value(place, lam))(places)


def rise(chain: Annealing, places: Any, lam0: Scalar, lam1: Scalar) -> Float[Array, " sample"]:
    r"""$\ln\gamma_{\lambda_1} - \ln\gamma_{\lambda_0}$ of each state."""
    return jax.vmap(lambda place: chain.path.change(place, lam0, lam1))(places)


def move(chain: Annealing, kernel: AbstractKernel, places: Any, lam: Scalar, index: Array, keys: Array) -> tuple[Any, Array]:
    """All moves of the level `index`, of states that each have their own key for all levels, with their shadow work."""

    def one(place, key):
        def again(place, key):
            return kernel(chain.path, place, lam, index, key)

        own = jr.fold_in(key, index)
        if chain.moves == 1:
            return again(place, own)
        place, shadows = lax.scan(again, place, jr.split(own, chain.moves))
        return place, jnp.sum(shadows)

    return jax.vmap(one)(places, keys)


def keys_of(places: Any, key: Key) -> Array:
    """A key for each state."""
    return jr.split(key, jax.tree.leaves(places)[0].shape[0])


def level_by_level(chain: Annealing, xs: Any, key: Key, observe: Any = None) -> tuple[Any, Array, Any]:
    r"""The forward chain: last places, log-ratios, and what ``observe(lam, places, ratios)`` saw at every level."""
    chain = in_precision_of(xs, chain)
    places, lams = look(chain, xs), chain.lams
    observe = (lambda lam, places, ratios: None) if observe is None else observe
    ratios, keys = mismatch(chain, places, lams[0]), keys_of(places, key)

    def level(carry, inputs):
        places, ratios = carry
        lam0, lam1, index = inputs
        ratios = ratios - rise(chain, places, lam0, lam1)
        places, shadows = move(chain, chain.kernel, places, lam1, index, keys)
        ratios = ratios + shadows
        return (places, ratios), observe(lam1, places, ratios)

    first = observe(lams[0], places, ratios)
    (places, ratios), later = lax.scan(level, (places, ratios), _inputs(lams))
    return places, ratios, jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, later)


def in_precision_of(xs: Any, tree: Any) -> Any:
    """Return `tree` in the floating-point precision of states, if they have one."""
    dtype = jax.tree.leaves(xs)[0].dtype
    return cast(tree, dtype) if jnp.issubdtype(dtype, jnp.floating) else tree


@eqx.filter_jit
def _forward(chain, x0s, key):
    places, ratios, _ = level_by_level(chain, x0s, key)
    return places.x, ratios


@eqx.filter_jit
def _backward(chain, kernel, x1s, key):
    chain, kernel = in_precision_of(x1s, (chain, kernel))
    places, lams = look(chain, x1s), chain.lams
    keys = keys_of(places, key)

    def level(carry, inputs):
        places, ratios = carry
        lam0, lam1, index = inputs
        places, shadows = move(chain, kernel, places, lam1, index, keys)
        # Seen from the forward chain the shadow work of a move back has the other sign.
        return (places, ratios - shadows - rise(chain, places, lam0, lam1)), None

    (places, ratios), _ = lax.scan(level, (places, jnp.zeros_like(mismatch(chain, places, lams[0]))), _inputs(lams), reverse=True)
    return places.x, ratios + mismatch(chain, places, lams[0])


def _inputs(lams):
    return lams[:-1], lams[1:], jnp.arange(lams.shape[0] - 1)
