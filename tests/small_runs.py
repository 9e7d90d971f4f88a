"""A small experiment whose blocks cost nothing, and its life under fire: run as a script, it is killed and resumed again and again.

    python small_runs.py FOLDER KILLS SEED

runs it once in peace in FOLDER/peace, then KILLS times with a SIGKILL at a random moment and again with `--resume`, and prints what came of
it as JSON. The processes are forked from one that has everything imported and has not started JAX's backend.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import sys
import time

import jax.random as jr
import numpy as np
from pydantic import Field

from thermojax.experiments import Experiment, EXPERIMENTS, Parameters, Picture, Quantity, Results
from thermojax.plots import panels
from thermojax.store import _blocks


class Tiny(Parameters):
    """Parameters of `tiny`."""

    blocks: int = Field(6, ge=1, description="how many blocks")
    scale: float = Field(1.0, gt=0, description="standard deviation")
    sleep: float = Field(0.0, ge=0, description="seconds that a block takes")
    law: str = Field("normal", description="what is drawn")


def run(p, key, progress):
    """Mean and mean square of normal numbers."""
    seed = np.asarray(jr.key_data(key)).tolist()

    def make(index):
        time.sleep(p.sleep)
        draw = np.random.default_rng([*seed, index])
        xs = p.scale * (draw.standard_normal(100) if p.law == "normal" else draw.exponential(size=100))
        return {"xs": xs, "squares": xs.reshape(50, 2) ** 2, "count": np.int32(xs.size), "lost": np.zeros(2)}

    blocks = progress.blocks("drawing", p.blocks, make)
    xs = np.ravel(blocks["xs"])
    results = Results()
    error = float(np.std(xs) / np.sqrt(xs.size))
    exact = 0.0 if p.law == "normal" else p.scale
    results.estimates["mean"] = Quantity(float(xs.mean()), "mean", stderr=error, ess=float(xs.size), exact=exact, trustworthy=xs.size > 100)
    results.estimates["mean_square"] = Quantity(float(blocks["squares"].mean()), "mean square", exact=p.scale**2 * (1 + (exact > 0)))
    figure, (ax,) = panels()
    ax.plot(xs[:50])
    ax.set(xlabel="index", ylabel="x")
    results.figures["numbers"] = Picture(figure, "The numbers drawn.")
    results.conclusions.append(f"{int(blocks['count'].sum())} numbers have mean {xs.mean():.3f}.")
    return results


TINY = Experiment("tiny", "mean of normal numbers", Tiny, run)
PROGRAM = """
from small_runs import EXPERIMENTS, TINY
EXPERIMENTS["tiny"] = TINY
from thermojax.cli import main
main()
"""


def contents(folder):
    """The bytes of every array file and the numbers of a run: what must be the same however often it was interrupted."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("blocks.zarr/**/*")) if p.is_file()}
    return files, json.loads((folder / "summary.json").read_text())["estimates"]


def leftovers(folder):
    """Files that a finished run should not have."""
    return [str(p) for p in folder.rglob("*") if p.suffix in (".draft", ".partial") or p.name == ".lock" or p.name == "checkpoints"]


def stopped_at(monkeypatch, block, error):
    """Make the run fail with `error` as it is about to write this block."""
    write = _blocks.Stage.write

    def failing(self, index, arrays):
        if index == block:
            raise error
        write(self, index, arrays)

    monkeypatch.setattr(_blocks.Stage, "write", failing)


def made_again(monkeypatch):
    """The blocks that are made from now on."""
    made = []
    write = _blocks.Stage.write
    monkeypatch.setattr(_blocks.Stage, "write", lambda self, index, arrays: (made.append(index), write(self, index, arrays)))
    return made


def forked(words):
    """The number of a new process that runs the command line."""
    number = os.fork()
    if number:
        return number
    try:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        if "THERMOJAX_SHOW" not in os.environ:
            os.dup2(silent, 2)
        sys.argv = ["thermojax", *words]
        from thermojax.cli import main

        main()
        os._exit(0)
    except SystemExit as error:
        os._exit(error.code or 0)
    except BaseException:
        os._exit(99)


def ended(number):
    """How a process ended: zero, an exit code, or minus a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def under_fire(folder, kills, seed):
    """See the module."""

    EXPERIMENTS["tiny"] = TINY
    words = ["run", "tiny", "--set", "blocks=60", "--set", "sleep=0.02", "--out"]
    times = []
    for name in ("first", "peace"):
        tick = time.perf_counter()
        assert ended(forked([*words, str(folder / name)])) == 0
        times.append(time.perf_counter() - tick)
    peace = contents(folder / "peace")
    draw = random.Random(seed)
    told = {"seconds": times, "killed": 0, "kept": [], "codes": [], "same": 0, "leftovers": leftovers(folder / "peace")}
    while told["killed"] < kills:
        out = folder / f"war-{told['killed']}"
        number = forked([*words, str(out)])
        time.sleep(draw.uniform(0.0, min(times)))
        os.kill(number, signal.SIGKILL)
        if ended(number) != -signal.SIGKILL:
            # It was quicker.
            shutil.rmtree(out)
            continue
        told["killed"] += 1
        told["kept"].append(len(list(out.glob("records/*/[0-9]*.json"))))
        told["codes"].append(ended(forked([*words, str(out), "--resume"])))
        told["same"] += (out / "summary.json").exists() and contents(out) == peace
        told["leftovers"] += leftovers(out)
    return told


if __name__ == "__main__":
    sys.stdout.write(json.dumps(under_fire(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
