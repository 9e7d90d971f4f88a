"""Runs as labelled arrays of xarray, and as NetCDF."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from thermojax._check import require
from thermojax.store._blocks import Stage
from thermojax.store._disk import telling
from thermojax.store._run import read_manifest, read_summary


def open_run(folder: Path) -> Any:
    """A run as an `xarray.DataTree`.

    Its root has, if the run is finished, `value`, `stderr` and `exact` along `estimate`; those of a sweep's finished points have a first
    axis `point`, along which the swept keys are coordinates. Below ``blocks`` is a node for each stage, with its arrays along `block`:
    of blocks that are not there yet, all numbers are zero, and `whole` is false.

    Raises:
        ValueError: if `folder` is not that of a run.
    """
    import xarray as xr

    manifest = read_manifest(folder)
    nodes = {"/": _estimates(folder, manifest)}
    for stage in Stage.of(folder):
        if not stage.group.exists():
            continue
        blocks = xr.open_zarr(stage.group, consolidated=False, chunks=None)
        whole = np.zeros(stage.count, bool)
        whole[list(stage.read()[0])] = True
        nodes[f"/blocks/{stage.group.name}"] = blocks.assign(whole=("block", whole))
    return xr.DataTree.from_dict(nodes)


def export(folder: Path, file: Path) -> None:
    """Write a run to NetCDF; needs the extra ``thermojax[netcdf]``.

    Raises:
        ValueError: if `folder` is not that of a run, the file exists, or h5netcdf is missing.
    """
    missing = [name for name in ("h5netcdf", "h5py") if find_spec(name) is None]
    require(not missing, "export", "have its packages (python -m pip install 'thermojax[netcdf]')", f"no {' and no '.join(missing)}")
    require(not file.exists(), "FILE.nc", "be a new file", file)
    require(file.parent.is_dir(), "FILE.nc", "be in a folder that exists", file)
    tree = open_run(folder)
    draft = file.with_name(f".{file.name}.draft")
    try:
        with telling(file):
            tree.to_netcdf(draft, engine="h5netcdf")
            draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def _estimates(folder, manifest):
    import xarray as xr

    attributes = {name: manifest[name] for name in ("experiment", "seed", "begun")} | {"parameters": json.dumps(manifest["parameters"])}
    if manifest["thermojax"] == "run":
        summary = read_summary(folder)
        summaries, first, coordinates = [summary] if summary else [], (), {}
    else:
        points = {int(p.parent.name): read_summary(p.parent) for p in sorted(folder.glob("points/*/summary.json"))}
        summaries, first = [summary for summary in points.values() if summary], ("point",)
        coordinates: dict[str, Any] = {"point": list(points)}
        for key in manifest["sweep"]:
            values = [summary["parameters"][key] for summary in summaries]
            coordinates[key] = (
                "point",
                values if all(isinstance(v, int | float | str) for v in values) else [json.dumps(v) for v in values],
            )
    names = list(dict.fromkeys(name for summary in summaries for name in summary["estimates"]))
    if not names:
        return xr.Dataset(attrs=attributes)
    arrays = {}
    for field in ("value", "stderr", "exact"):
        table = [[_number(summary["estimates"].get(name, {}).get(field)) for name in names] for summary in summaries]
        arrays[field] = ((*first, "estimate"), np.array(table if first else table[0]))
    return xr.Dataset(arrays, {"estimate": names, **coordinates}, attributes)


def _number(value):
    return np.nan if value is None else value
