import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import optlab

ROOT = Path(__file__).parent.parent


def modules_after(code):
    """Which modules a fresh Python has imported after the code."""
    code = f"{code}\nimport sys\nprint(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def error_of(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False).stderr


def test_the_face_alone_imports_nothing_heavy():
    assert not {"jax", "optax", "numpy", "flax", "orbax", "chex"} & modules_after("import optlab; dir(optlab)")


def test_the_light_part_needs_jax_and_optax_only():
    code = """
import optlab, jax.numpy as jnp
tx = optlab.muon(optlab.schedules.cosine(0.1, 10), decay_roles=["matrix"])
params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
tx.update(params, tx.init(params), params)
optlab.adamw(0.1).init(params)
import sys
assert "jax.extend.core" not in sys.modules  # the reader of programs needs it, and no optimizer does
"""
    got = modules_after(code)
    assert {"jax", "optax"} <= got
    assert not {"flax", "orbax", "chex", "sklearn", "matplotlib", "tensorboardX"} & got


def test_importing_touches_no_device_and_no_setting():
    code = """
import jax
before = {k: v for k, v in jax.config.values.items()}
import optlab.optimizers, optlab.schedules, optlab.roles, optlab.transforms
assert before == dict(jax.config.values)
from jax._src import xla_bridge
assert not xla_bridge._backends
"""
    modules_after(code)


@pytest.mark.parametrize("how", ["import optlab; optlab.training", "from optlab.training import train"])
@pytest.mark.parametrize("package", ["flax", "orbax", "rich"])
def test_a_missing_extra_names_the_line_that_installs_it(how, package):
    code = f"import sys; sys.modules[{package!r}] = None; {how}"
    assert f"optlab.training needs {package}: pip install -e '.[train]'" in error_of(code)


def test_tensorboard_is_asked_for_where_it_is_used_alone():
    code = (
        "import sys; sys.modules['tensorboardX'] = None\n"
        "from optlab.training import TensorBoard\n"
        "print('imported', file=sys.stderr)\n"
        "TensorBoard('runs/mine')"
    )
    error = error_of(code)
    assert error.startswith("imported\n")
    assert "log.tensorboard needs tensorboardX: pip install -e '.[train]'" in error


def test_the_command_line_says_it_without_a_traceback():
    code = (
        "import sys; sys.modules['rich'] = None\n"
        "from optlab.commands import main\n"
        "assert main(['show', 'configs/digits.py']) == 2\n"
        "raise SystemExit(1)"
    )
    error = error_of(code)
    line = "pip install -e '.[train]' in a clone of optlab, or pip install 'FILE.whl[train]' with its wheel"
    assert error.strip() == f"optlab: optlab show needs rich: {line}"


def test_whatever_is_listed_is_there_and_nothing_else():
    for name in set(optlab.__all__) - {"config", "data", "models", "training"}:
        assert getattr(optlab, name) is not None
    assert set(optlab.__all__) == set(dir(optlab))
    with pytest.raises(AttributeError, match="module 'optlab' has no attribute 'adamww'"):
        optlab.adamww  # noqa: B018


def test_the_version_is_the_packages_and_the_citations_and_heads_the_changelog():
    assert optlab.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {optlab.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {optlab.__version__} (" in (ROOT / "CHANGELOG.md").read_text()


def test_a_folder_of_its_name_beside_the_script_does_not_hide_it(tmp_path):
    """As a clone of the repository is one: without __init__.py it would pass for a namespace package."""
    (tmp_path / "optlab").mkdir()
    (tmp_path / "script.py").write_text("import optlab; print(optlab.__version__)")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == optlab.__version__, done.stderr
