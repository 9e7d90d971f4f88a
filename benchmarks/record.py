"""What a benchmark leaves behind: its numbers and its figure, and what was measured."""

import json
import os
import pathlib
import platform
import subprocess

import jax

from thermojax.store import versions

RESULTS = pathlib.Path(__file__).parent / "results"


def leave(folder, stem, found, figure, **about):
    """Write the numbers in `found`, all that is known of the run, and the figure."""
    folder.mkdir(exist_ok=True)
    record = {**about, "machine": machine(), "versions": versions(), **commit(), "found": found}
    (folder / f"{stem}.json").write_text(json.dumps(record, indent=2) + "\n")
    figure.savefig(folder / f"{stem}.png", metadata={"Software": None})


def has(device):
    """Whether JAX finds such a device."""
    try:
        return bool(jax.devices(device))
    except RuntimeError:
        return False


def machine():
    """The machine in words: its processor, how many of its cores may be used, its memory."""
    info = pathlib.Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    gibibytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.machine()}, {cores} cores, {gibibytes:.0f} GiB, {platform.system()}"


def commit():
    """The commit that was measured, and whether the tree had changes; what benchmarks have left is none."""
    git = lambda *words: subprocess.run(["git", *words], capture_output=True, text=True, cwd=RESULTS.parent).stdout.strip()
    return {"commit": git("rev-parse", "HEAD"), "clean": git("status", "--porcelain", "--", ":/", f":!{RESULTS.name}") == ""}
