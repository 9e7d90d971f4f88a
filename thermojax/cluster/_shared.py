"""The progress of an experiment that several processes run: process 0 keeps what there is, the others know it from there."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from thermojax.cluster._crew import Crew

# As in `experiments`, which takes long to import.
Arrays = Mapping[str, np.ndarray]


class Leader:
    """That of process 0: another progress, of which the others are told. See `experiments.Progress`."""

    def __init__(self, crew: Crew, progress: Any):
        """`progress`, an `experiments.Progress`, shows and keeps."""
        self._crew = crew
        self._progress = progress

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """See `experiments.Progress.stage`."""
        with self._progress.stage(title, total) as done:
            yield done

    def blocks(self, title: str, count: int, make: Callable[[int], Arrays]) -> Arrays:
        """See `experiments.Progress.blocks`: blocks that are to be made are made by all."""

        def together(index: int) -> Arrays:
            self._crew.tell({"index": np.asarray(index)})
            return make(index)

        found = self._progress.blocks(title, count, together)
        self._crew.tell({"index": np.asarray(-1)})
        return self._crew.tell(found)

    def checkpoint(self, name: str) -> Path | None:
        """See `experiments.Progress.checkpoint`."""
        path = self._progress.checkpoint(name)
        content = path.read_bytes() if path is not None and path.exists() else b""
        self._crew.tell({"kept": np.asarray(path is not None), "content": np.frombuffer(content, np.uint8)})
        return path


class Follower:
    """That of the other processes: nobody sees it, and what was kept comes from process 0. See `experiments.Progress`."""

    def __init__(self, crew: Crew):
        """Of the crew that this process is in."""
        self._crew = crew
        self._checkpoints = 0

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """See `experiments.Progress.stage`."""
        del title, total
        yield lambda done: None

    def blocks(self, title: str, count: int, make: Callable[[int], Arrays]) -> Arrays:
        """See `experiments.Progress.blocks`."""
        del title, count
        while (index := int(self._crew.tell()["index"])) >= 0:
            make(index)
        return self._crew.tell()

    def checkpoint(self, name: str) -> Path | None:
        """See `experiments.Progress.checkpoint`: a copy of what process 0 has."""
        del name
        told = self._crew.tell()
        if not told["kept"]:
            return None
        self._checkpoints += 1
        path = self._crew.scratch() / f"checkpoint-{self._checkpoints}"
        if told["content"].size:
            path.write_bytes(told["content"].tobytes())
        return path
