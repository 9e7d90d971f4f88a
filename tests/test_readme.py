"""The README's example, run as printed."""

import pathlib
import re
import resource
import subprocess
import sys

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()
CODE = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
PRINTED = re.search(r"```text\n(.*?)```", README, re.DOTALL).group(1)


def processor_time():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_example_prints_what_the_readme_says_within_ten_seconds():
    # Processor time, since other tests run at the same time.
    before = processor_time()
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert processor_time() - before < 10
    numbers = lambda text: [float(n) for n in re.findall(r"-?\d+\.\d+", text)]
    assert re.sub(r"-?\d+\.\d+", "#", done.stdout) == re.sub(r"-?\d+\.\d+", "#", PRINTED)
    # The last digit may turn with the device.
    assert all(abs(a - b) < 0.011 for a, b in zip(numbers(done.stdout), numbers(PRINTED), strict=True))


def test_the_example_is_ten_lines_and_the_readme_fits_a_page():
    assert len([line for line in CODE.splitlines() if line]) <= 10
    assert len(README.splitlines()) < 60
