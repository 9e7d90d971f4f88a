"""What does a step of one trajectory cost, against the number of trajectories, their dimension, the block of a stream and the devices?

A driven quartic trap with work and log-ratio, float32. Nanoseconds of a step: of `accumulate` for ensembles of all sizes (the calls of
small ones cost more than their steps), and for coordinates that do not interact, of each coordinate; of `stream` for blocks of several
sizes. Devices: the same stream on 1, 2 and 4 host devices (``--xla_force_host_platform_device_count``), each in a process of its own,
whose mean work must be the same to the last bit; on a machine with accelerators, on the first 1, 2, … of those that there are.
"""

import json
import os
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import jax.random as jr

from thermojax.ensemble import accumulate
from thermojax.functionals import log_ratio, work
from thermojax.plots import COLOURS, panels
from thermojax.speed import interleaved, quartic_trap
from thermojax.streaming import BLOCK, Moments, stream


def ensemble(samples, dim, steps):
    """A job that sums work and log-ratio of so many trajectories of so many coordinates."""
    dynamics, ts, x0s = quartic_trap(), jnp.linspace(0.0, 1.0, steps + 1), jnp.zeros((samples, dim))
    return lambda key: accumulate((work, log_ratio), dynamics, x0s, ts, key=key)


def streamed(samples, steps, block, devices=None):
    """A job that streams so many trajectories through the moments of both."""
    dynamics, ts = quartic_trap(), jnp.linspace(0.0, 1.0, steps + 1)
    moments = (Moments(), Moments())
    devices = None if devices is None else jax.devices()[:devices]
    return lambda key: stream(
        moments, (work, log_ratio), dynamics, jnp.zeros(1), ts, samples=samples, block=block, devices=devices, key=key
    )


def on_devices(samples, steps, rounds, devices):
    """Seconds of the stream on each number of devices, in turns, and the mean work of the first round to the last bit."""
    jobs = {count: streamed(samples, steps, BLOCK, count) for count in devices}
    laps, means = {count: [] for count in jobs}, {}
    for k in range(rounds + 1):
        for count, job in jobs.items():
            tick = time.perf_counter()
            found = job(jr.key(k))
            means.setdefault(count, float(found[0].estimate().value).hex())
            laps[count].append(time.perf_counter() - tick)
    return {count: {"seconds": statistics.median(times[1:]), "mean_work": means[count]} for count, times in laps.items()}


def against_devices(samples, steps, rounds, most):
    """The table of devices."""
    counts = [count for count in (1, 2, 4, 8) if count <= most]
    if jax.default_backend() == "cpu":
        # The devices of a process are made at its start; those that are not used sleep.
        code = (
            f"import json; from benchmarks.scaling import on_devices; print(json.dumps(on_devices({samples}, {steps}, {rounds}, {counts})))"
        )
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={max(counts)}"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"XLA_FLAGS": flags}
        )
        found = json.loads(done.stdout.splitlines()[-1])
    else:
        found = {str(k): row for k, row in on_devices(samples, steps, rounds, [c for c in counts if c <= len(jax.devices())]).items()}
    for row in found.values():
        row["times_as_fast_as_one"] = found["1"]["seconds"] / row["seconds"]
    same = len({row["mean_work"] for row in found.values()}) == 1
    print(f"{samples} trajectories x {steps} steps; {'the same bits' if same else 'OTHER BITS'} on all")
    for count, row in found.items():
        rate = samples * steps / row["seconds"] / 1e6
        print(f"{count:>3s} devices: {rate:8.1f} million steps/s, {row['times_as_fast_as_one']:.2f} x one device")
    return {"samples": samples, "steps": steps, "same_bits": same, "rows": found}


def nanoseconds(name, jobs, works, rounds):
    """Nanoseconds of each unit of work, in turns."""
    seconds = interleaved(jobs, rounds=rounds)
    found = {str(size): 1e9 * seconds[size] / works[size] for size in jobs}
    print(f"ns of a step, by {name}: " + ", ".join(f"{size}: {ns:.1f}" for size, ns in found.items()))
    return found


def measure(*, smoke, peers):
    """The tables."""
    del peers
    total, rounds = (20_000, 2) if smoke else (20_000_000, 5)
    steps_of = lambda count: max(10, min(1000, total // count))
    sizes = (100, 1000) if smoke else (100, 1000, 4096, 10_000, 65_536, 100_000, 1_000_000)
    dims = (1, 3) if smoke else (1, 2, 3, 10, 30, 100)
    # Of a block that is half empty the empty half costs the same.
    blocks, samples = ((1024,), 2048) if smoke else ((1024, 4096, 16_384, 65_536), 131_072)
    few = 10 if smoke else 200
    return {
        "trajectories": nanoseconds(
            "trajectories",
            {n: ensemble(n, 1, steps_of(n)) for n in sizes},
            {n: n * steps_of(n) for n in sizes},
            rounds,
        ),
        "dimension": nanoseconds(
            "dimension, of one coordinate",
            {d: ensemble(max(10, sizes[-2] // d), d, 20) for d in dims},
            {d: max(10, sizes[-2] // d) * d * 20 for d in dims},
            rounds,
        ),
        "block": nanoseconds(
            "block of a stream", {b: streamed(samples, few, b) for b in blocks}, dict.fromkeys(blocks, samples * few), rounds
        ),
        "devices": against_devices(samples, few if smoke else 1000, 1 if smoke else 5, 2 if smoke else 4),
    }


def draw(found):
    """The costs of a step and the rate on several devices."""
    figure, axes = panels(2, rows=2, width=4.2, height=2.8)
    labels = {"trajectories": "trajectories", "dimension": "dimension", "block": "trajectories in a block of a stream"}
    for ax, (name, label) in zip(axes, labels.items(), strict=False):
        ax.plot([int(size) for size in found[name]], list(found[name].values()), "o-", color=COLOURS["first"])
        each = " of a coordinate" if name == "dimension" else ""
        ax.set(xscale="log", xlabel=label, ylabel=f"ns of a step{each}")
        ax.set(**{"yscale": "log"} if name == "trajectories" else {"ylim": (0, 1.15 * max(found[name].values()))})
    rows = found["devices"]["rows"]
    counts = [int(count) for count in rows]
    axes[3].plot(counts, [row["times_as_fast_as_one"] for row in rows.values()], "o-", color=COLOURS["first"], label="measured")
    axes[3].plot(counts, counts, "--", color=COLOURS["exact"], linewidth=1, label="as many times")
    axes[3].set(xlabel="devices", ylabel="speed / one device", xticks=counts)
    axes[3].legend(frameon=False, fontsize=8)
    return figure
