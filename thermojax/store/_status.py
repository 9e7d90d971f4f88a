"""How far a run is, read while another process may be writing it."""

from pathlib import Path
from typing import NamedTuple

from thermojax.optimize import checkpoint_steps
from thermojax.store._blocks import Stage
from thermojax.store._disk import is_draft
from thermojax.store._run import is_running, read_manifest, read_summary


class Part(NamedTuple):
    """A stage of blocks or a descent of a run."""

    title: str
    made: int
    total: int
    damaged: int
    """Blocks that have a record but not its checksum."""


def stages(folder: Path) -> list[Part]:
    """Blocks and checkpoints that a run has kept; every block is read and compared with its checksum."""
    parts = []
    for stage in Stage.of(folder):
        whole, damaged = stage.read()
        parts.append(Part(stage.title, len(whole), stage.count, len(damaged)))
    for path in sorted(p for p in folder.glob("checkpoints/*") if not is_draft(p)):
        try:
            parts.append(Part(f"{path.name} (steps)", *checkpoint_steps(path), 0))
        except ValueError:
            parts.append(Part(f"{path.name} (steps)", 0, 0, 1))
    return parts


def state(folder: Path, parts: list[Part] | None = None) -> str:
    """One word for a run: running, finished, damaged (which a resumed run mends) or interrupted."""
    read_manifest(folder)
    if is_running(folder):
        return "running"
    if any(part.damaged for part in (stages(folder) if parts is None else parts)):
        return "damaged"
    return "interrupted" if read_summary(folder) is None else "finished"
