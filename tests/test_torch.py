"""Models of PyTorch as functions of JAX: values, batches, derivatives. Skipped where PyTorch is missing, but for what is said then."""

import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from thermojax.distributions import Gaussian, standard_normal
from thermojax.dynamics import OrnsteinUhlenbeck
from thermojax.generative import Ancestral, audit, check_score, flow_log_prob, from_torch, Predicted, sample_ode, sample_sde

# PyTorch's own forward mode uses a part of PyTorch that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
OU = OrnsteinUhlenbeck()
# Single precision in a model of order one.
CLOSE = 1e-5


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def exact(t, x):
    """The score of data N(0, 0.4) in two dimensions."""
    return -x / (1.0 - 0.6 * jnp.exp(-2.0 * t))


def counted(torch):
    """The same in PyTorch, and the shapes of the batches it was called with."""
    shapes = []

    def module(xs, ts):
        shapes.append((tuple(xs.shape), tuple(ts.shape)))
        return -xs / (1.0 - 0.6 * torch.exp(-2.0 * ts))[:, None]

    return from_torch(module), shapes


def network(torch, dim=2):
    """A network that reads the time too."""

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(dim + 1, 16), torch.nn.Tanh(), torch.nn.Linear(16, dim))

        def forward(self, xs, ts):
            return self.layers(torch.cat([xs, ts[:, None]], dim=1))

    torch.manual_seed(0)
    return Network().eval()


def in_numpy(module, t, x):
    """The same network by hand."""
    (w1, b1, w2, b2) = (p.detach().numpy().astype(float) for p in module.parameters())
    return w2 @ np.tanh(w1 @ np.append(x, t) + b1) + b2


def test_a_model_of_torch_is_a_function_of_one_configuration(torch):
    module = network(torch)
    score, t, x = from_torch(module), jnp.asarray(0.3), jnp.array([0.4, -1.0])
    found = jax.jit(score)(t, x)
    assert found.shape == (2,)
    assert found.dtype == x.dtype
    assert np.allclose(found, in_numpy(module, 0.3, np.array([0.4, -1.0])), atol=CLOSE)
    assert not np.allclose(found, in_numpy(module, 0.4, np.array([0.4, -1.0])), atol=CLOSE)


def test_a_batch_is_one_call(torch):
    score, shapes = counted(torch)
    xs, ts = jnp.ones((64, 2)), jnp.linspace(0.1, 1.0, 64)
    found = jax.vmap(score)(ts, xs)
    assert shapes == [((64, 2), (64,))]
    assert np.allclose(found, jax.vmap(exact)(ts, xs), atol=CLOSE)
    # One time for all, and a batch of batches.
    shapes.clear()
    jax.vmap(score, in_axes=(None, 0))(ts[0], xs)
    jax.vmap(jax.vmap(score, in_axes=(None, 0)), in_axes=(0, None))(ts[:3], xs)
    assert shapes == [((64, 2), (64,)), ((192, 2), (192,))]


def test_samplers_call_once_a_step(torch, key):
    score, shapes = counted(torch)
    sample_key, check_key = jr.split(key)
    ts = jnp.linspace(0.0, 3.0, 31)
    found = sample_sde(OU, score, 50, ts, prior=standard_normal(2), stepper=Ancestral(), key=sample_key)
    assert shapes == [((50, 2), (50,))] * 30
    expected = sample_sde(OU, exact, 50, ts, prior=standard_normal(2), stepper=Ancestral(), key=sample_key)
    assert np.allclose(found, expected, atol=1e2 * CLOSE)
    flowed = sample_ode(OU, score, 5, prior=standard_normal(2), horizon=3.0, key=check_key)
    assert np.allclose(flowed, sample_ode(OU, exact, 5, prior=standard_normal(2), horizon=3.0, key=check_key), atol=1e-3)


def test_forward_derivatives_are_those_of_torch(torch):
    module = network(torch)
    score, t, x = from_torch(module), jnp.asarray(0.3), jnp.array([0.4, -1.0])
    w1, b1, w2, _ = (p.detach().numpy().astype(float) for p in module.parameters())
    slope = w2 @ np.diag(1 - np.tanh(w1 @ np.array([0.4, -1.0, 0.3]) + b1) ** 2) @ w1
    assert np.allclose(jax.jacfwd(score, 1)(t, x), slope[:, :2], atol=CLOSE)
    assert np.allclose(jax.jacfwd(score, 0)(t, x), slope[:, 2], atol=CLOSE)
    assert not np.allclose(jax.jacfwd(score, 1)(t, x), slope[:, :2].T, atol=CLOSE)


@pytest.mark.slow
def test_likelihood_of_the_flow_of_a_model_of_torch(torch, key):
    score, _ = counted(torch)
    xs = jnp.array([[0.3, -0.2], [1.0, 0.4]])
    late = Gaussian(jnp.zeros(2), 1.0 - 0.6 * np.exp(-6.0))
    expected = jax.vmap(Gaussian(jnp.zeros(2), 0.4).log_prob)(xs)
    flow = lambda **how: flow_log_prob(OU, score, xs, prior=late, horizon=3.0, rtol=1e-5, atol=1e-5, **how)
    assert np.allclose(flow(), expected, atol=1e-3)
    # The trace of a multiple of the identity has no spread.
    assert np.allclose(flow(divergence="hutchinson", key=key), expected, atol=1e-3)


@pytest.mark.slow
def test_models_of_torch_are_audited_like_any_other(torch, key):
    score, _ = counted(torch)
    noise = from_torch(lambda xs, ts: xs / (1.0 - 0.6 * torch.exp(-2.0 * ts))[:, None] * torch.sqrt(-torch.expm1(-2.0 * ts))[:, None])
    data_key, key = jr.split(key)
    data = Gaussian(jnp.zeros(2), 0.4).sample(100, key=data_key)
    of = lambda score: float(audit(score, OU, data, start=0.01, horizon=3.0, levels=5, key=key).profile.bound.value)
    assert of(score) == pytest.approx(of(exact), abs=1e-3)
    assert of(Predicted(OU, noise, "noise")) == pytest.approx(of(exact), abs=1e-3)
    assert np.allclose(check_score(score, OU, data, np.array([0.1, 1.0])), [0.1, 1.0])


def test_what_a_model_of_torch_cannot_do_is_refused(torch):
    module = network(torch)
    with pytest.raises(ValueError, match=r"`module` must be in evaluation mode: call `module.eval\(\)`, got training mode."):
        from_torch(module.train())
    with pytest.raises(Exception, match=r"`module` must return shape \(1, 2\), got shape \(1,\)"):
        jax.block_until_ready(from_torch(lambda xs, ts: ts)(jnp.asarray(0.3), jnp.ones(2)))
    with pytest.raises((ValueError, NotImplementedError), match="pure_callback|callbacks"):
        jax.grad(lambda x: jnp.sum(from_torch(module.eval())(jnp.asarray(0.3), x)))(jnp.ones(2))


def test_a_missing_torch_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModuleNotFoundError, match=r"`from_torch` needs PyTorch; install the extra `thermojax\[torch\]`."):
        from_torch(lambda xs, ts: xs)
