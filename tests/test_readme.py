"""The README's example, run as printed."""

import os
import pathlib
import re
import subprocess
import sys

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()
CODE = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
PRINTED = re.search(r"```text\n(.*?)```", README, re.DOTALL).group(1)


# Processor seconds of the example after its imports go to the error stream.
TIMED = f"""
import sys, time, jax, thermojax
wall, processor = time.perf_counter(), time.process_time()
{CODE}
print(time.perf_counter() - wall, time.process_time() - processor, file=sys.stderr)
"""


def run_cold():
    # Nothing that other tests have compiled is there to be found.
    cold = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run([sys.executable, "-c", TIMED], capture_output=True, text=True, check=True, env=cold)
    return done.stdout, min(float(seconds) for seconds in done.stderr.splitlines()[-1].split())


def test_the_example_prints_what_the_readme_says_and_compiles_and_runs_within_six_seconds():
    printed, seconds = run_cold()
    # Other tests run at the same time. Alone it takes no more wall seconds than it does here, and no more than processor seconds.
    assert seconds < 6 or run_cold()[1] < 6
    numbers = lambda text: [float(n) for n in re.findall(r"-?\d+\.\d+", text)]
    assert re.sub(r"-?\d+\.\d+", "#", printed) == re.sub(r"-?\d+\.\d+", "#", PRINTED)
    # The last digit may turn with the device.
    assert all(abs(a - b) < 0.011 for a, b in zip(numbers(printed), numbers(PRINTED), strict=True))


def test_the_example_is_ten_lines_and_the_readme_fits_a_page():
    assert len([line for line in CODE.splitlines() if line]) <= 10
    assert len(README.splitlines()) < 60
