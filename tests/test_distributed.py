"""Runs of several processes: the same numbers as one process, and one clear end for all if one of them ends."""

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import jax
import jax.random as jr
import numpy as np
import pytest
from typer.testing import CliRunner

from thermojax import cluster
from thermojax.cli import app
from thermojax.cluster import Seat
from thermojax.cluster._lifeline import Lifeline
from thermojax.cluster._relay import Relay
from thermojax.cluster._roll_call import call_roll
from thermojax.functionals import work
from thermojax.settings import UsageError
from thermojax.streaming import arrays_of, Keep, Moments, stream
from thermojax.sweeps import read_table

X64 = jax.dtypes.canonicalize_dtype(float).itemsize == 8
COMMAND = "from thermojax.cli import main; main()"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@contextlib.contextmanager
def processes(code, *words, count=2, cwd=None, **env):
    """`count` processes of one run, which do not outlive the test: `{seat}` in `code`, and in the words, stands for their places."""
    address = f"127.0.0.1:{free_port()}"
    environment = {**os.environ, "JAX_ENABLE_X64": str(int(X64)), "PYTHONPATH": os.pathsep.join(sys.path), **env}
    started = []
    try:
        for i in range(count):
            place = ["--distributed", "--coordinator", address, "--processes", str(count), "--process", str(i)] if words else []
            text = code.replace("{seat}", f"Seat({address!r}, {count}, {i})")
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
            started.append(subprocess.Popen([sys.executable, "-c", text, *words, *place], env=environment, cwd=cwd, **pipes))
        yield started
    finally:
        for one in started:
            one.kill()
            one.communicate()


def ends(started, timeout=240):
    """Exit code, output and errors of each."""
    found = []
    for one in started:
        out, err = one.communicate(timeout=timeout)
        found.append((one.returncode, out, err))
    return found


def at_once(*works):
    """What each of some functions, called side by side, returns or raises."""
    found: list[Any] = [None] * len(works)

    def call(k, work):
        try:
            found[k] = work()
        except ValueError as error:
            found[k] = error

    threads = [threading.Thread(target=call, args=pair) for pair in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


@pytest.mark.parametrize("address", ["here", "here:", ":80", "here:no", "here:0", "here:70000", "here:-1", ""])
def test_an_address_has_a_host_and_a_port(address):
    with pytest.raises(ValueError, match=r"^`coordinator` must be HOST:PORT, with a port between 1 and 65535, got '.*'\.$"):
        cluster.check_address(address)


def test_ports_are_after_the_last_colon():
    assert cluster.check_address("[::1]:80") == ("::1", 80)
    assert cluster.check_address("node-7.cluster:12321") == ("node-7.cluster", 12321)


@pytest.fixture
def no_scheduler(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "JAX_COORDINATOR", "TPU_", "CLOUD_TPU")):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ((None, None, None), "where neither SLURM, Open MPI nor Kubernetes tells them, got no `coordinator` and no `processes`"),
        (("here:80", 2, None), "must be given where neither SLURM, Open MPI nor Kubernetes tells them, got no `process`."),
        (("here:80", 2, 2), "`process` must be at least 0 and below the number of processes, 2, got 2."),
        (("here:80", 2, -1), "`process` must be at least 0 and below the number of processes, 2, got -1."),
        (("here:80", 0, 0), "`processes` must be at least 1, got 0."),
        (("here", 2, 0), "`coordinator` must be HOST:PORT"),
    ],
)
def test_places_that_have_no_meaning_are_refused(given, sentence, no_scheduler):
    with pytest.raises(ValueError, match="must") as error:
        cluster.seat(*given)
    assert sentence in str(error.value)


def test_the_scheduler_tells_the_place(no_scheduler):
    slurm = {"JOB_ID": "71234", "STEP_NODELIST": "node[007-009]", "NTASKS": "6", "PROCID": "4", "LOCALID": "1", "STEP_NUM_NODES": "3"}
    for name, value in slurm.items():
        no_scheduler.setenv(f"SLURM_{name}", value)
    found = cluster.seat()
    assert found[1:] == (6, 4, (1,))
    assert cluster.check_address(found.coordinator)[0] == "node007"
    # What is given goes before.
    assert cluster.seat("here:80", 2, 0) == Seat("here:80", 2, 0)


def test_more_devices_than_there_are_are_refused():
    number = jax.local_device_count()
    assert list(cluster.devices(number)) == jax.local_devices()
    with pytest.raises(ValueError, match=rf"^`devices` must be at most {number}, the number there are, got {number + 6}\.$"):
        cluster.devices(number + 6)
    with pytest.raises(ValueError, match=r"^`devices` must be at least 1, got 0\.$"):
        cluster.devices(0)


def roll(*seats, timeout=20.0, tasks=None):
    tasks = ["work"] * len(seats) if tasks is None else tasks
    return at_once(*(lambda seat=seat, task=task: call_roll(seat, task, timeout=timeout) for seat, task in zip(seats, tasks, strict=True)))


def test_roll_call():
    address = f"127.0.0.1:{free_port()}"
    found = roll(*(Seat(address, 3, i) for i in (2, 0, 1)))
    assert set(found[1][0]) == {1, 2}
    assert set(found[0][0]) == set(found[2][0]) == {0}
    told = {json.dumps(entry[1]) for entry in found}
    assert len(told) == 1
    assert "127.0.0.1:" in told.pop()
    # Connections are those of the processes that they are said to be of.
    found[1][0][2].sendall(b"x")
    assert found[0][0][0].recv(1) == b"x"
    for connections, _ in found:
        for connection in connections.values():
            connection.close()


@pytest.mark.parametrize(
    ("seats", "tasks", "sentence"),
    [
        (((2, 0), (3, 1)), None, "`processes` must be 2 as in process 0, got 3 in process 1."),
        (((3, 0), (3, 1), (3, 1)), None, "`process` must differ between processes, got 1 twice."),
        (((2, 0), (2, 1)), ["this", "that"], "`process` must be asked for the same as process 0, this, got 1 with that."),
    ],
)
def test_processes_that_do_not_fit_are_told_so(seats, tasks, sentence):
    address = f"127.0.0.1:{free_port()}"
    found = roll(*(Seat(address, *seat) for seat in seats), tasks=tasks)
    assert [str(error) for error in found] == [sentence] * len(seats)


def test_who_does_not_call_is_named():
    address = f"127.0.0.1:{free_port()}"
    found = roll(*(Seat(address, 4, i) for i in (0, 2)), timeout=1.0)
    rule = f"`processes` must all call at {address} within 1 s, got 2 of 4: no 1, 3."
    assert [str(error) for error in found] == [rule] * 2


def test_a_wrong_address_ends_in_a_sentence_in_time():
    address = f"127.0.0.1:{free_port()}"
    tick = time.monotonic()
    with pytest.raises(ValueError, match="`coordinator` must be the address at which process 0 waits") as error:
        call_roll(Seat(address, 2, 1), "work", timeout=1.0)
    assert time.monotonic() - tick < 10
    assert str(error.value) == f"`coordinator` must be the address at which process 0 waits within 1 s, got {address} (Connection refused)."
    with pytest.raises(ValueError, match=r"got no-such-host\.invalid:80 \("):
        call_roll(Seat("no-such-host.invalid:80", 2, 1), "work", timeout=0.3)


def test_something_else_at_the_address_is_noticed():
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"

        def serve():
            connection, _ = other.accept()
            connection.recv(1)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n")
            connection.close()

        _, refused = at_once(serve, lambda: call_roll(Seat(address, 2, 1), "work", timeout=5.0))
        assert "no answer of a process of this run" in str(refused)
        # The port is taken.
        with pytest.raises(ValueError, match=r"`coordinator` must have a port that is free in process 0, got \d+ \("):
            call_roll(Seat(address, 2, 0), "work", timeout=1.0)


def test_strangers_do_not_disturb_the_roll_call():
    port = free_port()
    stranger = threading.Thread(target=shout, args=(port,))
    stranger.start()
    found = roll(Seat(f"127.0.0.1:{port}", 2, 0), timeout=2.0)
    stranger.join()
    assert "got 1 of 2: no 1." in str(found[0])


def shout(port):
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(b"[1, 2]\n")
            return
        time.sleep(0.01)


class Pair:
    """Two ends of a lifeline in one process; the far one may be a socket that says nothing."""

    def __init__(self, heartbeat, silent):
        self.there: Any
        here, there = socket.socketpair()
        self.lost, self.heard = [], threading.Event()
        self.here = Lifeline(0, {1: here}, heartbeat, self._hear)
        self.there = there if silent else Lifeline(1, {0: there}, heartbeat, lambda what: None)

    def _hear(self, what):
        self.lost.append(what)
        self.heard.set()


@contextlib.contextmanager
def lifeline(heartbeat=30.0, *, silent=False):
    pair = Pair(heartbeat, silent)
    yield pair
    pair.here.close()
    pair.there.close()


def test_a_closed_lifeline_is_a_death():
    with lifeline(silent=True) as pair:
        pair.there.close()
        assert pair.heard.wait(10)
        assert pair.lost == ["process 1 has died"]


def test_silence_is_a_death_in_the_end():
    with lifeline(0.5, silent=True) as pair:
        assert pair.heard.wait(10)
        assert pair.lost[0].startswith("process 1 has died or cannot be reached")


def test_who_beats_lives():
    with lifeline(0.5) as pair:
        assert not pair.heard.wait(2.0)


def test_an_error_is_told_from_a_death():
    with lifeline() as pair:
        pair.there.fail()
        assert pair.heard.wait(10)
        assert pair.lost == ["process 1 ended early, as its own output tells"]


def test_who_is_done_may_go():
    with lifeline() as pair:
        pair.there.say_done()
        pair.here.wait_for_done()
        pair.there.close()
        assert not pair.heard.wait(0.5)


def test_a_relay_stays_open_when_the_other_side_is_closed():
    with socket.create_server(("127.0.0.1", 0)) as service:
        relay = Relay(*service.getsockname()[:2])
        with socket.create_connection(cluster.check_address(relay.address), timeout=10) as near:
            far, _ = service.accept()
            near.sendall(b"ping")
            assert far.recv(4) == b"ping"
            far.sendall(b"pong")
            assert near.recv(4) == b"pong"
            far.close()
            near.settimeout(0.5)
            with pytest.raises(TimeoutError):
                near.recv(1)
        relay.close()


# A run that holds what two processes have to do with each other: bits of streams, of rounds without work, and of what is told.
STREAMS = """
import hashlib, jax, jax.random as jr, numpy as np
from thermojax import cluster
from thermojax.cluster import Seat
from test_distributed import fingerprint

with cluster.joined({seat}, timeout=120) as crew:
    assert (jax.process_count(), jax.device_count()) == (2, 2)
    sent = {"name": np.asarray("a ü"), "deep/er": np.array([[True, False]]), "big": np.array([2**53 + 1, -1]), "nan": np.array([np.nan])}
    told = crew.tell(sent if crew.leads else None)
    assert all(told[name].dtype == a.dtype and told[name].tobytes() == a.tobytes() for name, a in sent.items())
    print(fingerprint())
"""


def fingerprint():
    """Of statistics of 48 blocks, three units of work: in the second round the second process has none."""
    from test_streaming import START, TRAP, TS

    found = stream({"m": Moments(), "k": Keep()}, work, TRAP, START, TS, samples=384, block=8, key=jr.key(5))
    digest = hashlib.sha256()
    for array in jax.tree.leaves(arrays_of(found)):
        digest.update(np.asarray(array).tobytes())
    return digest.hexdigest()


def test_two_processes_give_the_bits_of_one():
    with processes(STREAMS) as started:
        found = ends(started)
    for code, out, err in found:
        assert (code, err) == (0, "")
        assert out.split() == [fingerprint()]


# Collectives for ever, each of which all must take part in.
ENDLESS = """
import os, sys, time
import numpy as np
from thermojax import cluster
from thermojax.cluster import Seat

with cluster.joined({seat}, timeout=120) as crew:
    crew.last_words = lambda: "Go on."
    turn = 0
    while True:
        turn = int(crew.tell({"turn": np.asarray(turn + 1)})["turn"])
        if turn == 3:
            print("begun", flush=True)
        {what}
"""


@pytest.mark.parametrize("victim", [1, 0])
def test_the_death_of_one_process_ends_the_others_with_a_sentence(victim):
    with processes(ENDLESS.replace("{what}", "time.sleep(0.01)")) as started:
        assert started[1 - victim].stdout.readline() == "begun\n"
        started[victim].send_signal(signal.SIGKILL)
        tick = time.monotonic()
        ((code, out, err),) = ends([started[1 - victim]], timeout=60)
    assert time.monotonic() - tick < 30
    assert (code, out) == (1, "")
    assert err == f"Error: Process {victim} has died, and with it the run of 2 processes. Go on.\n"


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_others():
    what = "if turn == 5 and not crew.leads: raise RuntimeError('mine')"
    with processes(ENDLESS.replace("{what}", what)) as started:
        (code, _, err), (other_code, _, other_err) = ends(started)
    assert (code, other_code) == (1, 1)
    assert err == "Error: Process 1 ended early, as its own output tells, and with it the run of 2 processes. Go on.\n"
    assert other_err.endswith("RuntimeError: mine\n")


@pytest.mark.slow
def test_the_command_line_tells_a_wrong_address_in_a_sentence(tmp_path):
    place = ["--distributed", "--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", "--process", "1", "--timeout", "1"]
    command = [sys.executable, "-c", COMMAND, "run", "quartic-trap", *place]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: `coordinator` must be the address at which process 0 waits within 1 s, got 127.0.0.1:")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["quartic-trap", "--process", "1"], "`--coordinator`, `--processes` and `--process` must come with `--distributed`, got none."),
        (["moving-trap", "--distributed", "--sweep", "tau=1,2"], "`experiment` must be one of those that run their points side by side"),
    ],
)
def test_the_command_line_refuses(words, sentence):
    refused = CliRunner().invoke(app, ["run", *words]).exception
    assert isinstance(refused, UsageError)
    assert str(refused).startswith(sentence)


def test_the_command_line_refuses_more_devices_than_cores(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    cores = os.cpu_count() or 1
    command = [sys.executable, "-c", COMMAND, "run", "quartic-trap", "--devices", str(cores + 6)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 2
    assert done.stderr == f"Error: `devices` must be at most {cores}, the number there are, got {cores + 6}.\n"
    assert not list(tmp_path.iterdir())


SMALL = ["run", "quartic-trap", "--set", "samples=40000", "--set", "steps=5", "--set", "kept=4096", "--seed", "4"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return alone("--out", "one", cwd=tmp_path_factory.mktemp("one")) / "one"


def alone(*words, cwd):
    environment = {**os.environ, "JAX_ENABLE_X64": str(int(X64))}
    command = [sys.executable, "-c", COMMAND, *SMALL, *words]
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, timeout=240, env=environment)
    return cwd


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, 0])
def test_a_run_that_lost_a_process_is_resumed_to_the_same_numbers(victim, uninterrupted, tmp_path):
    with processes(COMMAND, *SMALL, "--out", "two", cwd=tmp_path) as started:
        wait_for(lambda: len(list((tmp_path / "two").glob("records/*/*"))) >= 2)
        started[victim].send_signal(signal.SIGKILL)
        code, _, err = ends(started)[1 - victim]
    assert code == 1
    assert err.startswith(f"Error: Process {victim} has died, and with it the run of 2 processes. What was kept is in two")
    assert "--resume" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "two" / "summary.json").exists()
    if victim == 0:
        # One process may go on with what two began.
        alone("--out", "two", "--resume", cwd=tmp_path)
    else:
        with processes(COMMAND, *SMALL, "--out", "two", "--resume", cwd=tmp_path) as started:
            (code, out, err), other = ends(started)
        assert (code, err) == (0, "")
        assert "blocks kept from before" in out
        assert other == (0, "", "")
    one, two = (json.loads((folder / "summary.json").read_text()) for folder in (uninterrupted, tmp_path / "two"))
    assert one["estimates"] == two["estimates"]
    assert one["conclusions"] == two["conclusions"]


@pytest.mark.slow
def test_a_sweep_over_two_processes_has_the_numbers_of_one(tmp_path):
    swept = ["--sweep", "beta=1,2"]
    alone(*swept, "--out", "one", cwd=tmp_path)
    with processes(COMMAND, *SMALL, *swept, "--out", "two", cwd=tmp_path) as started:
        wait_for(lambda: len(list((tmp_path / "two").glob("records/*/*"))) >= 2)
        started[1].send_signal(signal.SIGKILL)
        code, _, err = ends(started)[0]
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("Error: Process 1 has died, and with it the run of 2 processes. What was kept is in two")
    # Resumed, and once more when there is nothing left to run.
    for again in (False, True):
        with processes(COMMAND, *SMALL, *swept, "--out", "two", "--resume", cwd=tmp_path) as started:
            (code, out, err), other = ends(started)
        assert (code, err) == (0, "")
        assert ("blocks kept from before" in out) != again
        assert other == (0, "", "")
    one, two = (read_table(tmp_path / name) for name in ("one", "two"))
    assert list(one.summaries) == list(two.summaries) == [0, 1]
    assert all(one.summaries[k]["estimates"] == two.summaries[k]["estimates"] for k in one.summaries)
    assert one.summaries[0]["estimates"] != one.summaries[1]["estimates"]


SHARDED = """
import equinox as eqx, jax, jax.numpy as jnp, jax.random as jr, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from thermojax import accumulate, Overdamped
from thermojax.functionals import log_ratio, work
from thermojax.potentials import Harmonic
from thermojax.protocols import Ramp

trap, ts = Overdamped(Harmonic(2.0), Ramp(0.0, 1.0)), jnp.linspace(0.0, 1.0, 11)
x0s = jr.normal(jr.key(0), (64, 1))
sharding = NamedSharding(Mesh(np.array(jax.devices()), ("sample",)), PartitionSpec("sample"))


@jax.jit
def run(trap, x0s):
    def loss(trap):
        x1s, sums = accumulate((work, log_ratio), trap, x0s, ts, key=jr.key(1))
        return jnp.mean(sums[0]), (x1s, *sums)

    return jax.value_and_grad(loss, has_aux=True)(trap)


(held_mean, held), held_slopes = run(trap, x0s)
(mean, found), slopes = run(trap, jax.device_put(x0s, sharding))
assert jax.device_count() == 4
eps = 50 * jnp.finfo(x0s.dtype).eps
for one, other in zip(found, held, strict=True):
    assert one.sharding.is_equivalent_to(sharding, one.ndim), one.sharding
    assert len({shard.device for shard in one.addressable_shards}) == 4
    assert np.max(np.abs(np.asarray(one) - np.asarray(other))) < 10 * eps
assert abs(float(mean) - float(held_mean)) < eps
for one, other in zip(jax.tree.leaves(slopes), jax.tree.leaves(held_slopes), strict=True):
    assert one.sharding.is_fully_replicated
    assert abs(float(one) - float(other)) < eps
# The gradient is that of all trajectories, not of those of one device.
(_, _), part = run(trap, x0s[:16])
assert abs(float(part.potential.stiffness) - float(held_slopes.potential.stiffness)) > 1e-3

# No device waits for another between steps.
steps = jax.jit(lambda x0s: accumulate(work, trap, x0s, ts, key=jr.key(1))).lower(jax.device_put(x0s, sharding)).compile().as_text()
assert "all-gather" not in steps and "all-to-all" not in steps and "collective-permute" not in steps
"""


@pytest.mark.slow
def test_trajectories_sharded_by_the_caller_stay_so():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_ENABLE_X64": str(int(X64))}
    done = subprocess.run([sys.executable, "-c", SHARDED], env={**os.environ, **flags}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def wait_for(found, timeout=240):
    until = time.monotonic() + timeout
    while not found():
        assert time.monotonic() < until
        time.sleep(0.02)
