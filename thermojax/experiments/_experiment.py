"""What an experiment is: parameters that can be set, a run, and results that explain themselves."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pydantic
from jaxtyping import PRNGKeyArray as Key
from matplotlib.figure import Figure

from thermojax.estimators import Estimate


class Parameters(pydantic.BaseModel):
    """The parameters of an experiment: named, typed, bounded, each with a default and a description."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


@dataclass(frozen=True)
class Quantity:
    """One number of a report."""

    value: float
    meaning: str
    stderr: float | None = None
    ess: float | None = None
    exact: float | None = None
    trustworthy: bool | None = None


@dataclass(frozen=True)
class Picture:
    """One figure of a report, with its caption."""

    figure: Figure
    caption: str


@dataclass
class Results:
    """What a run returns."""

    estimates: dict[str, Quantity] = field(default_factory=dict)
    figures: dict[str, Picture] = field(default_factory=dict)
    conclusions: list[str] = field(default_factory=list)

    def add(
        self, name: str, estimate: Estimate, meaning: str, *, exact: float | None = None, scale: float = 1.0, shift: float = 0.0
    ) -> None:
        """Add an estimate in units of its own: ``scale * estimate + shift``."""
        self.estimates[name] = Quantity(
            float(estimate.value) * scale + shift,
            meaning,
            stderr=float(estimate.stderr) * abs(scale),
            ess=float(estimate.ess),
            exact=exact,
            trustworthy=bool(estimate.trustworthy),
        )

    def pulls(self) -> dict[str, float]:
        """How far each number of known value and error is from its exact value, in standard errors."""
        return {name: (q.value - q.exact) / q.stderr for name, q in self.estimates.items() if q.exact is not None and q.stderr}

    def tally(self) -> str:
        """How many of these are within four standard errors, in a sentence."""
        pulls = self.pulls()
        doubtful = lambda name: " (not to be trusted)" if self.estimates[name].trustworthy is False else ""
        far = [name + doubtful(name) for name, pull in pulls.items() if not abs(pull) <= 4]
        sentence = f"{len(pulls) - len(far)} of {len(pulls)} numbers are within four error bars of their exact values"
        return sentence + (f"; not so: {', '.join(far)}." if far else ".")


Arrays = Mapping[str, np.ndarray]


@runtime_checkable
class Progress(Protocol):
    """Where a run tells how far it is, and keeps what it has, so that an interrupted run can go on."""

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """A stage of the run; the function it gives takes the number of steps done, of `total` if that is known."""
        ...

    def blocks(self, title: str, count: int, make: Callable[[int], Arrays]) -> Arrays:
        """The arrays of `count` blocks, stacked along a first axis ``block``.

        Args:
            title: What the blocks are; no two stages of a run may have the same.
            count: How many there are.
            make: Returns the named arrays of one block, the same names, shapes and types for each, as a function of its index alone:
                blocks that an interrupted run has kept are not made again.
        """
        ...

    def checkpoint(self, name: str) -> Path | None:
        """A file where a descent may keep itself (`optimize.fit` takes it); None where nothing is kept."""
        ...


class Silent:
    """A progress that nobody sees and that keeps nothing."""

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """See `Progress.stage`."""
        del title, total
        yield lambda done: None

    def blocks(self, title: str, count: int, make: Callable[[int], Arrays]) -> Arrays:
        """See `Progress.blocks`."""
        return stack([make(i) for i in range(count)])

    def checkpoint(self, name: str) -> Path | None:
        """See `Progress.checkpoint`."""
        return None


def stack(blocks: list[Arrays]) -> Arrays:
    """Named arrays of blocks, stacked along a first axis."""
    return {name: np.stack([np.asarray(block[name]) for block in blocks]) for name in blocks[0]}


@dataclass(frozen=True)
class Experiment:
    """An experiment that the command line can run."""

    name: str
    summary: str
    parameters: type[Parameters]
    run: Callable[[Any, Key, Progress], Results]
    sweep: Callable[[list[Any], Key, Progress], list[Results]] | None = None
    """Runs many points of a sweep at once, each as `run` would with the same key; if there is none, they are run one by one."""
