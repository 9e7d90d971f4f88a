"""Runs on disk: a summary, figures and a self-contained report, all of them or nothing."""

import base64
import io
import json
import math
import os
import platform
import shutil
import tempfile
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax
import jinja2

from thermojax.experiments import Experiment, Parameters, Picture, Quantity, Results

_PACKAGES = ("thermojax", "jax", "jaxlib", "equinox", "diffrax", "optax", "numpy", "matplotlib")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on, and the device."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    device = jax.devices()[0]
    return found | {"device": f"{len(jax.devices())} x {device.device_kind} ({device.platform})"}


def check_new(folder: Path) -> Path:
    """Return `folder` if a run may be written there.

    Raises:
        ValueError: if it exists and is not an empty folder, or cannot be made.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"`out` must be a new or an empty folder, got {folder}.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"`out` must be in a folder that can be made, got {folder} ({error.strerror}).") from error
    if not os.access(folder.parent, os.W_OK):
        raise ValueError(f"`out` must be in a folder that can be written, got {folder}.")
    return folder


def write_run(folder: Path, experiment: Experiment, parameters: Parameters, seed: int, results: Results, seconds: float) -> None:
    """Write ``summary.json``, one PNG for each figure and ``report.html`` into `folder`.

    Everything is first written beside it and then renamed, so that a run that fails or is interrupted leaves nothing.
    """
    folder = check_new(folder)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        pictures = {name: _png(picture) for name, picture in results.figures.items()}
        for name, png in pictures.items():
            (draft / f"{name}.png").write_bytes(png)
        summary = {
            "experiment": experiment.name,
            "parameters": parameters.model_dump(),
            "seed": seed,
            "seconds": round(seconds, 3),
            "versions": versions(),
            "estimates": {name: _as_json(quantity) for name, quantity in results.estimates.items()},
        }
        (draft / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
        (draft / "report.html").write_text(_report(experiment, parameters, summary, results, pictures))
        draft.chmod(0o755)
        os.replace(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _as_json(quantity: Quantity) -> dict[str, Any]:
    keep = {key: getattr(quantity, key) for key in ("value", "stderr", "ess", "exact", "trustworthy")}
    # JSON has no NaN: what is not a number is not known.
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in keep.items()}


def _png(picture: Picture) -> bytes:
    buffer = io.BytesIO()
    picture.figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _report(experiment, parameters, summary, results, pictures) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("thermojax").joinpath("report.html.jinja").read_text())
    rows = [{"name": name, **asdict(q), **_in_words(q)} for name, q in results.estimates.items()]
    fields = [
        {"name": name, "value": getattr(parameters, name), "description": info.description}
        for name, info in type(parameters).model_fields.items()
    ]
    figures = [
        {"name": name, "caption": picture.caption, "data": base64.b64encode(pictures[name]).decode()}
        for name, picture in results.figures.items()
    ]
    return template.render(
        experiment=experiment, summary=summary, rows=rows, fields=fields, figures=figures, conclusions=results.conclusions
    )


def _in_words(quantity: Quantity) -> dict[str, str]:
    """The numbers of a row as the report prints them."""
    error = quantity.stderr or 0.0
    known = math.isfinite(error) and error > 0
    # Two digits of the error bar, and the value to the same place.
    places = max(0, 1 - math.floor(math.log10(error))) if known else 6
    text = f"{quantity.value:.{places}f}" if known and places < 12 else f"{quantity.value:.6g}"
    if known:
        text += f" ± {error:.2g}"
    away = "–"
    if quantity.exact is not None and known:
        away = f"{(quantity.value - quantity.exact) / error:+.1f}"
    verdict = {None: "–", True: "yes", False: "no: do not trust"}[quantity.trustworthy]
    return {
        "text": text,
        "exact_text": "–" if quantity.exact is None else f"{quantity.exact:.6g}",
        "away": away,
        "ess_text": "–" if quantity.ess is None else f"{quantity.ess:.3g}",
        "verdict": verdict,
    }
