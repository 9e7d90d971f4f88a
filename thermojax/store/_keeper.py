"""A progress that keeps what it has."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np

from thermojax._check import require
from thermojax.experiments import Arrays, stack
from thermojax.optimize import checkpoint_steps
from thermojax.store._blocks import Stage
from thermojax.store._disk import slug, telling

Shown = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]


class Keeper:
    """The progress of a run with a folder: blocks and checkpoints go there, and come from there when the run is resumed.

    See `experiments.Progress` for what it does for an experiment.
    """

    def __init__(self, folder: Path, shown: Shown, say: Callable[[str], None]):
        """Keeps in `folder`; `shown` shows a stage to the user, `say` takes sentences for them."""
        self.folder = folder
        self.made: dict[str, tuple[int, int]] = {}
        """Of each stage of blocks, how many it has and how many it is to have."""
        self._shown = shown
        self._say = say
        self._names: set[str] = set()

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """See `experiments.Progress.stage`."""
        with self._shown(title, total) as done:
            yield done

    def blocks(self, title: str, count: int, make: Callable[[int], Arrays]) -> Arrays:
        """See `experiments.Progress.blocks`."""
        require(count >= 1, "count", "be at least 1", count)
        self._name(title)
        stage = Stage(self.folder, title)
        with telling(self.folder):
            stage.begin(count)
            whole, damaged = stage.read()
        if whole or damaged:
            lost = f"; {len(damaged)} damaged, made anew" if damaged else ""
            self._say(f"{title}: {len(whole)} of {count} blocks kept from before{lost}.")
        self.made[title] = len(whole), count
        with self._shown(title, count) as done:
            done(len(whole))
            for index in range(count):
                if index in whole:
                    continue
                block = {name: np.asarray(value) for name, value in make(index).items()}
                with telling(self.folder):
                    stage.write(index, block)
                whole[index] = block
                self.made[title] = len(whole), count
                done(len(whole))
        return stack([whole[index] for index in range(count)])

    def checkpoint(self, name: str) -> Path | None:
        """See `experiments.Progress.checkpoint`."""
        self._name(name)
        with telling(self.folder):
            (self.folder / "checkpoints").mkdir(exist_ok=True)
        path = self.folder / "checkpoints" / slug(name)
        if path.exists():
            try:
                made, total = checkpoint_steps(path)
                self._say(f"{name}: {made} of {total} steps kept from before.")
            except ValueError:
                self._say(f"{name}: the checkpoint is damaged, and is made anew.")
                path.unlink()
        return path

    def _name(self, title):
        # Two stages in one place would take each other's blocks for theirs.
        require(slug(title) not in self._names, "title", "differ from those of the other stages", repr(title))
        self._names.add(slug(title))
