"""Ask the benchmarks' questions: ``python -m benchmarks [NAME ...] [--smoke] [--peers-python PATH] [--device gpu]``.

Each runs in a process of its own (small versions in one), prints its table and leaves ``benchmarks/results/NAME.json`` and ``NAME.png``:
the numbers, the machine and its device, versions and commit, and one figure. ``--smoke`` does small versions in seconds and leaves
nothing. Peers that cannot live beside JAX are asked through the Python of their own environment (``benchmarks/peers.txt``), in turns
with the library; without one they are left out. On a GPU or TPU the same scripts run, ``--device gpu``, and leave ``NAME-gpu.json``: the
name of the device is in it.
"""

import argparse
import importlib
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks import record
from benchmarks.remote import Peers

NAMES = [
    "throughput",
    "gradients",
    "scaling",
    "memory",
    "estimators",
    "generation",
    "optimisation",
    "training",
    "startup",
    "orders",
    "variance",
]


def main():
    """Run what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(NAMES)}; all if omitted")
    parser.add_argument("--smoke", action="store_true", help="small versions, in seconds")
    parser.add_argument("--device", choices=["cpu", "gpu", "tpu"], default="cpu")
    parser.add_argument(
        "--peers-python", default=os.environ.get("THERMOJAX_PEERS_PYTHON"), metavar="PATH", help="Python that has the peers"
    )
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(NAMES))
    if unknown:
        parser.error(f"`NAME` must be one of {', '.join(NAMES)}, got {', '.join(unknown)}.")
    if options.smoke or len(options.names) == 1:
        for name in options.names or NAMES:
            ask(name, smoke=options.smoke, device=options.device, python=options.peers_python)
        return
    flags = [word for word in sys.argv[1:] if word not in options.names]
    for name in options.names or NAMES:
        # What one has compiled, allocated or configured is not the next one's.
        code = subprocess.run([sys.executable, "-m", "benchmarks", name, *flags]).returncode
        if code:
            sys.exit(code)


def ask(name, *, smoke, device, python):
    """Run one benchmark in this process."""
    # Before JAX looks for devices itself.
    os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda,rocm", "tpu": "tpu"}[device]
    if not record.has(device):
        sys.exit(f"`--device` must be one that this machine has, got {device}: JAX finds none.")
    module = importlib.import_module(f"benchmarks.{name}")
    print(f"== {name}: {module.__doc__.split(chr(10) * 2)[0]}", flush=True)
    tick = time.perf_counter()
    with Peers(python) as peers, tempfile.TemporaryDirectory() as scratch:
        found = module.measure(smoke=smoke, peers=peers)
        folder = pathlib.Path(scratch) if smoke else record.RESULTS
        seconds = time.perf_counter() - tick
        stem = name if device == "cpu" else f"{name}-{device}"
        record.leave(folder, stem, found, module.draw(found), question=module.__doc__, seconds=seconds, peers=peers.versions)
    print(f"   ({seconds:.0f} s)\n", flush=True)


if __name__ == "__main__":
    main()
