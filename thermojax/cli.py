"""The command line: ``thermojax list | show | run | info``."""

import signal
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import pydantic
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bars, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

app = typer.Typer(
    help="Differentiable stochastic thermodynamics: run experiments and see how fast this machine is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()


class UsageError(ValueError):
    """A mistake in what the user asked for: one sentence, exit code 2."""


class LiveProgress:
    """Progress bars in the terminal."""

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """See `experiments.Progress.stage`."""
        columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
        if total is None:
            columns.pop(3)
        with Bars(*columns, console=console) as bars:
            task = bars.add_task(title, total=total)
            yield lambda done: bars.update(task, completed=done)
            bars.update(task, total=total or 1, completed=total or 1)


@app.command("list")
def list_experiments() -> None:
    """List the experiments and their parameters."""
    from thermojax.experiments import EXPERIMENTS

    for experiment in EXPERIMENTS.values():
        table = Table(title=f"{experiment.name}: {experiment.summary}", title_justify="left", show_header=True)
        for column in ("parameter", "default", "meaning"):
            table.add_column(column)
        for name, info in experiment.parameters.model_fields.items():
            table.add_row(name, str(info.default), info.description)
        console.print(table)


@app.command()
def show(name: Annotated[str, typer.Argument(help="An experiment.")]) -> None:
    """Print an experiment's parameters as a TOML file to edit and run."""
    experiment = _find(name)
    lines = [f'experiment = "{experiment.name}"', "seed = 0", "", "[parameters]"]
    for key, info in experiment.parameters.model_fields.items():
        value = f'"{info.default}"' if isinstance(info.default, str) else str(info.default).lower()
        lines.append(f"{key} = {value}  # {info.description}")
    typer.echo("\n".join(lines))


@app.command()
def run(
    what: Annotated[str, typer.Argument(metavar="NAME|FILE.toml", help="An experiment, or a file that `show` printed.")],
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a parameter; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results, new or empty; runs/NAME-K if omitted.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of all randomness; 0 if omitted.")] = None,
) -> None:
    """Run an experiment; write summary.json, figures and report.html."""
    # Fail on what can be checked before JAX is started.
    name, given, file_seed = _read(what)
    given |= dict(_setting(text) for text in settings or [])
    experiment = _find(name)
    parameters = _validate(experiment.parameters, given)
    seed = file_seed if seed is None else seed

    import jax

    from thermojax.store import check_new, write_run

    folder = check_new(_free_folder(name) if out is None else out)
    # A polite kill is an interruption like ctrl-C: the run ends and leaves nothing behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    tick = time.perf_counter()
    results = experiment.run(parameters, jax.random.key(seed), LiveProgress())
    with LiveProgress().stage("writing the report"):
        write_run(folder, experiment, parameters, seed, results, time.perf_counter() - tick)
    for sentence in results.conclusions:
        console.print(sentence, highlight=False)
    console.print(f"Report: {folder / 'report.html'} ({time.perf_counter() - tick:.1f} s)", highlight=False, soft_wrap=True)


@app.command()
def info() -> None:
    """Versions, devices, and the measured step rate against the limit."""
    from thermojax.speed import ensemble_job, interleaved, normals_only
    from thermojax.store import versions

    for package, number in versions().items():
        console.print(f"{package:12s} {number}", highlight=False)
    samples, steps = 10_000, 500
    with LiveProgress().stage("measuring the step rate"):
        jobs = {"limit": normals_only(samples, steps), "ensemble": ensemble_job(samples, steps)}
        seconds = interleaved(jobs, rounds=5)
    rates = {name: samples * steps / s / 1e6 for name, s in seconds.items()}
    console.print(
        f"step rate    {rates['ensemble']:.0f} million steps/s with work and log-ratio, "
        f"{rates['ensemble'] / rates['limit']:.2f} of the rate at which the normals alone are drawn",
        highlight=False,
    )


def main() -> None:
    """Entry point: every mistake of the user is one sentence and exit code 2."""
    try:
        app()
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except KeyboardInterrupt:
        print("Interrupted; nothing was written.", file=sys.stderr)  # noqa: T201
        sys.exit(130)


def _find(name):
    from thermojax.experiments import EXPERIMENTS

    if name not in EXPERIMENTS:
        raise UsageError(f"`experiment` must be one of {', '.join(EXPERIMENTS)}, or a .toml file, got '{name}'.")
    return EXPERIMENTS[name]


def _read(what: str) -> tuple[str, dict[str, Any], int]:
    """The experiment's name, its settings and its seed, from a name or a file."""
    if not what.endswith(".toml"):
        return what, {}, 0
    try:
        content = tomllib.loads(Path(what).read_text())
    except OSError as error:
        raise UsageError(f"`FILE.toml` must be a file that can be read, got {what} ({error.strerror}).") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"`{what}` must be valid TOML, got an error: {error}.") from error
    allowed = ("experiment", "seed", "parameters")
    for key in content:
        if key not in allowed:
            raise UsageError(f"`{what}` must have only the keys {', '.join(allowed)}, got '{key}'.")
    if "experiment" not in content:
        raise UsageError(f"`{what}` must name its experiment, got no key 'experiment'.")
    seed = content.get("seed", 0)
    if not isinstance(seed, int) or seed < 0:
        raise UsageError(f"`seed` must be a non-negative whole number, got {seed!r}.")
    return content["experiment"], dict(content.get("parameters", {})), seed


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"`--set` must be given as KEY=VALUE, got '{text}'.")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        # A word without quotes is a string.
        return key.strip(), value.strip()


def _validate(model: type, given: dict[str, Any]):
    try:
        return model(**given)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise UsageError(f"`--set` must name one of {', '.join(model.model_fields)}, got '{name}'.") from None
        rule = first["msg"].removeprefix("Input should be ").removeprefix("a valid ")
        raise UsageError(f"`{name}` must be {rule}, got {first['input']!r}.") from None


def _free_folder(name: str) -> Path:
    k = 1
    while (folder := Path("runs") / f"{name}-{k}").exists():
        k += 1
    return folder
