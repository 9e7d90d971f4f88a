r"""Scores from models that predict something else.

A noised configuration is $x = \alpha x_0 + \sigma\varepsilon$ with $\sigma^2 = v$. What a model predicts is the mean, given $x$, of one of

- "noise": $\varepsilon$;
- "data": $x_0$;
- "v": $\alpha\varepsilon - \sigma x_0$;
- "flow": the velocity $\alpha' x_0 + \sigma'\varepsilon$ of $x$ in time, from data to noise;
- "score": $-\varepsilon/\sigma$.

Each is linear in $(x_0, \varepsilon)$, and so is $x$: two equations give $\varepsilon$, and the score is $-\varepsilon/\sigma$. None is
divided by $\alpha$: all are good at the noisy end. At the other end a score is as large as $1/\sigma$, and errors of "data" are divided
by $v$.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import Scalar
from thermojax._check import ensure, library_of, require
from thermojax.dynamics import AbstractNoising, Score
from thermojax.phase import check_configurations

KINDS = ("noise", "data", "v", "flow", "score")


class Predicted(eqx.Module):
    r"""The score that `model` stands for, if it predicts what `kind` says.

    A denoiser $D(x; \sigma)$ is of kind "data", with `dynamics.Elucidated` as the process. A flow model that runs from noise to data in its
    own time $s = 1 - t$ predicts minus our velocity: ``Predicted(noising, lambda s, x: -model(s, x), "flow", lambda t: 1 - t)``.

    Reference:
        T. Salimans, J. Ho, Progressive distillation for fast sampling of diffusion models, arXiv:2202.00512 (2022), for "v".

    Raises:
        ValueError: if there is no such kind.
    """

    noising: AbstractNoising
    """The process that the model was trained with."""
    model: Callable[..., Array]
    """``model(time, x)`` for one configuration."""
    kind: str = eqx.field(static=True)
    """What it predicts: "noise", "data", "v", "flow" or "score"."""
    clock: Callable[[Array], ArrayLike] | None = None
    """The time that the model is given, as a function of that of `noising`: an index, a log signal-to-noise ratio; the same if omitted."""

    def __check_init__(self):
        _check_kind(self.kind)

    def __call__(self, t: Scalar, x: Float[Array, " dim"], *, key: Key | None = None) -> Float[Array, " dim"]:
        """The score of one configuration at time `t`; `key` is for models with dropout."""
        time = t if self.clock is None else jnp.asarray(self.clock(t))
        prediction = self.model(time, x) if key is None else self.model(time, x, key=key)
        return prediction_to_score(self.noising, self.kind, t, x, prediction)


def prediction_to_score(
    noising: AbstractNoising, kind: str, t: Scalar, x: Float[Array, " dim"], prediction: Float[Array, " dim"]
) -> Float[Array, " dim"]:
    """The score that a prediction of this kind stands for.

    Raises:
        ValueError: if there is no such kind.
    """
    _check_kind(kind)
    if kind == "score":
        return prediction
    if kind == "data":
        return (noising.alpha(t) * prediction - x) / noising.variance(t)
    spread = jnp.sqrt(noising.variance(t))
    if kind == "noise":
        return -prediction / spread
    scale = noising.alpha(t)
    # The second equation beside x = scale x_0 + spread e is: prediction = first x_0 + second e.
    first, second = (-spread, scale) if kind == "v" else _slopes(noising, t)
    return -(scale * prediction - first * x) / ((scale * second - spread * first) * spread)


def score_to_prediction(
    noising: AbstractNoising, kind: str, t: Scalar, x: Float[Array, " dim"], score: Float[Array, " dim"]
) -> Float[Array, " dim"]:
    r"""The prediction of this kind that a score stands for; all but "noise" and "score" need $\alpha > 0$.

    Raises:
        ValueError: if there is no such kind.
    """
    _check_kind(kind)
    if kind == "score":
        return score
    spread = jnp.sqrt(noising.variance(t))
    if kind == "noise":
        return -spread * score
    denoised = (x + noising.variance(t) * score) / noising.alpha(t)
    if kind == "data":
        return denoised
    first, second = (-spread, noising.alpha(t)) if kind == "v" else _slopes(noising, t)
    return first * denoised - second * spread * score


def check_score(score: Score, noising: AbstractNoising, data: ArrayLike, ts: ArrayLike) -> Float[Array, " level"]:
    """Return `ts` if `score` is an array of the right shape, and finite on data noised to each of these times.

    A few of the data are noised by one standard deviation, up in every other coordinate and down in the rest. Inside `jax.jit` a score that
    is not finite raises at run time, if what is returned is used.

    Args:
        score: ``score(t, x)``.
        noising: The noising process, which has noise at every time.
        data: Configurations, shape ``(sample, dim)``.
        ts: Times, one or many.

    Raises:
        TypeError, ValueError: if the score returns anything but a finite array of the shape of `x`.
    """
    data = check_configurations(data, "data")[:4]
    ts = jnp.atleast_1d(jnp.asarray(ts)).astype(data.dtype)
    found = _shape_of(score, ts[0], data[0])
    got = f"shape {found.shape}" if isinstance(found, jax.ShapeDtypeStruct) else type(found).__name__
    require(got == f"shape {data[0].shape}", "score", f"return shape {data[0].shape} for a configuration of that shape", got)
    values, levels = _scores(score, noising, data, ts)
    xp = library_of(values)
    good = xp.isfinite(values).all(axis=1)
    return ensure(ts, good, "score", "be finite at every noise level", _Offence(values, levels, ts))


def _shape_of(score, t, x):
    try:
        return eqx.filter_eval_shape(score, t, x)
    except (TypeError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise ValueError(f"`score` must accept configurations of the dimension of the data, shape {x.shape}, got: {first}") from error


class _Offence:
    """Where a score is not finite; its text is made only for an error."""

    def __init__(self, values, levels, ts):
        self.values, self.levels, self.ts = values, levels, ts

    def __str__(self):
        values, levels, ts = (np.asarray(a) for a in (self.values, self.levels, self.ts))
        at = np.flatnonzero(~np.isfinite(values).all(axis=1))
        value = next(v for v in values[at[0]] if not np.isfinite(v))
        place = f"t = {ts[at[0]]:.4g} (log signal-to-noise ratio {levels[at[0]]:.3g})"
        return f"{value} at {place}, and so at {len(at)} of {len(ts)} levels"


@eqx.filter_jit
def _scores(score, noising, data, ts):
    """All scores of a noise level in one row, and its log signal-to-noise ratio."""
    signs = 1.0 - 2.0 * (jnp.arange(data.size) % 2).astype(data.dtype).reshape(data.shape)

    def level(t):
        xs = noising.alpha(t) * data + jnp.sqrt(noising.variance(t)) * signs
        return jax.vmap(lambda x: score(t, x))(xs).ravel()

    return jax.lax.map(level, ts), jax.vmap(noising.log_snr)(ts)


def _slopes(noising, t):
    """The time derivatives of the factor and of the standard deviation."""
    return jax.grad(noising.alpha)(t), 0.5 * jax.grad(noising.variance)(t) / jnp.sqrt(noising.variance(t))


def _check_kind(kind):
    require(kind in KINDS, "kind", f"be one of {KINDS}", repr(kind))
