"""Models of PyTorch as functions of JAX.

The model stays where it is: JAX hands over a batch, PyTorch works on it in single precision, and the result comes back. Inside `jax.vmap`
and the loops of samplers a whole batch is one call. Nothing of the model is compiled, and its parameters are not JAX's.
"""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thermojax._check import require
from thermojax.dynamics import Score


def from_torch(module: Any, *, device: str | None = None) -> Score:
    r"""The function ``(t, x) -> array`` of one configuration that a PyTorch model computes.

    It can be used wherever a score can be, or the model of a `Predicted`. Forward-mode derivatives (`jax.jvp`, `jax.jacfwd`, and so the
    divergences of `flow_log_prob`) are PyTorch's own; there is no reverse mode, and no second derivative.

    Args:
        module: ``module(xs, ts)`` with the configurations first, shape ``(batch, dim)``, and the times second, shape ``(batch,)``: a
            ``torch.nn.Module``, or any function of two tensors that brings them into the order and the shape that a model wants, as
            ``lambda xs, ts: net(ts, xs.view(-1, 1, 8, 8)).flatten(1)``. It returns the shape ``(batch, dim)``.
        device: Where PyTorch works; where the first parameter of `module` is if omitted, and for a function on the CPU.

    Raises:
        ModuleNotFoundError: if PyTorch is missing.
        ValueError: if the module is in training mode, in which dropout would make it random.
    """
    torch = _torch()
    if isinstance(module, torch.nn.Module):
        require(not module.training, "module", "be in evaluation mode: call `module.eval()`", "training mode")
        parameter = next(module.parameters(), None)
        device = str(parameter.device) if device is None and parameter is not None else device
    place = "cpu" if device is None else device

    def tensors(ts, *xs):
        """The arrays of a call as tensors with one axis of batch; PyTorch wants memory of its own."""
        batch = [torch.from_numpy(np.array(x, np.float32).reshape(-1, np.shape(x)[-1])).to(place) for x in xs]
        return *batch, *(torch.from_numpy(np.array(t, np.float32).reshape(-1)).to(place) for t in ts)

    def back(result, like):
        size = int(np.prod(like.shape[:-1]))
        require(result.shape == (size, like.shape[-1]), "module", f"return shape {(size, like.shape[-1])}", f"shape {tuple(result.shape)}")
        return result.detach().to("cpu", torch.float32).numpy().reshape(like.shape)

    def evaluate(t, x):
        with torch.no_grad():
            return back(module(*tensors((t,), x)), x)

    def slope(t, x, dt, dx):
        with torch.no_grad():
            x1, dx1, t1, dt1 = tensors((t, dt), x, dx)
            return back(torch.func.jvp(module, (x1, t1), (dx1, dt1))[1], x)

    def call(host, t, x, *tangents):
        singles = (jnp.asarray(a).astype(jnp.float32) for a in (t, x, *tangents))
        result = jax.pure_callback(host, jax.ShapeDtypeStruct(x.shape, jnp.float32), *singles, vmap_method="broadcast_all")
        return result.astype(x.dtype)

    @jax.custom_jvp
    def model(t, x):
        return call(evaluate, t, x)

    @model.defjvp
    def model_jvp(primals, tangents):
        return model(*primals), call(slope, *primals, *tangents)

    return model


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as missing:
        raise ModuleNotFoundError("`from_torch` needs PyTorch; install the extra `thermojax[torch]`.") from missing
