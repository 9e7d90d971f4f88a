import ast
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

import thermojax

SRC = pathlib.Path(thermojax.__file__).parent
ORDER = [
    "_array",
    "_check",
    "_noise",
    "_symmetric",
    "phase",
    "potentials",
    "protocols",
    "baths",
    "distributions",
    "dynamics",
    "steppers",
    "exact",
    "ensemble",
    "functionals",
    "estimators",
    "variance",
    "streaming",
    "fokker_planck",
    "switching",
    "theorems",
    "measures",
    "targets",
    "annealing",
    "geometry",
    "escorting",
    "optimize",
    "generative",
    "samplers",
    "gflownets",
    "bridges",
    "plots",
    "experiments",
    "store",
    "sweeps",
    "settings",
    "speed",
    "cluster",
    "cli",
]


def files_of(name):
    return sorted((SRC / name).rglob("*.py")) or [SRC / f"{name}.py"]


def imported(text):
    """The names of our modules that a text imports, split at the dots, with what is taken from them."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "thermojax":
            yield from ([*node.module.split("."), alias.name] for alias in node.names)
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names if alias.name.startswith("thermojax."))


def imports(path):
    return {parts[1] for parts in imported(path.read_text())}


def intrusions(name, text):
    """What a text of the package `name` takes from inside another package. `_array` and its like are modules of their own."""
    return [".".join(parts) for parts in imported(text) if parts[1] != name and any(part.startswith("_") for part in parts[2:])]


@pytest.mark.parametrize("name", ORDER)
def test_modules_import_only_what_comes_before_them(name):
    for path in files_of(name):
        for other in imports(path):
            assert other == name or ORDER.index(other) < ORDER.index(name), f"{path} imports {other}"


@pytest.mark.parametrize("name", ORDER)
def test_packages_take_from_others_only_what_these_offer(name):
    for path in files_of(name):
        assert not intrusions(name, path.read_text()), path


def test_taking_from_inside_another_package_shows():
    text = "import thermojax.optimize._fit\nfrom thermojax._array import cast\nfrom thermojax.{} import {}"
    assert intrusions("geometry", text.format("geometry._panels", "panels")) == ["thermojax.optimize._fit"]
    for module, name in (("fokker_planck._grid", "Grid"), ("fokker_planck", "_grid")):
        assert len(intrusions("geometry", text.format(module, name))) == 2


def test_every_module_has_its_place_in_the_reading_order():
    found = {p.stem if p.is_file() else p.name for p in SRC.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert found - {"__init__"} == set(ORDER)


def test_files_stay_readable():
    long = {str(p): n for p in SRC.rglob("*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def run_python(code, **env):
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, **env}, check=True, capture_output=True, text=True).stdout


def test_import_starts_no_backend_and_changes_no_configuration():
    # With an unknown platform, touching the backend raises.
    # With all that the command line imports: processes join each other before the backend starts.
    imports = "import thermojax, thermojax.cli, thermojax.settings"
    code = f"import jax; before = dict(jax.config.values); {imports}; assert before.items() <= jax.config.values.items()"
    run_python(code, JAX_PLATFORMS="no_such_platform")


def test_import_is_quick():
    # Two seconds of processor time where what it builds on takes 1.17 of them: the machine may be slower, and other tests run beside this.
    code = """
        from time import process_time
        start = process_time()
        import jax, equinox, diffrax, optax
        built_on = process_time()
        import thermojax
        print((process_time() - built_on) / (built_on - start))
        """
    assert any(float(run_python(textwrap.dedent(code))) < 2.0 / 1.17 - 1.0 for _ in range(2))
