"""Noising and generation of one Gaussian by a linear score: both are Gaussians over whole paths, in closed form (NumPy).

Data N(m, c) under dx = -x dt + sqrt(2) dW, and the exact score times a factor, so that every denoising kernel is linear.
"""

import jax.numpy as jnp
import numpy as np
from systems import Scaled

from thermojax.distributions import Gaussian
from thermojax.dynamics import OrnsteinUhlenbeck
from thermojax.generative import Ancestral, MixtureScore
from thermojax.steppers import EulerMaruyama

OU = OrnsteinUhlenbeck()
MEAN, VARIANCE = 0.6, 0.3
DATA = Gaussian([MEAN], VARIANCE)
STEPPERS = {"ancestral": Ancestral(), "euler": EulerMaruyama()}


def scaled(factor, data=DATA, noising=OU):
    return Scaled(MixtureScore(noising, data), jnp.asarray(factor, float))


def noise_at(t):
    return -np.expm1(-2 * t)


def marginal(t):
    """Mean and variance of the noised data."""
    return MEAN * np.exp(-t), VARIANCE * np.exp(-2 * t) + noise_at(t)


def precision(factor, t):
    """The score is minus this times the distance from the mean."""
    return factor / marginal(t)[1]


def denoising(factor, ts, kind):
    """Slope, shift and variance of every learned kernel, from the noisiest."""
    kernels = []
    for t0, t1 in zip(ts[-2::-1], ts[:0:-1], strict=True):
        h = t1 - t0
        if kind == "ancestral":
            p, centre, w = precision(factor, t1), MEAN * np.exp(-t1), noise_at(h)
            kernels.append(((1 - w * p) * np.exp(h), w * p * centre * np.exp(h), noise_at(t0) * w / noise_at(t1)))
        else:
            t = 0.5 * (t0 + t1)
            p, centre = precision(factor, t), MEAN * np.exp(-t)
            kernels.append((1 + h * (1 - 2 * p), 2 * h * p * centre, 2 * h))
    return kernels


def decoder(factor, t):
    """The last kernel, which undoes the noise of the earliest time."""
    p, v = precision(factor, t), noise_at(t)
    return (1 - v * p) * np.exp(t), v * p * MEAN, v * np.exp(2 * t)


def noising(ts):
    """The kernels of the noising, from the cleanest."""
    return [(np.exp(-h), 0.0, noise_at(h)) for h in np.diff(ts)]


def path(mean, variance, kernels):
    """Mean and covariance of a whole path of linear kernels."""
    means, factor = [mean], np.diag(np.sqrt([variance] + [spread for _, _, spread in kernels]))
    for k, (slope, shift, _) in enumerate(kernels):
        means.append(slope * means[-1] + shift)
        factor[k + 1] += slope * factor[k]
    return np.array(means), factor @ factor.T


def divergence(p, q):
    """KL of two Gaussians."""
    (m, c), (n, d) = p, q
    gap = np.linalg.solve(d, np.column_stack([c, n - m]))
    return 0.5 * (np.trace(gap[:, :-1]) - len(m) + (n - m) @ gap[:, -1] + np.linalg.slogdet(d)[1] - np.linalg.slogdet(c)[1])


def path_divergences(factor, ts, kind, prior=(0.0, 1.0)):
    """KL(P|Q) and KL(Q|P) of noising P and generation Q, between the first and the last time."""
    forward = path(*marginal(ts[0]), noising(ts))
    m, c = path(*prior, denoising(factor, ts, kind))
    backward = m[::-1], c[::-1, ::-1]
    return divergence(forward, backward), divergence(backward, forward)


def made(factor, ts, kind):
    """Path of the generation, down to the decoded datum, in the order of the noising."""
    means, covariance = path(0.0, 1.0, [*denoising(factor, ts, kind), decoder(factor, ts[0])])
    return means[::-1], covariance[::-1, ::-1]


def bound_on_nll(factor, ts, kind):
    """The mean log-ratio of the chains given the datum."""
    forward = path(MEAN, VARIANCE, [(np.exp(-ts[0]), 0.0, noise_at(ts[0])), *noising(ts)])
    return divergence(forward, made(factor, ts, kind)) + 0.5 * np.log(2 * np.pi * np.e * VARIANCE)


def density_made(factor, ts, kind):
    """What is generated: a Gaussian."""
    means, covariance = made(factor, ts, kind)
    return Gaussian(means[:1].copy(), covariance[0, 0])
