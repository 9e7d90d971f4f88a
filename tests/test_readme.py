"""The README's example, run as printed."""

import pathlib
import re
import subprocess
import sys
import time

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()
CODE = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
PRINTED = re.search(r"```text\n(.*?)```", README, re.DOTALL).group(1)


def test_the_example_prints_what_the_readme_says_within_ten_seconds():
    tick = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert time.perf_counter() - tick < 10
    numbers = lambda text: [float(n) for n in re.findall(r"-?\d+\.\d+", text)]
    assert re.sub(r"-?\d+\.\d+", "#", done.stdout) == re.sub(r"-?\d+\.\d+", "#", PRINTED)
    # The last digit may turn with the device.
    assert all(abs(a - b) < 0.011 for a, b in zip(numbers(done.stdout), numbers(PRINTED), strict=True))


def test_the_example_is_ten_lines_and_the_readme_fits_a_page():
    assert len([line for line in CODE.splitlines() if line]) <= 10
    assert len(README.splitlines()) < 60
