"""Which process this is, of how many, and the devices that it has."""

import os
import warnings
from collections.abc import Sequence
from typing import Any

import jax

from thermojax._check import require
from thermojax.cluster._roll_call import check_address, Seat


def seat(coordinator: str | None = None, processes: int | None = None, process: int | None = None, *, timeout: float = 60.0) -> Seat:
    """The place of this process among those of the run: as given, and what is not given as JAX finds it.

    Args:
        coordinator: ``HOST:PORT`` of process 0, which the others can reach; ``JAX_COORDINATOR_ADDRESS`` if omitted.
        processes: How many there are.
        process: Which this is, from zero.
        timeout: Seconds that a scheduler may take to tell.

    Raises:
        ValueError: if something is neither given nor told by SLURM, Open MPI or Kubernetes, or has no meaning.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    local = None
    if None in (coordinator, processes, process):
        # What `jax.distributed.initialize` would do, which aborts the process if it fails.
        from jax._src.clusters import ClusterEnv

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = ClusterEnv.auto_detect_unset_distributed_params(coordinator, processes, process, None, None, round(timeout))
        coordinator, processes, process, local = found
    known = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [f"`{name}`" for name, value in known.items() if value is None]
    if coordinator is None or processes is None or process is None:
        rule = "be given where neither SLURM, Open MPI nor Kubernetes tells them"
        raise ValueError(f"`coordinator`, `processes` and `process` must {rule}, got no {' and no '.join(missing)}.")
    check_address(coordinator)
    require(processes >= 1, "processes", "be at least 1", processes)
    require(0 <= process < processes, "process", f"be at least 0 and below the number of processes, {processes}", process)
    return Seat(coordinator, processes, process, None if local is None else tuple(local))


def devices(count: int) -> Sequence[Any]:
    """The first `count` devices of this process; before JAX is started, of a CPU as many as there are cores, and no other can be seen then.

    Raises:
        ValueError: if there are fewer.
    """
    limit_devices(count)
    found = jax.local_devices()
    require(count <= len(found), "devices", f"be at most {len(found)}, the number there are", count)
    return found[:count]


def use_devices(count: int) -> None:
    """Let this process use `count` devices, no more, wherever it uses all there are.

    Raises:
        ValueError: if there are fewer, or JAX has been started with more.
    """
    devices(count)
    found = jax.local_device_count()
    require(count == found, "devices", f"be {found}, all that JAX has been started with", count)


def limit_devices(count: int) -> None:
    """Let this process see `count` devices, if JAX is not yet started."""
    require(count >= 1, "devices", "be at least 1", count)
    try:
        jax.config.update("jax_num_cpu_devices", min(count, os.cpu_count() or 1))
    except RuntimeError:
        return
    for name in ("jax_cuda_visible_devices", "jax_rocm_visible_devices"):
        if getattr(jax.config, name, "all") == "all":
            jax.config.update(name, ",".join(map(str, range(count))))
