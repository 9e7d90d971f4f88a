r"""Balance losses. All of them read paths of any behaviour: none needs paths of the forward policy.

Along a path $s_0, \ldots, s_m$ let $g_k = \sum_{i<k}[\ln P_F(a_i|s_i) - \ln P_B(a_i|s_{i+1})] - \ln F(s_k)$, with $F(s_0) = Z$ and
$F(s_m) = R$. The dissipation between two of its states is $g_j - g_i$: for the whole path it is $W - \Delta F$, and a network is
balanced when it vanishes for all of them, on all paths.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray as Key

from thermojax._array import as_scalar, Scalar
from thermojax._check import check_positive, ensure, library_of
from thermojax.gflownets._environment import check_count
from thermojax.gflownets._network import chosen, GFlowNet, log_inflows, Trajectories, walk


class AbstractBalance(eqx.Module):
    """A loss of a `GFlowNet`, ``loss(model, key)``, on paths of its forward policy with some exploration.

    For `optimize.fit`, with ``where=learned``.
    """

    batch: int = eqx.field(static=True, default=16)
    """Paths in a batch."""
    exploration: Scalar = eqx.field(converter=as_scalar, default=0.0)
    """Probability that a move is any legal one instead of the policy's."""

    def __check_init__(self):
        check_count(self.batch, 1, "batch")
        xp = library_of(self.exploration)
        good = (xp.asarray(self.exploration) >= 0) & (xp.asarray(self.exploration) <= 1)
        ensure(self.exploration, good, "exploration", "lie in [0, 1]", self.exploration)

    def __call__(self, model: GFlowNet, key: Key) -> Scalar:
        """The loss on fresh paths."""
        return self.on(model, walk(model, self.batch, self.exploration, key))

    @abc.abstractmethod
    def on(self, model: GFlowNet, trajectories: Trajectories) -> Scalar:
        """The loss on given paths, of whatever origin."""


class TrajectoryBalance(AbstractBalance):
    r"""The mean square of $W - \Delta F$ over paths, with the learned $\Delta F = -\ln Z$.

    Reference:
        N. Malkin et al., arXiv:2201.13259 (2022), sec. 2.3.
    """

    def on(self, model, trajectories):
        g = potentials(model, trajectories)
        # Beyond the end of a path nothing changes: the last entry is that of its end.
        return jnp.mean((g[-1] - g[0]) ** 2)


class DetailedBalance(AbstractBalance):
    r"""The mean square of $\ln F(s)P_F(s'|s) - \ln F(s')P_B(s|s')$ over moves.

    Reference:
        Y. Bengio et al., arXiv:2111.09266 (2023), sec. 3.2.
    """

    def on(self, model, trajectories):
        g = potentials(model, trajectories)
        return jnp.sum((g[1:] - g[:-1]) ** 2) / jnp.sum(trajectories.moves).astype(g.dtype)


class SubTrajectoryBalance(AbstractBalance):
    r"""The mean square dissipation of all stretches of a path, one of $n$ moves with the weight $\lambda^n$, and of paths.

    It is detailed balance for $\lambda\to0$, trajectory balance for $\lambda\to\infty$.

    Reference:
        K. Madan et al., arXiv:2209.12782 (2023).
    """

    weight: Scalar = eqx.field(converter=as_scalar, default=0.9)
    r"""$\lambda$, positive."""

    def __check_init__(self):
        check_positive(self.weight, "weight")

    def on(self, model, trajectories):
        g = potentials(model, trajectories)
        times = jnp.arange(g.shape[0], dtype=trajectories.moves.dtype)
        gaps = times[None, :] - times[:, None]
        inside = (gaps > 0)[:, :, None] & (times[None, :, None] <= trajectories.moves[None, None])
        # A softmax over stretches: large powers of the weight do not overflow.
        logs = jnp.where(inside, (gaps.astype(g.dtype) * jnp.log(self.weight.astype(g.dtype)))[:, :, None], -jnp.inf)
        return jnp.mean(jnp.sum(jax.nn.softmax(logs, axis=(0, 1)) * (g[None] - g[:, None]) ** 2, axis=(0, 1)))


class FlowMatching(AbstractBalance):
    r"""The mean square of $\ln\sum_sF(s)P_F(s'|s) - \ln F(s')$ over the states that paths visit: what flows in flows out.

    The backward policy is not read: the one that makes the network reversible is that of `FlowReversal`. All parents of every state are
    evaluated, which costs as many times more as there are moves.

    Reference:
        E. Bengio et al., arXiv:2106.04399 (2021), without its small constant.
    """

    def on(self, model, trajectories):
        def miss(state):
            # The source has no parents; it is left out, since no path comes back to it, and must not spoil the gradient.
            inflows = jnp.where(jnp.any(state != 0), log_inflows(model, state), 0.0)
            return (jax.nn.logsumexp(inflows) - model.kernels(state).log_flow) ** 2

        misses = jax.vmap(jax.vmap(miss))(trajectories.states[1:])
        return jnp.sum(jnp.where(trajectories.active, misses, 0.0)) / jnp.sum(trajectories.moves).astype(misses.dtype)


def potentials(model: GFlowNet, trajectories: Trajectories) -> Float[Array, "time sample"]:
    """$g_k$ at every state of the paths; constant after their end."""
    kernels = jax.vmap(jax.vmap(model.kernels))(trajectories.states)
    pick = jax.vmap(chosen)
    active = trajectories.active
    moves = pick(kernels.forward[:-1], trajectories.actions, active) - pick(kernels.backward[1:], trajectories.actions, active)
    sums = jnp.concatenate([jnp.zeros_like(moves[:1]), jnp.cumsum(moves, axis=0)])
    return sums - kernels.log_flow


def learned(model: GFlowNet) -> tuple:
    r"""The policy and $\ln Z$: what to optimise, ``fit(..., where=learned)``."""
    return model.policy, model.log_z


def balance_optimizer(steps: int, *, rate: float = 3e-3, log_z_rate: float = 0.1) -> optax.GradientTransformation:
    r"""Adam with a rate for the policy and another for $\ln Z$, both of which fall to zero as a cosine.

    Args:
        steps: Gradient steps in all.
        rate: First rate of the policy, and of the flows.
        log_z_rate: First rate of $\ln Z$, a single number that may have far to go.
    """
    cosine = lambda first: optax.adam(optax.cosine_decay_schedule(first, steps))

    def labels(params):
        return eqx.tree_at(lambda model: model.log_z, jax.tree.map(lambda _: "policy", params), "log_z")

    return optax.multi_transform({"policy": cosine(rate), "log_z": cosine(log_z_rate)}, labels)
