import csv
import json
import os
import pathlib
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from small_runs import contents, leftovers, made_again, stopped_at, TINY, Tiny

from thermojax import store, sweeps
from thermojax.experiments import EXPERIMENTS
from thermojax.settings import read_asked
from thermojax.store import _blocks
from thermojax.sweeps import _queue, _table

# What single runs give, each made once.
ALONE = {}
SWEPT = ["run", "tiny", "--sweep", "scale=1,2,4", "--sweep", "law=normal,exponential"]


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ("1, 2.5", [1, 2.5]),
        ("3", [3]),
        ("exact,euler", ["exact", "euler"]),
        ("1,two", [1, "two"]),
        ("[1, 2],[3]", [[1, 2], [3]]),
        ("true,false", [True, False]),
        ("linspace(0, 1, 5)", [0, 0.25, 0.5, 0.75, 1]),
        ("logspace(-2, 1, 4)", [0.01, 0.1, 1, 10]),
        (" arange(1, 9, 2) ", [1, 3, 5, 7]),
        ([1, 2], [1, 2]),
    ],
)
def test_values_of_a_key(given, values):
    found = sweeps.parse_values("key", given)
    assert found == (pytest.approx(values) if isinstance(values[0], float) else values)
    assert [type(v) for v in found] == [type(v) for v in values] or isinstance(given, str)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("geomspace(1, 2, 3)", r"`key` must be a list, a,b,c or one of linspace\(start, stop, count\), .*, got 'geomspace\(1, 2, 3\)'\."),
        ("linspace(0, 1, -5)", r"`key` must be a list, .*"),
        ("linspace(0)", r"`key` must be a list, .*"),
        ("linspace(a, 1, 2)", r"`key` must be a list, .*"),
        ("arange(0, 1, 0)", r"`key` must be a list, .*"),
        ("arange(3, 1)", r"`key` must have between one and 100000 values, got 0\."),
        ([], r"`key` must have between one and 100000 values, got 0\."),
        ("1,2,1", r"`key` must have values that differ, got \[1, 2, 1\]\."),
    ],
)
def test_values_that_are_none_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        sweeps.parse_values("key", given)


MISTAKES = {
    "unknown key": (["--sweep", "sclae=1,2"], "`--sweep` must name one of blocks, scale, sleep, law, got 'sclae'."),
    "bad value": (
        ["--sweep", "blocks=3,4", "--sweep", "scale=1,-1"],
        "`scale` must be greater than 0, got -1 at point 001 (blocks=3, scale=-1).",
    ),
    "no values": (["--sweep", "scale"], "`--sweep` must be given as KEY=VALUES, got 'scale'."),
    "set and swept": (
        ["--sweep", "scale=1,2", "--set", "scale=3"],
        "`--sweep` must name a parameter that `--set` does not set, got 'scale'.",
    ),
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_gets_one_sentence_and_leaves_nothing(tiny, capsys, words, message):
    assert tiny("run", "tiny", *words) == 2
    assert capsys.readouterr().err == f"Error: {message}\n"
    assert list(pathlib.Path().iterdir()) == []


def test_a_table_of_a_file_is_swept_and_the_command_line_goes_before_it(tiny):
    text = 'experiment = "tiny"\nseed = 3\n[parameters]\nscale = 7\nblocks = 2\n[sweep]\nscale = "logspace(0, 1, 2)"\nblocks = [1, 2]\n'
    pathlib.Path("mine.toml").write_text(text)
    asked = read_asked("mine.toml", [], [], None)
    assert asked.grid == {"scale": [1.0, 10.0], "blocks": [1, 2]}
    assert [(p.scale, p.blocks) for p in asked.points] == [(1, 1), (1, 2), (10, 1), (10, 2)]
    assert asked.seed == 3
    assert read_asked("mine.toml", [], ["blocks=5"], 4)[2:] == ({"scale": [1.0, 10.0], "blocks": [5]}, 4)


def rows(folder):
    with open(folder / "table.csv", newline="") as file:
        return list(csv.DictReader(file))


def check_against_single_runs(tiny, folder):
    """Every point has the bits of a single run, and the table its numbers."""
    table = rows(folder)
    assert [(row["scale"], row["law"]) for row in table] == [(s, law) for s in "124" for law in ("normal", "exponential")]
    for index, row in enumerate(table):
        if index not in ALONE:
            words = ["--set", f"scale={row['scale']}", "--set", f"law={row['law']}"]
            assert tiny("run", "tiny", *words, "--out", f"alone-{index}") == 0
            ALONE[index] = contents(pathlib.Path(f"alone-{index}"))
        files, estimates = ALONE[index]
        point = folder / "points" / f"{index:03d}"
        assert json.loads((point / "summary.json").read_text())["estimates"] == estimates
        if EXPERIMENTS["tiny"].sweep is None:
            assert contents(point)[0] == files
        for name, q in estimates.items():
            for field, column in (("value", name), ("stderr", f"{name}_stderr"), ("exact", f"{name}_exact")):
                assert row[column] == ("" if q[field] is None else repr(q[field]))


def test_a_sweep_is_its_single_runs_with_one_table_figure_and_report(tiny, capsys):
    assert tiny(*SWEPT, "--out", "out") == 0
    folder = pathlib.Path("out")
    said = capsys.readouterr().out
    assert "6 of 6 points of scale × law are finished." in said
    assert {p.name for p in folder.iterdir()} == {"manifest.json", "points", "table.csv", "sweep.png", "report.html", "summary.json"}
    check_against_single_runs(tiny, folder)
    page = (folder / "report.html").read_text()
    assert page.count("<tr><td>00") == 6
    assert len(re.findall(r'src="data:image/png;base64,', page)) == 1
    assert "http" not in page
    assert leftovers(folder) == []
    # A wrong number would show.
    summary = json.loads((folder / "points/002/summary.json").read_text())
    summary["estimates"]["mean"]["value"] += 1e-12
    (folder / "points/002/summary.json").write_text(json.dumps(summary))
    with pytest.raises(AssertionError):
        check_against_single_runs(tiny, folder)


def at_once(points, key, progress):
    """All points in one stage of blocks."""

    class Part:
        def __init__(self, k):
            self.k = k

        def blocks(self, title, count, make):
            both = progress.blocks(f"{title} {self.k}", count, make)
            return {name: both[name] for name in both}

    return [TINY.run(p, key, Part(k)) for k, p in enumerate(points)]


def test_an_experiment_that_can_runs_all_points_at_once_and_resumes(tiny, monkeypatch, capsys):
    monkeypatch.setitem(EXPERIMENTS, "tiny", replace(TINY, sweep=at_once))
    with monkeypatch.context() as patch:
        stopped_at(patch, 5, KeyboardInterrupt())
        assert tiny(*SWEPT, "--out", "out") == 130
    assert capsys.readouterr().err.startswith("Interrupted after 5 of 6 blocks; go on with: thermojax run tiny")
    made = made_again(monkeypatch)
    assert tiny(*SWEPT, "--out", "out", "--resume") == 0
    assert made == [5, *[*range(6)] * 5]
    check_against_single_runs(tiny, pathlib.Path("out"))


@pytest.fixture
def partial(tiny, monkeypatch):
    """A sweep that was interrupted in its third point."""
    run, begun = TINY.run, []

    def stopping(p, key, progress):
        begun.append(p)
        if len(begun) == 3:
            stopped_at(monkeypatch, 4, KeyboardInterrupt())
        return run(p, key, progress)

    monkeypatch.setitem(EXPERIMENTS, "tiny", replace(TINY, run=stopping))
    write = _blocks.Stage.write
    assert tiny(*SWEPT, "--out", "out") == 130
    monkeypatch.setattr(_blocks.Stage, "write", write)
    monkeypatch.setitem(EXPERIMENTS, "tiny", TINY)
    return pathlib.Path("out")


def test_a_partial_sweep_tells_its_status_and_reports_what_is_there(partial, tiny, capsys):
    capsys.readouterr()
    assert tiny("status", partial) == 0
    said = capsys.readouterr().out
    assert "2 of 6 points finished" in said
    assert "  000 (scale=1, law=normal): finished\n" in said
    assert "  002 (scale=2, law=normal): interrupted\n" in said
    assert "  003 (scale=2, law=exponential): not begun\n" in said
    assert "  002 drawing: 4 of 6\n" in said
    assert tiny("report", partial) == 0
    assert "Missing: 002, 003, 004, 005." in capsys.readouterr().out
    assert len(rows(partial)) == 2
    page = (partial / "report.html").read_text()
    assert page.count("not finished") == 4
    assert not (partial / "summary.json").exists()


def test_a_partial_sweep_resumes_where_it_was(partial, tiny, monkeypatch, capsys):
    made = made_again(monkeypatch)
    assert tiny(*SWEPT, "--out", "out", "--resume") == 0
    assert made == [4, 5, *[*range(6)] * 3]
    assert "Point 002, drawing: 4 of 6 blocks kept from before." in capsys.readouterr().out
    check_against_single_runs(tiny, partial)
    assert tiny(*SWEPT[:-2], "--out", "out", "--resume") == 2
    assert capsys.readouterr().err.startswith("Error: `--sweep` must be {'scale': [1, 2, 4], 'law': ['normal', 'exponential']} in out, got")
    assert tiny("run", "tiny", "--out", "out", "--resume") == 2
    assert capsys.readouterr().err == "Error: `--resume` must come with a `--sweep` in out, got none.\n"
    made.clear()
    assert tiny(*SWEPT, "--out", "out", "--resume") == 0
    assert made == []


def test_a_report_of_no_finished_point_is_refused(partial, tiny, capsys):
    for point in partial.glob("points/*/summary.json"):
        point.unlink()
    capsys.readouterr()
    assert tiny("report", partial) == 2
    assert capsys.readouterr().err == "Error: `folder` must have a finished point, got none of 6 in out.\n"


def test_a_point_that_fails_is_told_and_spares_the_others(tiny, monkeypatch, capsys):
    run = TINY.run

    def failing(p, key, progress):
        if p.scale == 2:
            raise ValueError("`scale` must not be two.")
        return run(p, key, progress)

    monkeypatch.setitem(EXPERIMENTS, "tiny", replace(TINY, run=failing))
    assert tiny(*SWEPT, "--out", "out") == 1
    said = "2 of 6 points failed, the first of them 002 (scale=2, law=normal): `scale` must not be two."
    assert capsys.readouterr().err == f"Error: {said}\n"
    assert [row["point"] for row in rows(pathlib.Path("out"))] == ["0", "1", "4", "5"]
    monkeypatch.setitem(EXPERIMENTS, "tiny", TINY)
    assert tiny(*SWEPT, "--out", "out", "--resume") == 0
    check_against_single_runs(tiny, pathlib.Path("out"))


def test_a_sweep_exports_with_its_keys_as_coordinates(partial):
    tree = store.open_run(partial)
    assert tree["value"].dims == ("point", "estimate")
    assert tree["law"].values.tolist() == ["normal", "exponential"]
    assert tree["value"].shape == (2, 2)


CODE = """
import jax
from dataclasses import replace
from small_runs import EXPERIMENTS, TINY
used = []
def run(p, key, progress):
    used.append(next(iter(jax.numpy.zeros(1).devices())).id)
    return TINY.run(p, key, progress)
EXPERIMENTS["tiny"] = replace(TINY, run=run)
from thermojax.cli import main
try:
    main()
finally:
    print(sorted(set(used)))
"""


@pytest.mark.slow
def test_points_are_queued_over_all_devices(tiny):
    path = f"{pathlib.Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3", "PYTHONPATH": path}
    words = [*SWEPT, "--set", "sleep=0.05", "--out", "out"]
    done = subprocess.run([sys.executable, "-c", CODE, *words], env={**os.environ, **flags}, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[0, 1, 2]"
    check_against_single_runs(tiny, pathlib.Path("out"))


def test_figures_of_many_numbers_keep_to_twelve_panels_and_label_their_axes(tmp_path):
    q = {"value": 1.0, "stderr": 0.1, "ess": 9.0, "exact": 1.1, "trustworthy": False, "meaning": ""}
    plain = q | {"stderr": None, "exact": None}
    summary = {"estimates": {f"plain_{k}": plain for k in range(9)} | {f"known_{k}": q for k in range(9)}}
    manifest = {"sweep": {"a": [1, 100], "b": ["x", "y"]}}
    values = [(a, b) for a in (1, 100) for b in "xy"]
    figure, caption = _table.draw(sweeps.Table(manifest, ["a", "b"], values, {k: summary for k in range(3)}))
    assert len(figure.axes) == 12
    assert [ax.get_ylabel() for ax in figure.axes] == [f"known {k}" for k in range(6) for _ in "ab"]
    assert [ax.get_xlabel() for ax in figure.axes] == ["a", "b"] * 6
    assert figure.axes[0].get_xscale() == "log"
    assert "The other 12 numbers are in table.csv." in caption


def test_an_interruption_ends_the_points_that_run(tiny, monkeypatch):
    # The main thread is interrupted while a point runs in another: that one ends at its next block, and is kept.
    waited = _queue.as_completed

    def interrupted(futures):
        while not list(pathlib.Path("out").glob("points/000/records/drawing/3.json")):
            pass
        raise KeyboardInterrupt
        yield from waited(futures)

    monkeypatch.setattr(_queue, "as_completed", interrupted)
    assert tiny(*SWEPT, "--set", "sleep=0.05", "--set", "blocks=50", "--out", "out") == 130
    parts = store.stages(pathlib.Path("out/points/000"))
    assert 4 <= parts[0].made < 50
    assert not pathlib.Path("out/points/001").exists()


def test_parameters_of_a_point_are_those_of_the_sweep():
    points = [Tiny(scale=s) for s in (1, 2)]
    sweep = sweeps.Sweep(TINY, points, {"scale": [1, 2]}, 5)
    assert sweep.job == store.Job("tiny", {"blocks": 6, "sleep": 0.0, "law": "normal"}, 5, {"scale": [1, 2]})
    assert sweep.point(1) == store.Job("tiny", points[1].model_dump(), 5)
    assert [p.name for p in sweeps.point_folders(pathlib.Path(), 1001)][-1] == "1000"
    assert np.ptp([len(p.name) for p in sweeps.point_folders(pathlib.Path(), 1001)]) == 0
