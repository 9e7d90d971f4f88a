"""Bayesian logistic regression, with two classes or more."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Num

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import ensure, require
from thermojax.targets._target import AbstractTarget, check_scale, refuse_draws


class LogisticRegression(AbstractTarget):
    r"""The posterior of weights, $\ln\gamma(w) = \sum_n\ln p(c_n|z_n, w) + \ln N(w; 0, s^2)$, prior normalised: $Z$ is the evidence.

    Two classes have one vector of weights, $p(1|z, w) = 1/(1 + e^{-w\cdot z})$. More of them have one vector each,
    $p(c|z, w) \propto e^{w_c\cdot z}$, so that the prior treats all classes alike; a configuration is then all vectors in a row.
    """

    features: Float[Array, "datum feature"] = eqx.field(converter=as_float)
    """$z_n$; a constant column gives an intercept, see `logistic_regression`."""
    labels: Int[Array, " datum"] = eqx.field(converter=jnp.asarray)
    """Classes $c_n$, from zero."""
    classes: int = eqx.field(static=True, default=2)
    """Their number."""
    prior_scale: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """$s$, the standard deviation of every weight before any datum."""
    log_z: None = eqx.field(default=None, init=False)
    """The evidence is unknown."""

    def __check_init__(self):
        require(self.features.ndim == 2, "features", "have shape (datum, feature)", f"shape {self.features.shape}")
        shape = self.features.shape[:1]
        require(self.labels.shape == shape, "labels", f"have shape {shape}", f"shape {self.labels.shape}")
        require(self.classes >= 2, "classes", "be at least 2", self.classes)
        good = (self.labels >= 0) & (self.labels < self.classes)
        ensure(self.labels, good, "labels", f"be whole numbers from 0 to {self.classes - 1}", self.labels)
        check_scale(self.prior_scale, "prior_scale")

    @property
    def dim(self) -> int:
        """Number of weights."""
        return self.features.shape[1] * (1 if self.classes == 2 else self.classes)

    def log_density(self, x):
        return self.log_likelihood(x) + self.log_prior(x)

    def log_prior(self, x: Float[Array, " dim"]) -> Scalar:
        r"""$\ln N(w; 0, s^2)$."""
        return -0.5 * jnp.sum((x / self.prior_scale) ** 2) - self.dim * (jnp.log(self.prior_scale) + 0.5 * jnp.log(2 * jnp.pi))

    def log_likelihood(self, x: Float[Array, " dim"]) -> Scalar:
        r"""$\sum_n\ln p(c_n|z_n, w)$."""
        logits = self.features @ x.reshape(-1, self.features.shape[1]).T
        if self.classes == 2:
            logits = jnp.concatenate([jnp.zeros_like(logits), logits], axis=1)
        logs = jax.nn.log_softmax(logits, axis=1)
        return jnp.sum(jnp.take_along_axis(logs, self.labels[:, None], axis=1))

    def sample(self, n, *, key):
        refuse_draws(self)


def logistic_regression(
    features: Num[ArrayLike, "datum feature"], labels: ArrayLike, *, prior_scale: ArrayLike = 1.0
) -> LogisticRegression:
    """Logistic regression on raw data: features are standardised and a column of ones is put before them.

    Args:
        features: Raw features, one row for each datum.
        labels: Whole numbers, the classes from 0 to their highest.
        prior_scale: Standard deviation of every weight, that of the intercept included.

    Raises:
        ValueError: if a feature is constant or not finite, or a class of `labels` is empty.
    """
    raw, labels = np.asarray(features, dtype=float), np.asarray(labels)
    spread = raw.std(axis=0)
    require(bool(np.all(np.isfinite(spread) & (spread > 0))), "features", "vary, and be finite, in every column", f"deviations {spread}")
    found = np.unique(labels)
    rule = "hold every class from 0 to the highest, at least two"
    require(len(found) > 1 and np.array_equal(found, np.arange(len(found))), "labels", rule, found)
    standard = (raw - raw.mean(axis=0)) / spread
    return LogisticRegression(
        jnp.asarray(np.column_stack([np.ones(len(raw)), standard]), dtype=float), labels.astype(int), len(found), prior_scale
    )


def breast_cancer() -> LogisticRegression:
    """Malignant or benign from 30 features of 569 tumours (Wisconsin), as in scikit-learn: 31 weights."""
    from sklearn.datasets import load_breast_cancer

    return _from_library(load_breast_cancer)


def iris() -> LogisticRegression:
    """Three species from 4 features of 150 flowers (Fisher), as in scikit-learn: multinomial, 15 weights."""
    from sklearn.datasets import load_iris

    return _from_library(load_iris)


def wine() -> LogisticRegression:
    """Three cultivars from 13 features of 178 wines, as in scikit-learn: multinomial, 42 weights."""
    from sklearn.datasets import load_wine

    return _from_library(load_wine)


def _from_library(load: Callable[..., Any]) -> LogisticRegression:
    features, labels = load(return_X_y=True)
    return logistic_regression(np.asarray(features), np.asarray(labels))
