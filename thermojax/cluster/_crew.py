"""A run of several processes: it begins when all are there, and ends for all when it ends for one."""

import atexit
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np

from thermojax._check import require
from thermojax.cluster._lifeline import end_process, Lifeline
from thermojax.cluster._relay import Relay
from thermojax.cluster._roll_call import call_roll, check_address, Seat
from thermojax.cluster._seats import limit_devices, use_devices


class Crew:
    """The processes of a run, seen by one of them; `joined` makes it."""

    def __init__(self, seat: Seat):
        """See `joined`."""
        self.seat = seat
        self.leads = seat.process == 0
        """Whether this is process 0, the only one that prints and writes files."""
        self.last_words: Callable[[], str] = lambda: ""
        """Called when another process is lost: what the user is told besides."""
        self._scratch: Path | None = None

    def tell(self, arrays: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """The named arrays that process 0 gives, in all processes; the others give nothing, and wait.

        Types, shapes and bits stay as they are; dates and objects cannot be told.
        """
        content = _packed(arrays or {}) if self.leads else b""
        size = int(_from_leader(np.array([len(content)], np.uint32))[0])
        # In powers of two, for which there are few functions to compile.
        room = np.zeros(1 << max(size - 1, 1).bit_length(), np.uint8)
        room[: len(content)] = np.frombuffer(content, np.uint8)
        return _unpacked(_from_leader(room)[:size].tobytes())

    def scratch(self) -> Path:
        """A folder of this process, which does not outlive it."""
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="thermojax-"))
        return self._scratch

    def end_alone(self, what: str) -> None:
        """End this process because another one has ended."""
        sentence = f"Error: {what[:1].upper()}{what[1:]}, and with it the run of {self.seat.processes} processes."
        try:
            words = self.last_words()
        except Exception:  # noqa: BLE001
            # They must not keep this process from ending.
            words = ""
        os.write(2, f"{sentence}{' ' if words else ''}{words}\n".encode())
        self.clean()
        end_process(1)

    def clean(self) -> None:
        """Remove what is in `scratch`."""
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)


# The lifeline of the run that this process takes part in: a process can be in one only.
_LINES: list[Lifeline] = []


@contextmanager
def joined(seat: Seat, *, task: str = "", devices: int | None = None, timeout: float = 60.0, heartbeat: float = 60.0) -> Iterator[Crew]:
    """Take part in a run of several processes, which lasts as long as the body, in all of them.

    An exception in the body of one process ends the others with a sentence and exit code 1; so does its death.

    Args:
        seat: Which process this is; see `cluster.seat`.
        task: What is run, in words; processes that were asked for different things are refused.
        devices: How many devices each process uses; as many as JAX finds if omitted.
        timeout: Seconds until all processes must be there.
        heartbeat: Seconds without a sign of life after which a process counts as dead. One that ends, by whatever means, is noticed at
            once; this is for machines that lose power or their network.

    Raises:
        ValueError: if not all processes are there in time, do not fit, or have too few devices, or if JAX has been started before.
    """
    require(timeout > 0, "timeout", "be positive", timeout)
    require(heartbeat > 0, "heartbeat", "be positive", heartbeat)
    require(not _LINES, "joined", "be entered once in a process", "another run")
    if devices is not None:
        limit_devices(devices)
    connections, told = call_roll(seat, task, timeout=timeout)
    crew = Crew(seat)
    line = Lifeline(seat.process, connections, heartbeat, crew.end_alone)
    _LINES.append(line)
    atexit.register(_leave_after_failure)
    relay = None if crew.leads else Relay(*check_address(told["address"]))
    try:
        _start_jax(seat, told["address"] if relay is None else relay.address, devices, timeout, heartbeat)
        if devices is not None:
            use_devices(devices)
        local = jax.local_device_count()
        rule = "be the same number in every process"
        require(jax.device_count() == local * seat.processes, "devices", rule, f"{local} of {jax.device_count()} in process {seat.process}")
        with _silent_stdout():
            crew.tell({})
        yield crew
        _end_together(crew, line)
        if relay is not None:
            relay.close()
    except BaseException:
        crew.clean()
        line.fail()
        raise
    crew.clean()
    _LINES.clear()
    atexit.unregister(_leave_after_failure)


@contextmanager
def exits() -> Iterator[None]:
    """Around the whole of a program: if it ends while a run of several processes has failed, it ends at once, with its own exit code."""
    try:
        yield
    except SystemExit as end:
        _leave_after_failure(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise


def _leave_after_failure(code: int = 1) -> None:
    if any(line.failed for line in _LINES):
        end_process(code)


def _end_together(crew, line):
    """JAX's service, in process 0, ends last."""
    if not crew.leads:
        jax.distributed.shutdown()
        line.say_done()
        line.wait_for_done()
    else:
        line.wait_for_done()
        jax.distributed.shutdown()
        line.say_done()
    line.close()


def _start_jax(seat, address, devices, timeout, heartbeat):
    # By itself JAX kills a process without a word of ours when another one dies, and takes SIGTERM for itself.
    jax.config.update("jax_enable_recoverability", True)  # noqa: FBT003
    jax.config.update("jax_enable_preemption_service", False)  # noqa: FBT003
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "1":
        # JAX's own default: a warning that recoverability is experimental would reach the user.
        level = jax.config.values["jax_logging_level"]
        jax.config.update("jax_logging_level", "ERROR")
        jax.config.update("jax_logging_level", level)
    local = seat.local
    if devices is not None and local is not None:
        local = tuple(range(min(local) * devices, (min(local) + 1) * devices))
    # Before JAX's, the lifeline is to notice that somebody is silent.
    silence = max(round(2 * heartbeat), 5)
    try:
        jax.distributed.initialize(
            address,
            seat.processes,
            seat.process,
            local_device_ids=local,
            cluster_detection_method="deactivate",
            initialization_timeout=max(round(timeout), 5),
            heartbeat_timeout_seconds=silence,
            shutdown_timeout_seconds=silence,
        )
    except RuntimeError as error:
        raise ValueError(f"`joined` must be entered before anything is computed with JAX, got an error: {error}") from error


@contextmanager
def _silent_stdout():
    """The CPU collectives greet on the standard output, whose text is ours."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _from_leader(array):
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(array))


def _packed(arrays):
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{f"_{name}": np.asarray(array) for name, array in arrays.items()})
    return buffer.getvalue()


def _unpacked(content):
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        return {name.removeprefix("_"): found[name] for name in found.files}
