"""What a benchmark leaves behind: its numbers, and what was measured."""

import argparse
import json
import pathlib
import subprocess

from thermojax.store import versions


def run(main, description):
    """Run a benchmark from the command line; write what it returns to ``benchmarks/results`` unless it is the small version."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--smoke", action="store_true", help="a small version, in seconds")
    options = parser.parse_args()
    result = main(smoke=options.smoke) | {"versions": versions(), **commit()}
    if not options.smoke:
        folder = pathlib.Path(__file__).parent / "results"
        folder.mkdir(exist_ok=True)
        name = pathlib.Path(main.__code__.co_filename).stem
        (folder / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")


def commit():
    """The commit that was measured, and whether the tree had changes."""
    git = lambda *words: subprocess.run(["git", *words], capture_output=True, text=True).stdout.strip()
    return {"commit": git("rev-parse", "HEAD"), "clean": git("status", "--porcelain") == ""}
