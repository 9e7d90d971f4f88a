"""The roll call: every process tells process 0 that it is there, over connections that then stay open."""

import json
import socket
import time
from typing import Any, NamedTuple

from thermojax._check import require

# A stranger that calls at the address must not keep the others waiting.
_PATIENCE = 5.0


class Seat(NamedTuple):
    """The place of a process among those of a run."""

    coordinator: str
    processes: int
    process: int
    local: tuple[int, ...] | None = None
    """Numbers of the devices of this machine that are its own; all if None."""


def check_address(address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``.

    Raises:
        ValueError: if it is something else.
    """
    host, colon, port = address.rpartition(":")
    good = bool(colon and host) and port.isascii() and port.isdigit() and 0 < int(port) < 65536
    require(good, "coordinator", "be HOST:PORT, with a port between 1 and 65535", f"'{address}'")
    return host.strip("[]"), int(port)


def call_roll(seat: Seat, task: str, *, timeout: float) -> tuple[dict[int, socket.socket], dict[str, Any]]:
    """Wait until all processes are there.

    Args:
        seat: Which process this is.
        task: What it was asked for, the same for all.
        timeout: Seconds to wait.

    Returns:
        Connections by the number of the process, of process 0 to all others and of the others to process 0; and what process 0 tells all:
        the `address` for JAX's own service.

    Raises:
        ValueError: if some do not call in time, or do not fit.
    """
    if seat.process == 0:
        return _take_roll(seat, task, time.monotonic() + timeout, timeout)
    connection, told = _answer_roll(seat, task, time.monotonic() + timeout, timeout)
    return {0: connection}, told


def _take_roll(seat, task, deadline, timeout):
    host, port = check_address(seat.coordinator)
    callers: dict[int, socket.socket] = {}
    calls = []
    try:
        with _listening(host, port) as listener:
            while len(callers) < seat.processes - 1:
                listener.settimeout(max(deadline - time.monotonic(), 0.01))
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    missing = ", ".join(str(i) for i in range(1, seat.processes) if i not in callers)
                    rule = f"all call at {seat.coordinator} within {timeout:g} s"
                    raise ValueError(f"`processes` must {rule}, got {len(callers) + 1} of {seat.processes}: no {missing}.") from None
                calls.append(connection)
                hello = _hello(connection)
                if hello is not None:
                    callers[_checked(hello, seat, task, callers)] = connection
        told = {"address": f"{seat.coordinator.rpartition(':')[0]}:{_free_port(host)}"}
    except (ValueError, OSError) as error:
        for connection in calls:
            _send(connection, {"refused": str(error)})
            connection.close()
        raise
    for connection in calls:
        if connection not in callers.values():
            connection.close()
    for connection in callers.values():
        _send(connection, told)
    return callers, told


def _checked(hello, seat, task, callers):
    """The number of a process that calls, if it fits."""
    number, processes = hello["process"], hello["processes"]
    require(processes == seat.processes, "processes", f"be {seat.processes} as in process 0", f"{processes} in process {number}")
    require(number != 0 and number not in callers, "process", "differ between processes", f"{number} twice")
    require(hello["task"] == task, "process", f"be asked for the same as process 0, {task}", f"{number} with {hello['task']}")
    return number


def _answer_roll(seat, task, deadline, timeout):
    host, port = check_address(seat.coordinator)
    where = f"be the address at which process 0 waits within {timeout:g} s"
    trouble: object = "no answer"
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=max(deadline - time.monotonic(), 0.01))
            break
        except OSError as error:
            trouble = error.strerror or "no answer"
            if time.monotonic() > deadline - 0.2:
                raise ValueError(f"`coordinator` must {where}, got {seat.coordinator} ({trouble}).") from None
            time.sleep(0.2)
    try:
        _send(connection, {"thermojax": 1, "processes": seat.processes, "process": seat.process, "task": task})
        # The others may be late: process 0 says so, if it is there.
        told = _receive(connection, deadline + _PATIENCE)
        if not isinstance(told, dict):
            raise ValueError(f"`coordinator` must {where}, got {seat.coordinator} (no answer of a process of this run).")
        if "refused" in told:
            raise ValueError(told["refused"])
    except BaseException:
        connection.close()
        raise
    return connection, told


def _hello(connection):
    """What a process says that calls; None of a stranger."""
    hello = _receive(connection, time.monotonic() + _PATIENCE)
    if not isinstance(hello, dict) or hello.get("thermojax") != 1 or not {"process", "processes", "task"} <= hello.keys():
        return None
    return hello


def _send(connection, message):
    try:
        connection.settimeout(_PATIENCE)
        connection.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        # Who is gone is seen when the connection is read.
        pass


def _receive(connection, deadline) -> Any:
    """One line of JSON; None if there comes none."""
    line = b""
    while not line.endswith(b"\n") and len(line) < 65536:
        try:
            connection.settimeout(max(deadline - time.monotonic(), 0.01))
            # Byte by byte: what follows the line belongs to the next reader.
            byte = connection.recv(1)
        except OSError:
            return None
        if not byte:
            return None
        line += byte
    try:
        return json.loads(line)
    except ValueError:
        return None


def _listening(host, port):
    """All addresses of this machine, unless the host is this machine to itself: a name may mean another address here than elsewhere."""
    try:
        if _is_loopback(host):
            return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024)
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
        return socket.create_server(("", port), backlog=1024)
    except OSError as error:
        raise ValueError(f"`coordinator` must have a port that is free in process 0, got {port} ({error.strerror}).") from None


def _is_loopback(host):
    return host in ("localhost", "::1") or host.startswith("127.")


def _free_port(host):
    with _listening(host, 0) as probe:
        return probe.getsockname()[1]
