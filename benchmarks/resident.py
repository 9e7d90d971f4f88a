"""The memory of this process."""

import pathlib
import resource
import sys


def peak():
    """The most mebibytes that this process has had."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        # What `getrusage` tells may be the peak of the process that started this one.
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    # Linux counts in kibibytes, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def resident():
    """The mebibytes that this process has; their peak where the system does not tell."""
    sizes = pathlib.Path("/proc/self/statm")
    return int(sizes.read_text().split()[1]) * resource.getpagesize() / 2**20 if sizes.exists() else peak()
