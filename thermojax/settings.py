"""What a user asks for, from a name or a file and the words of the command line, checked before anything runs."""

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pydantic

from thermojax.experiments import Experiment, EXPERIMENTS, Parameters
from thermojax.store import Job
from thermojax.sweeps import parse_values, points_of, Sweep


class UsageError(ValueError):
    """A mistake in what the user asked for: one sentence, exit code 2."""


class Asked(NamedTuple):
    """What to run."""

    experiment: Experiment
    points: list[Parameters]
    """The parameters of the run, or of each point of a sweep."""
    grid: dict[str, list]
    """Values of the swept keys; none for a single run."""
    seed: int

    @property
    def sweep(self) -> Sweep:
        """As a sweep."""
        return Sweep(self.experiment, self.points, self.grid, self.seed)

    @property
    def job(self) -> Job:
        """As a single run."""
        return Job(self.experiment.name, self.points[0].model_dump(), self.seed)


def read_asked(what: str, settings: Sequence[str], sweeps: Sequence[str], seed: int | None) -> Asked:
    """What to run.

    Args:
        what: An experiment's name or a TOML file.
        settings: Texts ``KEY=VALUE``, which go before the file.
        sweeps: Texts ``KEY=VALUES``, likewise.
        seed: Likewise; that of the file, or zero, if omitted.

    Raises:
        UsageError: if a name, a file or a value is refused.
    """
    name, given, grid, file_seed = _read(what)
    given |= (told := dict(_setting(text) for text in settings))
    experiment = find(name)
    grid |= {key: parse_values(key, values) for key, values in (_swept(text) for text in sweeps)}
    allowed = list(experiment.parameters.model_fields)
    for key in grid:
        if key not in allowed:
            raise UsageError(f"`--sweep` must name one of {', '.join(allowed)}, got '{key}'.")
        if key in told:
            raise UsageError(f"`--sweep` must name a parameter that `--set` does not set, got '{key}'.")
    validate: Callable[[dict[str, Any]], Parameters] = lambda values: _validate(experiment.parameters, values)
    points = points_of(given, grid, validate) if grid else [validate(given)]
    return Asked(experiment, points, grid, file_seed if seed is None else seed)


def find(name: str) -> Experiment:
    """The experiment of a name.

    Raises:
        UsageError: if there is none.
    """
    if name not in EXPERIMENTS:
        raise UsageError(f"`experiment` must be one of {', '.join(EXPERIMENTS)}, or a .toml file, got '{name}'.")
    return EXPERIMENTS[name]


def _read(what: str) -> tuple[str, dict[str, Any], dict[str, list], int]:
    """The experiment's name, its settings, what is swept, and its seed, from a name or a file."""
    if not what.endswith(".toml"):
        return what, {}, {}, 0
    try:
        content = tomllib.loads(Path(what).read_text())
    except OSError as error:
        raise UsageError(f"`FILE.toml` must be a file that can be read, got {what} ({error.strerror}).") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"`{what}` must be valid TOML, got an error: {error}.") from error
    allowed = ("experiment", "seed", "parameters", "sweep")
    for key in content:
        if key not in allowed:
            raise UsageError(f"`{what}` must have only the keys {', '.join(allowed)}, got '{key}'.")
    if "experiment" not in content:
        raise UsageError(f"`{what}` must name its experiment, got no key 'experiment'.")
    seed = content.get("seed", 0)
    if not isinstance(seed, int) or seed < 0:
        raise UsageError(f"`seed` must be a non-negative whole number, got {seed!r}.")
    grid = content.get("sweep", {})
    if not isinstance(grid, dict):
        raise UsageError(f"`sweep` must be a table of keys and their values, got {grid!r}.")
    grid = {key: parse_values(key, values) for key, values in grid.items()}
    return content["experiment"], dict(content.get("parameters", {})), grid, seed


def _swept(text: str) -> tuple[str, str]:
    key, equals, values = text.partition("=")
    if not equals or not key.strip() or not values.strip():
        raise UsageError(f"`--sweep` must be given as KEY=VALUES, got '{text}'.")
    return key.strip(), values


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"`--set` must be given as KEY=VALUE, got '{text}'.")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        # A word without quotes is a string.
        return key.strip(), value.strip()


def _validate(model: type[Parameters], given: dict[str, Any]) -> Parameters:
    try:
        return model(**given)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise UsageError(f"`--set` must name one of {', '.join(model.model_fields)}, got '{name}'.") from None
        rule = first["msg"].removeprefix("Input should be ").removeprefix("a valid ")
        raise UsageError(f"`{name}` must be {rule}, got {first['input']!r}.") from None
