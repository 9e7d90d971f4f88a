import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib

import pytest

from thermojax.cli import main
from thermojax.experiments import EXPERIMENTS

QUICK = ["--set", "iterations=3", "--set", "batch=100", "--set", "samples=500", "--set", "steps=20"]


def command(*words, cwd, check=0):
    code = "from thermojax.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == check, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if check == 0 else done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of distance 5: its exponential averages must not be believed."""
    folder = tmp_path_factory.mktemp("cli")
    command("run", "moving-trap", *QUICK, "--set", "distance=5", "--set", "samples=20000", "--out", "out", "--seed", 3, cwd=folder)
    return folder / "out"


def test_list_names_every_experiment_and_parameter(tmp_path):
    shown = command("list", cwd=tmp_path)
    for experiment in EXPERIMENTS.values():
        assert experiment.name in shown
        assert all(name in shown for name in experiment.parameters.model_fields)


@pytest.mark.slow
def test_info_tells_versions_devices_and_the_step_rate(tmp_path):
    shown = command("info", cwd=tmp_path)
    assert "jaxlib" in shown
    assert re.search(r"\d+ million steps/s .* \d\.\d\d of the rate", shown)


def test_a_run_writes_a_summary_figures_and_a_report(finished):
    assert sorted(p.name for p in finished.iterdir()) == ["manifest.json", "protocol.png", "report.html", "summary.json", "work.png"]
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["experiment"] == "moving-trap"
    assert summary["seed"] == 3
    assert summary["parameters"]["distance"] == 5
    assert {"python", "jax", "thermojax", "device"} <= set(summary["versions"])
    assert set(summary["estimates"]) == {
        "work_linear",
        "work_optimised",
        "jump_first",
        "jump_last",
        "jarzynski_delta_f",
        "mean_log_ratio",
        "ift",
    }
    for estimate in summary["estimates"].values():
        assert set(estimate) == {"value", "stderr", "ess", "exact", "trustworthy", "meaning"}
    linear = summary["estimates"]["work_linear"]
    assert abs(linear["value"] - 9.19698602929) < 4 * linear["stderr"] + 0.01  # exact; twenty steps are a little off


def test_estimates_that_must_not_be_believed_are_marked(finished):
    estimates = json.loads((finished / "summary.json").read_text())["estimates"]
    verdicts = {name: e["trustworthy"] for name, e in estimates.items()}
    assert verdicts["work_linear"]
    assert verdicts["jarzynski_delta_f"] is False
    assert verdicts["ift"] is False
    assert verdicts["jump_first"] is None
    report = (finished / "report.html").read_text()
    assert len(re.findall(r'<tr class="weak"', report)) == 2
    assert "do not trust" in report
    assert "Not to be believed: jarzynski_delta_f, ift." in report


def test_the_report_refers_to_nothing_outside_itself(finished):
    report = (finished / "report.html").read_text()
    assert len(re.findall(r'src="data:image/png;base64,', report)) == 2
    assert not re.findall(r'(?:src|href)="(?!data:)', report)
    assert "http" not in report


@pytest.mark.nightly
def test_the_same_seed_gives_the_same_numbers(finished, tmp_path):
    command("run", "moving-trap", *QUICK, "--set", "distance=5", "--set", "samples=20000", "--out", "again", "--seed", 3, cwd=tmp_path)
    first, second = (json.loads((p / "summary.json").read_text())["estimates"] for p in (finished, tmp_path / "again"))
    assert first == second


@pytest.mark.nightly
def test_what_show_prints_runs(tmp_path):
    text = command("show", "moving-trap", cwd=tmp_path)
    defaults = EXPERIMENTS["moving-trap"].parameters().model_dump()
    assert tomllib.loads(text)["parameters"] == defaults
    for name, value in (("iterations", 3), ("batch", 100), ("samples", 500), ("steps", 20)):
        text = re.sub(rf"^{name} = \S+", f"{name} = {value}", text, flags=re.MULTILINE)
    (tmp_path / "mine.toml").write_text(text)
    command("run", "mine.toml", "--set", "stiffness=2", cwd=tmp_path)
    summary = json.loads((tmp_path / "runs" / "moving-trap-1" / "summary.json").read_text())
    assert (summary["parameters"]["stiffness"], summary["parameters"]["samples"]) == (2.0, 500)


@pytest.mark.slow
def test_training_killed_after_a_checkpoint_resumes_to_the_same_bits(tmp_path):
    words = ["run", "moving-trap", *QUICK, "--set", "iterations=200", "--out"]
    code = "from thermojax.cli import main; main()"
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", code, *words, "out"], cwd=tmp_path, **pipes) as process:
        while not (tmp_path / "out" / "checkpoints" / "optimising-the-protocol").exists():
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()
    shown = command(*words, "out", "--resume", cwd=tmp_path)
    assert re.search(r"optimising the protocol: (50|100|150|200) of 200 steps kept from before\.", shown)
    command(*words, "peace", cwd=tmp_path)
    resumed, whole = (json.loads((tmp_path / name / "summary.json").read_text())["estimates"] for name in ("out", "peace"))
    assert resumed == whole
    assert not (tmp_path / "out" / "checkpoints").exists()


MISTAKES = {
    "unknown experiment": (["run", "moving-trip"], r"`experiment` must be one of digits, moving-trap, .*, got 'moving-trip'\."),
    "unknown key": (["run", "moving-trap", "--set", "tua=1"], r"`--set` must name one of distance, tau, .*, got 'tua'\."),
    "value out of range": (["run", "moving-trap", "--set", "tau=-1"], r"`tau` must be greater than 0, got -1\."),
    "value of a wrong type": (["run", "moving-trap", "--set", "steps=many"], r"`steps` must be .*integer.*, got 'many'\."),
    "value out of its choices": (["run", "moving-trap", "--set", "stepper=magic"], r"`stepper` must be 'exact' or 'euler', got 'magic'\."),
    "not a number": (["run", "moving-trap", "--set", "tau=nan"], r"`tau` must be .*finite number.*, got nan\."),
    "no value": (["run", "moving-trap", "--set", "tau"], r"`--set` must be given as KEY=VALUE, got 'tau'\."),
    "no file": (["run", "missing.toml"], r"`FILE\.toml` must be a file that can be read, got missing\.toml"),
    "occupied folder": (["run", "moving-trap", "--out", "occupied"], r"`out` must be a new or an empty folder, got occupied\."),
    "broken file": (["run", "broken.toml"], r"`broken\.toml` must be valid TOML"),
    "unknown key in a file": (
        ["run", "odd.toml"],
        r"`odd\.toml` must have only the keys experiment, seed, parameters, sweep, got 'sede'\.",
    ),
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_gets_one_sentence_and_exit_code_2(tmp_path, monkeypatch, capsys, words, message):
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "thesis.tex").touch()
    (tmp_path / "broken.toml").write_text("experiment = ")
    (tmp_path / "odd.toml").write_text('experiment = "moving-trap"\nsede = 1\n')
    before = sorted(tmp_path.rglob("*"))
    # In this process, which has everything imported.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["thermojax", *words])
    with pytest.raises(SystemExit, match="2"):
        main()
    said = capsys.readouterr().err
    assert re.fullmatch(rf"Error: {message}\n?", said) or re.match(rf"Error: {message}", said), said
    assert said.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-C", "kill"])
def test_a_run_interrupted_before_it_has_kept_anything_leaves_nothing(tmp_path, how):
    # A shell in the background hands on that Ctrl-C is ignored; here it is as in a terminal. The run says when it has begun: an
    # interruption while Python still imports is not ours to handle.
    code = """
import signal; signal.signal(signal.SIGINT, signal.default_int_handler)
from thermojax import cli
stage = cli.LiveProgress.stage
def announced(self, title, total=None):
    print("begun", flush=True)
    return stage(self, title, total)
cli.LiveProgress.stage = announced
cli.main()
"""
    words = ["run", "moving-trap", "--out", "out"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code, *words], cwd=tmp_path, **pipes)
    assert process.stdout.readline() == "begun\n"
    # While the first round of the optimisation is traced and compiled, long before its first checkpoint.
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(how)
    try:
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_the_report_opens_in_a_browser_with_every_figure_and_an_empty_console(finished, tmp_path):
    page = (finished / "report.html").read_text()
    # The page is asked what it shows: its answer becomes its title, and the console goes to the error stream.
    probe = """<script>addEventListener("load", () => { document.title = JSON.stringify(
        [...document.images].map(i => i.complete && i.naturalWidth > 100 && i.getBoundingClientRect().width > 100)); })</script>"""
    (tmp_path / "report.html").write_text(page.replace("</body>", probe + "</body>"))
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    done = subprocess.run(
        [
            BROWSER,
            *flags.split(),
            f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr",
            "--dump-dom",
            tmp_path / "report.html",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert "<title>[true,true]</title>" in done.stdout
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
