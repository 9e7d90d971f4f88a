"""The numbers of a finished run, as data and as a page that refers to nothing outside itself."""

import base64
import math
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import Any

import jax
import jinja2

from thermojax.experiments import EXPERIMENTS, Quantity, Results

_PACKAGES = ("thermojax", "jax", "jaxlib", "equinox", "diffrax", "optax", "numpy", "matplotlib", "xarray", "zarr")


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


def environment() -> jinja2.Environment:
    """Where the pages' templates are."""
    load = lambda name: files("thermojax").joinpath(name).read_text()
    options = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return jinja2.Environment(loader=jinja2.FunctionLoader(load), **options)


def summarise(manifest: dict[str, Any], results: Results, seconds: float) -> dict[str, Any]:
    """What ``summary.json`` says of a run."""
    summary = {name: manifest[name] for name in ("experiment", "parameters", "seed")} | {"seconds": round(seconds, 3)}
    made_with = versions()
    changed = {name: number for name, number in manifest["versions"].items() if made_with.get(name) != number}
    summary["versions"] = made_with
    if changed:
        # Parts of it were made with something else, and bits may differ from those of a run in one piece.
        summary["begun_with"] = changed
    summary["estimates"] = {name: _as_json(quantity) for name, quantity in results.estimates.items()}
    summary["figures"] = {name: picture.caption for name, picture in results.figures.items()}
    return summary | {"conclusions": results.conclusions}


def report(summary: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """The page of a run."""
    experiment = EXPERIMENTS.get(summary["experiment"])
    meanings = {} if experiment is None else {name: info.description for name, info in experiment.parameters.model_fields.items()}
    rows = [{"name": name, **q, **_in_words(q)} for name, q in summary["estimates"].items()]
    fields = [{"name": name, "value": value, "description": meanings.get(name, "")} for name, value in summary["parameters"].items()]
    figures = [
        {"name": name, "caption": caption, "data": base64.b64encode(pictures[name]).decode()}
        for name, caption in summary["figures"].items()
    ]
    words = "" if experiment is None else experiment.summary
    return environment().get_template("report.html.jinja").render(words=words, summary=summary, rows=rows, fields=fields, figures=figures)


def as_text(value: float | None, stderr: float | None) -> str:
    """A number with its error bar: two digits of that, and the value to the same place."""
    value, error = math.nan if value is None else value, stderr or 0.0
    known = math.isfinite(error) and error > 0
    places = max(0, 1 - math.floor(math.log10(error))) if known else 6
    text = f"{value:.{places}f}" if known and places < 12 else f"{value:.6g}"
    return text + (f" ± {error:.2g}" if known else "")


def brief(value: Any) -> str:
    """A setting as tables print it: numbers to six digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _as_json(quantity: Quantity) -> dict[str, Any]:
    keep = {key: getattr(quantity, key) for key in ("value", "stderr", "ess", "exact", "trustworthy", "meaning")}
    # JSON has no NaN: what is not a number is not known.
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in keep.items()}


def _in_words(q: dict[str, Any]) -> dict[str, str]:
    """The numbers of a row as the report prints them."""
    away = "–"
    if q["exact"] is not None and q["value"] is not None and q["stderr"]:
        away = f"{(q['value'] - q['exact']) / q['stderr']:+.1f}"
    return {
        "text": as_text(q["value"], q["stderr"]),
        "exact_text": "–" if q["exact"] is None else f"{q['exact']:.6g}",
        "away": away,
        "ess_text": "–" if q["ess"] is None else f"{q['ess']:.3g}",
        "verdict": {None: "–", True: "yes", False: "no: do not trust"}[q["trustworthy"]],
    }
