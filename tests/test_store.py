import errno
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from small_runs import contents, leftovers, made_again, PROGRAM, stopped_at, Tiny

from thermojax import store
from thermojax.cli import main
from thermojax.optimize import fit
from thermojax.store import _blocks, _keeper

TESTS = pathlib.Path(__file__).parent


@pytest.fixture
def interrupted(tiny, monkeypatch):
    """The folder of a run that was interrupted after 4 of 6 blocks, beside that of one in peace."""
    assert tiny("run", "tiny", "--out", "peace") == 0
    with monkeypatch.context() as patch:
        stopped_at(patch, 4, KeyboardInterrupt())
        assert tiny("run", "tiny", "--out", "war") == 130
    return pathlib.Path("war")


def under_fire(folder, kills):
    words = [sys.executable, "-W", "ignore", TESTS / "small_runs.py", folder, kills, 1]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_survival(told, kills):
    assert told["killed"] == kills
    assert told["codes"] == [0] * kills
    assert told["same"] == kills
    assert told["leftovers"] == []


def test_killed_runs_resume_to_the_same_bits(tmp_path):
    check_survival(under_fire(tmp_path, 3), 3)


@pytest.mark.slow
def test_thirty_kills_at_random_moments_lose_nothing(tmp_path):
    told = under_fire(tmp_path, 30)
    check_survival(told, 30)
    # They were random: before the first block, in the midst of them, and after.
    assert len(set(told["kept"])) > 5
    assert sum(0 < n < 60 for n in told["kept"]) >= 5


def test_an_interrupted_run_says_how_far_it_came_and_goes_on(interrupted, tiny, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        stopped_at(patch, 4, KeyboardInterrupt())
        assert tiny("run", "tiny", "--out", "war", "--resume") == 130
    assert capsys.readouterr().err == "Interrupted after 4 of 6 blocks; go on with: thermojax run tiny --out war --resume\n"
    made = made_again(monkeypatch)
    assert tiny("run", "tiny", "--out", "war", "--resume") == 0
    assert "4 of 6 blocks kept from before" in capsys.readouterr().out
    assert made == [4, 5]
    assert contents(interrupted) == contents(pathlib.Path("peace"))
    assert leftovers(interrupted) == []


DAMAGE = {
    "a flipped bit": lambda run: flip(run / "blocks.zarr/drawing/xs/c/1/0"),
    "a cut chunk": lambda run: os.truncate(run / "blocks.zarr/drawing/squares/c/1/0/0", 100),
    "an empty chunk": lambda run: os.truncate(run / "blocks.zarr/drawing/xs/c/1/0", 0),
    "a chunk that is gone": lambda run: (run / "blocks.zarr/drawing/count/c/1").unlink(),
    "a record that is gone": lambda run: (run / "records/drawing/1.json").unlink(),
    "a record that is empty": lambda run: os.truncate(run / "records/drawing/1.json", 0),
}


def flip(path):
    content = bytearray(path.read_bytes())
    content[17] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("harm", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_block_is_found_and_made_again(interrupted, tiny, monkeypatch, capsys, harm):
    harm(interrupted)
    made = made_again(monkeypatch)
    capsys.readouterr()
    assert tiny("run", "tiny", "--out", "war", "--resume") == 0
    assert made == [1, 4, 5]
    assert "3 of 6 blocks kept" in capsys.readouterr().out
    assert contents(interrupted) == contents(pathlib.Path("peace"))


@pytest.mark.skipif(not pathlib.Path("/proc/self/fd").exists(), reason="the system does not tell which file is forced")
def test_all_that_a_finished_run_rests_on_outlives_a_power_cut_when_its_summary_does(tiny, monkeypatch):
    forced = []
    fsync = os.fsync

    def noted(handle):
        forced.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    assert tiny("run", "tiny", "--out", "war") == 0
    before = forced[: forced.index(os.path.realpath("war/.summary.json.draft"))]
    kept = [
        path for folder in ("blocks.zarr", "records") for path in (pathlib.Path("war", folder), *pathlib.Path("war", folder).rglob("*"))
    ]
    assert len(kept) > 30
    # A file is forced before the folder that names it.
    place = {path: before.index(os.path.realpath(path)) for path in kept}
    assert all(place[path] < place[path.parent] for path in kept if path.parent in place)


def test_without_checksums_damage_would_show(interrupted, tiny, monkeypatch):
    monkeypatch.setattr(_blocks, "_sums", lambda block: dict.fromkeys(block, "0"))
    for record in interrupted.glob("records/drawing/[0-9].json"):
        record.write_text(json.dumps({"sha256": dict.fromkeys(("xs", "squares", "count", "lost"), "0")}))
    flip(interrupted / "blocks.zarr/drawing/xs/c/1/0")
    assert tiny("run", "tiny", "--out", "war", "--resume") == 0
    assert contents(interrupted) != contents(pathlib.Path("peace"))


@pytest.mark.parametrize("name", ["zarr.json", "xs/zarr.json"])
def test_damaged_metadata_cost_all_blocks_of_the_stage(interrupted, tiny, monkeypatch, name):
    os.truncate(interrupted / "blocks.zarr/drawing" / name, 0)
    made = made_again(monkeypatch)
    assert tiny("run", "tiny", "--out", "war", "--resume") == 0
    assert made == [0, 1, 2, 3, 4, 5]
    assert contents(interrupted) == contents(pathlib.Path("peace"))


def test_what_a_killed_writer_left_is_removed(interrupted, tiny):
    for name in (".summary.json.draft", "blocks.zarr/drawing/xs/c/4/0.0123.partial", "records/drawing/.4.json.draft", ".lock"):
        (interrupted / name).parent.mkdir(parents=True, exist_ok=True)
        (interrupted / name).write_bytes(b"half")
    assert tiny("run", "tiny", "--out", "war", "--resume") == 0
    assert leftovers(interrupted) == []
    assert contents(interrupted) == contents(pathlib.Path("peace"))


REFUSED = {
    "another parameter": (["--set", "scale=2"], "`scale` must be 1.0 in war, got 2.0."),
    "another number of blocks": (["--set", "blocks=7"], "`blocks` must be 6 in war, got 7."),
    "another seed": (["--seed", "1"], "`seed` must be 0 in war, got 1."),
    "a sweep": (["--sweep", "scale=1,2"], "`--resume` must come without `--sweep` in war, got one."),
}


@pytest.mark.parametrize(("words", "message"), REFUSED.values(), ids=REFUSED)
def test_a_run_of_something_else_is_refused(interrupted, tiny, capsys, words, message):
    before = {p: p.read_bytes() for p in interrupted.rglob("*") if p.is_file()}
    capsys.readouterr()
    assert tiny("run", "tiny", *words, "--out", "war", "--resume") == 2
    assert capsys.readouterr().err == f"Error: {message}\n"
    assert {p: p.read_bytes() for p in interrupted.rglob("*") if p.is_file()} == before


def test_another_experiment_precision_or_format_is_refused(interrupted, tiny, capsys, monkeypatch):
    manifest = json.loads((interrupted / "manifest.json").read_text())
    for changed, message in (
        ({"experiment": "moving-trap"}, "`experiment` must be moving-trap in war, got tiny."),
        ({"numbers": manifest["numbers"] | {"precision": "float16"}}, "`precision` must be float16 in war, got float"),
        ({"format": 2}, "`folder` must be of format 1, got 2 of thermojax "),
        ({"thermojax": "cake"}, "`folder` must be that of a run, got war."),
    ):
        (interrupted / "manifest.json").write_text(json.dumps(manifest | changed))
        capsys.readouterr()
        assert tiny("run", "tiny", "--out", "war", "--resume") == 2
        assert capsys.readouterr().err.startswith(f"Error: {message}")


def test_an_unfinished_run_is_not_overwritten(interrupted, tiny, capsys):
    capsys.readouterr()
    assert tiny("run", "tiny", "--out", "war") == 2
    said = "`out` must be a new or an empty folder, got war, which holds an unfinished run: `--resume` goes on with it."
    assert capsys.readouterr().err == f"Error: {said}\n"


def test_a_finished_run_says_again_what_it_found(tiny, capsys, monkeypatch):
    assert tiny("run", "tiny", "--out", "out") == 0
    summary = pathlib.Path("out/summary.json").read_bytes()
    made = made_again(monkeypatch)
    assert tiny("run", "tiny", "--out", "out", "--resume") == 0
    assert made == []
    assert capsys.readouterr().out.count("600 numbers have mean") == 2
    assert pathlib.Path("out/summary.json").read_bytes() == summary


def test_resume_finds_the_newest_unfinished_run(tiny, monkeypatch, capsys):
    assert tiny("run", "tiny", "--resume") == 2
    assert capsys.readouterr().err == "Error: `--resume` must find an unfinished run of tiny in runs, got none.\n"
    assert tiny("run", "tiny") == 0
    with monkeypatch.context() as patch:
        stopped_at(patch, 2, KeyboardInterrupt())
        assert tiny("run", "tiny") == 130
        assert "--out runs/tiny-2 --resume" in capsys.readouterr().err
        stopped_at(patch, 0, KeyboardInterrupt())
        # Nothing was kept, and nothing is left.
        assert tiny("run", "tiny") == 130
    assert capsys.readouterr().err == "Interrupted; nothing was written.\n"
    assert sorted(p.name for p in pathlib.Path("runs").iterdir()) == ["tiny-1", "tiny-2"]
    assert tiny("run", "tiny", "--resume") == 0
    assert contents(pathlib.Path("runs/tiny-1")) == contents(pathlib.Path("runs/tiny-2"))


def test_resuming_what_was_killed_before_its_first_file_begins(tiny):
    pathlib.Path("out").mkdir()
    pathlib.Path("out/.manifest.json.draft").write_text("{")
    assert tiny("run", "tiny", "--out", "out", "--resume") == 0
    assert tiny("run", "tiny", "--out", "new", "--resume") == 0
    assert leftovers(pathlib.Path("out")) == []
    assert contents(pathlib.Path("out")) == contents(pathlib.Path("new"))


@pytest.mark.slow
def test_a_second_writer_is_refused_until_the_first_is_killed(interrupted, tiny, capsys):
    first = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "run", "tiny", "--set", "sleep=100", "--out", "held"],
        env={**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        stdout=subprocess.DEVNULL,
    )
    try:
        while not (pathlib.Path("held/records/drawing/stage.json")).exists():
            assert first.poll() is None
        capsys.readouterr()
        assert tiny("run", "tiny", "--set", "sleep=100", "--out", "held", "--resume") == 2
        assert capsys.readouterr().err == "Error: `out` must be a folder that no other process writes, got held.\n"
        assert tiny("status", "held") == 0
        assert ", running" in capsys.readouterr().out
    finally:
        first.kill()
        first.wait()
    assert store.state(pathlib.Path("held")) == "interrupted"


def test_status_tells_blocks_and_damage(interrupted, tiny, capsys):
    capsys.readouterr()
    assert tiny("status", "war") == 0
    assert "war: tiny, seed 0, begun " in (said := capsys.readouterr().out)
    assert ", interrupted\n  drawing: 4 of 6\n" in said
    flip(interrupted / "blocks.zarr/drawing/xs/c/1/0")
    assert tiny("status", "war") == 0
    assert ", damaged\n  drawing: 3 of 6, 1 damaged\n" in capsys.readouterr().out
    assert tiny("status", "peace") == 0
    assert ", finished\n  drawing: 6 of 6\n" in capsys.readouterr().out
    pathlib.Path("empty").mkdir()
    assert tiny("status", "empty") == 2
    assert capsys.readouterr().err == "Error: `folder` must be that of a run, got empty without a manifest.json that can be read.\n"


def test_a_report_can_be_made_again_of_a_finished_run_only(interrupted, tiny, capsys):
    page = pathlib.Path("peace/report.html").read_text()
    pathlib.Path("peace/report.html").unlink()
    assert tiny("report", "peace") == 0
    assert pathlib.Path("peace/report.html").read_text() == page
    capsys.readouterr()
    assert tiny("report", "war") == 2
    said = "`folder` must be that of a finished run, got war; `thermojax status war` tells how far it is."
    assert capsys.readouterr().err == f"Error: {said}\n"


def test_a_run_opens_as_labelled_arrays_and_exports_to_netcdf(interrupted, tiny, capsys):
    xr = pytest.importorskip("xarray")
    tree = store.open_run(interrupted)
    drawing = tree["blocks/drawing"]
    assert drawing["squares"].dims == ("block", "squares_0", "squares_1")
    assert drawing["whole"].values.tolist() == [True] * 4 + [False] * 2
    tree = store.open_run(pathlib.Path("peace"))
    numbers = json.loads(pathlib.Path("peace/summary.json").read_text())["estimates"]
    assert float(tree["value"].sel(estimate="mean")) == numbers["mean"]["value"]
    assert float(np.mean(tree["blocks/drawing"]["xs"])) == pytest.approx(numbers["mean"]["value"])
    pytest.importorskip("h5netcdf")
    pytest.importorskip("h5py")
    assert tiny("export", "peace", "peace.nc") == 0
    with xr.open_datatree("peace.nc", engine="h5netcdf") as read:
        assert read["blocks/drawing"]["xs"].identical(tree["blocks/drawing"]["xs"].load())
        assert read.attrs["experiment"] == "tiny"
    capsys.readouterr()
    assert tiny("export", "peace", "peace.nc") == 2
    assert capsys.readouterr().err == "Error: `FILE.nc` must be a new file, got peace.nc.\n"


def test_export_without_its_package_says_which(interrupted, tiny, capsys, monkeypatch):
    from thermojax.store import _tree

    monkeypatch.setattr(_tree, "find_spec", lambda name: None)
    capsys.readouterr()
    assert tiny("export", "peace", "peace.nc") == 2
    said = "`export` must have its packages (python -m pip install 'thermojax[netcdf]'), got no h5netcdf and no h5py."
    assert capsys.readouterr().err == f"Error: {said}\n"


def test_a_full_disk_gets_one_sentence_and_leaves_what_was_kept(tiny, monkeypatch, capsys):
    assert tiny("run", "tiny", "--out", "peace") == 0
    with monkeypatch.context() as patch:
        stopped_at(patch, 3, OSError(errno.ENOSPC, "No space left on device"))
        capsys.readouterr()
        assert tiny("run", "tiny", "--out", "war") == 1
    said = "war could not be written (No space left on device). What was kept before is intact; go on with: "
    assert capsys.readouterr().err == f"Error: {said}thermojax run tiny --out war --resume\n"
    assert [part[:3] for part in store.stages(pathlib.Path("war"))] == [("drawing", 3, 6)]
    assert tiny("run", "tiny", "--out", "war", "--resume") == 0
    assert contents(pathlib.Path("war")) == contents(pathlib.Path("peace"))


def test_a_limit_on_files_is_a_full_disk_to_the_writer(tiny, capsys):
    # Zarr writes in threads of its own: their errors come through too.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, before[1]))
    try:
        code = tiny("run", "tiny", "--out", "war")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1
    assert capsys.readouterr().err.startswith("Error: war could not be written (File too large).")


@pytest.fixture
def mounted(tmp_path):
    """Mounts a small file system in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=192k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("may not mount")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_file_system_that_is_full_in_fact(tiny, mounted, capsys, monkeypatch):
    words = ["run", "tiny", "--set", "blocks=40", "--out", mounted / "out"]
    assert tiny(*words) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"Error: .*/out could not be written \(No space left on device\)\. What was kept .* --resume\n", said)
    kept = store.stages(mounted / "out")[0]
    assert 0 < kept.made < 40
    assert kept.damaged == 0
    subprocess.run(["mount", "-o", "remount,size=4m", mounted], check=True)
    assert tiny(*words, "--resume") == 0
    assert f"{kept.made} of 40 blocks kept" in capsys.readouterr().out
    assert tiny(*words[:-1], "peace") == 0
    assert contents(mounted / "out") == contents(pathlib.Path("peace"))
    assert leftovers(mounted) == []


def test_a_read_only_folder_is_refused(tiny, mounted, capsys):
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    for out in (mounted, mounted / "out", mounted / "a" / "b"):
        assert tiny("run", "tiny", "--out", out) == 2
        assert capsys.readouterr().err.startswith("Error: `out` must be in a folder that can be ")


def test_a_disk_that_becomes_read_only_leaves_what_was_kept(tiny, monkeypatch, capsys):
    stopped_at(monkeypatch, 2, OSError(errno.EROFS, "Read-only file system"))
    assert tiny("run", "tiny", "--out", "war") == 1
    assert "Error: war could not be written (Read-only file system)." in capsys.readouterr().err
    assert store.stages(pathlib.Path("war"))[0].made == 2


@pytest.mark.parametrize("error", [ZeroDivisionError(), ValueError("`x` must be good, got bad.")])
def test_a_run_that_fails_before_it_has_kept_anything_leaves_nothing(tmp_path, error):
    job = store.Job("tiny", Tiny().model_dump(), 0)

    def failing():
        with store.opened(tmp_path / "out", job):
            assert (tmp_path / "out" / "manifest.json").exists()
            raise error

    with pytest.raises(type(error)):
        failing()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_while_writing_its_report_keeps_its_blocks(tiny, monkeypatch, tmp_path):
    from thermojax.store import _run

    with monkeypatch.context() as patch:
        patch.setattr(_run, "report", lambda *args: 1 / 0)
        patch.setattr(sys, "argv", ["thermojax", "run", "tiny", "--out", "war"])
        with pytest.raises(ZeroDivisionError):
            main()
    assert not pathlib.Path("war/summary.json").exists()
    assert leftovers(pathlib.Path("war")) == []
    assert tiny("run", "tiny", "--out", "war", "--resume") == 0


def keeper(folder):
    said = []
    return _keeper.Keeper(folder, store_stage, said.append), said


def store_stage(title, total=None):
    from thermojax.experiments import Silent

    return Silent().stage(title, total)


def test_blocks_come_back_as_they_were(tmp_path):
    rows = np.array([[-0.0, np.nan, np.inf], [0.0, -0.0, 5e-324], [0, 0, 0]])
    make = lambda i: {"x": rows[i], "flag": np.array([i == 1, True]), "n": np.int64(i), "empty": np.zeros((0, 2), np.float32)}
    first = keeper(tmp_path)[0].blocks("A: stage", 3, make)
    again = keeper(tmp_path)[0].blocks("A: stage", 3, lambda i: 1 / 0)
    for name, value in first.items():
        assert again[name].dtype == value.dtype
        assert again[name].shape == value.shape == (3, *make(0)[name].shape)
        assert again[name].tobytes() == value.tobytes()


def test_blocks_that_differ_in_shape_or_stages_in_one_place_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`make` must return the same names, shapes and types for every block, got x float64"):
        keeper(tmp_path)[0].blocks("stage", 3, lambda i: {"x": np.zeros(i + 1)})
    progress = keeper(tmp_path)[0]
    progress.checkpoint("training")
    with pytest.raises(ValueError, match="`title` must differ from those of the other stages, got 'Training'"):
        progress.blocks("Training", 1, lambda i: {"x": np.zeros(1)})


def test_a_descent_resumes_to_the_same_bits_and_a_damaged_checkpoint_is_dropped(tmp_path):
    loss = lambda model, key: jnp.sum((model - 1.0 + jr.normal(key, model.shape, model.dtype)) ** 2)
    options = {"optimizer": optax.adam(0.1), "steps": 20, "every": 5, "key": jr.key(0)}
    whole = fit(loss, jnp.zeros(2), **options)

    def until(made, _):
        if made == 10:
            raise KeyboardInterrupt

    for harm, words in (
        (None, "training: 10 of 20 steps kept from before."),
        (flip, "training: the checkpoint is damaged, and is made anew."),
    ):
        progress, _ = keeper(tmp_path)
        path = progress.checkpoint("training")
        with pytest.raises(KeyboardInterrupt):
            fit(loss, jnp.zeros(2), checkpoint=path, progress=until, **options)
        if harm is not None:
            # In the arrays, behind the line that describes them.
            content = bytearray(path.read_bytes())
            content[-3] ^= 1
            path.write_bytes(content)
        else:
            assert [part[:3] for part in store.stages(tmp_path)] == [("training (steps)", 10, 20)]
        progress, said = keeper(tmp_path)
        found = fit(loss, jnp.zeros(2), checkpoint=progress.checkpoint("training"), **options)
        assert said == [words]
        assert np.asarray(found.model).tobytes() == np.asarray(whole.model).tobytes()
        path.unlink()
