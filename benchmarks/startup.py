"""How long does the README's example take in a fresh process, and what of it is compilation?

Wall seconds of its parts, medians over fresh processes: imports; the first run with nothing compiled; the first run with JAX's persistent
cache (``JAX_COMPILATION_CACHE_DIR``) filled by a run before; and a second run in the same process. The processor time is in the file.
"""

import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

from thermojax.plots import COLOURS, panels

README = pathlib.Path(__file__).parents[1] / "README.md"
PARTS = ["import", "first run", "second run"]
# Prints seconds and processor seconds of each part, after what the example prints.
TIMED = """
import json, time
clock = lambda: (time.perf_counter(), time.process_time())
marks = [clock()]
import jax, thermojax
marks.append(clock())
for _ in range(2):
    exec({code!r}, {{}})
    marks.append(clock())
print(json.dumps([[b - a for a, b in zip(*pair)] for pair in zip(marks, marks[1:])]))
"""


def fresh(code, **environment):
    """The seconds of each part in a fresh process."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=bare | environment)
    return dict(zip(PARTS, json.loads(done.stdout.splitlines()[-1]), strict=True))


def measure(*, smoke, peers):
    """The table."""
    del peers
    example = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL).group(1)
    code, rounds, runs = TIMED.format(code=example), 1 if smoke else 5, {}
    with tempfile.TemporaryDirectory() as cache:
        # All of what is compiled, however little time it took.
        cached = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        for k in range(rounds):
            runs.setdefault("cold", []).append(fresh(code))
            if k == 0:
                fresh(code, **cached)
            runs.setdefault("cached", []).append(fresh(code, **cached))
    found = {}
    print(f"{'':10s}" + "".join(f"{part:>16s}" for part in PARTS) + "   wall (processor) seconds")
    for name, laps in runs.items():
        row = found[name] = {}
        for part in PARTS:
            wall, processor = (statistics.median(lap[part][which] for lap in laps) for which in (0, 1))
            row[part] = {"seconds": wall, "processor_seconds": processor}
        print(f"{name:10s}" + "".join(f"{row[p]['seconds']:8.2f} ({row[p]['processor_seconds']:5.2f})" for p in PARTS))
    return found


def draw(found):
    """Bars of the parts, one upon the other."""
    figure, (ax,) = panels(width=5.6, height=1.8)
    for row, parts in enumerate(found.values()):
        left = 0.0
        for part, colour in zip(PARTS, ("faint", "first", "second"), strict=True):
            ax.barh(row, parts[part]["seconds"], left=left, color=COLOURS[colour], height=0.6, label=part if row == 0 else None)
            left += parts[part]["seconds"]
    ax.set_yticks(range(len(found)), [{"cold": "nothing compiled", "cached": "persistent cache"}[name] for name in found])
    ax.set(xlabel="seconds since the start of the process")
    ax.legend(frameon=False, fontsize=8)
    return figure
