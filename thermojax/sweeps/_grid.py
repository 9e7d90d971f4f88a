"""The points of a sweep: the product of the values of each key."""

import itertools
import re
import tomllib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from thermojax._check import require
from thermojax.experiments import Experiment, Parameters
from thermojax.store import brief, Job

_RANGES: dict[str, Callable] = {"linspace": np.linspace, "logspace": np.logspace, "arange": np.arange}
_MOST = 100_000


class Sweep(NamedTuple):
    """What is swept."""

    experiment: Experiment
    points: list[Parameters]
    """The parameters of each point; the last key changes fastest."""
    grid: dict[str, list]
    """Values of each swept key."""
    seed: int

    @property
    def job(self) -> Job:
        """The sweep as a job: parameters that do not change, and the values of those that do."""
        rest = {name: value for name, value in self.points[0].model_dump().items() if name not in self.grid}
        return Job(self.experiment.name, rest, self.seed, self.grid)

    def point(self, index: int) -> Job:
        """One point as a job: that of a single run."""
        return Job(self.experiment.name, self.points[index].model_dump(), self.seed)

    def words(self, index: int) -> str:
        """What a point is, for messages."""
        return _words(index, {name: getattr(self.points[index], name) for name in self.grid})


def parse_values(key: str, given: Any) -> list:
    """The values of a swept key.

    Args:
        key: Its name, for messages.
        given: A list; or a text ``a,b,c`` of values as in TOML, words without quotes too; or a range as in NumPy: ``linspace(0, 1, 5)``
            with both ends, ``logspace(-2, 1, 4)`` with powers of ten, ``arange(1, 9, 2)`` without its last end.

    Raises:
        ValueError: if there is no value, two are equal, or a range is none.
    """
    values = list(given) if isinstance(given, list) else _from_text(key, given) if isinstance(given, str) else [given]
    require(0 < len(values) <= _MOST, key, f"have between one and {_MOST} values", len(values))
    require(len({repr(v) for v in values}) == len(values), key, "have values that differ", values)
    return values


def points_of(base: dict[str, Any], grid: dict[str, list], validate: Callable[[dict[str, Any]], Parameters]) -> list[Parameters]:
    """The parameters of every point.

    Raises:
        ValueError: if a value is refused; the sentence names the point.
    """
    points = []
    for index, values in enumerate(itertools.product(*grid.values())):
        changed = dict(zip(grid, values, strict=True))
        try:
            points.append(validate(base | changed))
        except ValueError as error:
            raise ValueError(f"{str(error).removesuffix('.')} at point {_words(index, changed)}.") from error
    return points


def _words(index, changed):
    return f"{index:03d} ({', '.join(f'{name}={brief(value)}' for name, value in changed.items())})"


def _from_text(key: str, text: str) -> list:
    call = re.fullmatch(r"\s*([a-z]+)\s*\((.*)\)\s*", text)
    if call:
        name, inside = call.groups()
        try:
            numbers = tomllib.loads(f"values = [{inside}]")["values"]
            if len(numbers) < 2 or not all(isinstance(n, int | float) for n in numbers):
                raise TypeError
            return _RANGES[name](*numbers).tolist()
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            rule = "be a list, a,b,c or one of linspace(start, stop, count), logspace(start, stop, count), arange(start, stop, step)"
            raise ValueError(f"`{key}` must {rule}, got '{text}'.") from error
    try:
        return tomllib.loads(f"values = [{text}]")["values"]
    except tomllib.TOMLDecodeError:
        return [_word(part) for part in text.split(",")]


def _word(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        # A word without quotes is a string.
        return text.strip()
