"""What an experiment is: parameters that can be set, a run, and results that explain themselves."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

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


@runtime_checkable
class Progress(Protocol):
    """Where a run tells how far it is."""

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """A stage of the run; the function it gives takes the number of steps done, of `total` if that is known."""
        ...


class Silent:
    """A progress that nobody sees."""

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """See `Progress.stage`."""
        del title, total
        yield lambda done: None


@dataclass(frozen=True)
class Experiment:
    """An experiment that the command line can run."""

    name: str
    summary: str
    parameters: type[Parameters]
    run: Callable[[Any, Key, Progress], Results]
