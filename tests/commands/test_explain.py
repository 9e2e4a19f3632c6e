"""`optlab explain` as a person meets it."""

import os
import re
import subprocess
import sys

import jax
import pytest

import optlab._explanation
import optlab.training  # here, as Optax and Flax use jax.jit when they are imported
from optlab.commands import _tables, main

CONFIG = """
from optlab.config import Config, component

def get_config():
    return Config(
        data=component("digits"),
        model=component("mlp", widths=[16, 16]),
        optimizer=component("muon", learning_rate=1e-3),
        schedule=component("warmup_cosine", warmup=5),
        steps=40,
    )
"""


def test_every_parameter_its_rule_and_the_plan_without_compiling(here, capsys, monkeypatch):
    monkeypatch.setattr(jax, "jit", None)
    assert main(["explain", "small.py", "--devices", "2"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"parameter +shape +role +rule +matrices +state +GFLOP", out)
    assert re.search(r"hidden_0/kernel +64×16 +matrix +matrix +1 of 64×16 +4\.00 KiB +\d", out)
    assert re.search(r"hidden_1/kernel +16×16 +matrix +matrix +1 of 16×16 +1\.00 KiB +\d", out)
    assert re.search(r"head/kernel +16×10 +head +default +1\.25 KiB *\n", out)
    assert out.index("hidden_1/kernel") < out.index("head/bias")  # by rule
    assert re.search(r"all +6 +1,482 +\d+\.\d+ KiB +\S+ +3 vector, 2 matrix, 1 head", out)
    assert "Each of 2 devices: " in out
    assert re.search(r"The matrices of the rule 'matrix' are done by this plan:\nmatrices +shape +on +form", out)
    assert [p.name for p in here.iterdir() if p.suffix != ".pyc" and p.name != "__pycache__"] == ["small.py"]


@pytest.mark.parametrize(("columns", "longest"), [(80, 15), (70, 15), (80, 70), (80, 130)])
def test_a_narrow_terminal_breaks_no_parameters_name(monkeypatch, capsys, columns, longest):
    monkeypatch.setenv("COLUMNS", str(columns))
    row = ("k" * longest, "256×256", "matrix", "default", "1 of 256×256", "256.00 KiB", "0.0157")
    table = _tables.empty(optlab._explanation.COLUMNS, numbers=("state", "GFLOP"))
    table.add_row(*row)
    _tables.show(table, _tables.console())
    out = capsys.readouterr().out
    assert {word for cell in row for word in cell.split()} <= set(out.split())
    assert longest > 15 or max(map(len, out.splitlines())) <= columns
    assert (columns, longest) != (80, 15) or "1 of 256×256" in out


def test_another_optimizer_by_an_override(here, capsys):
    assert main(["explain", "small.py", "optimizer=adamw", "optimizer.learning_rate=1e-3", "clip_norm=1"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"hidden_1/kernel +16×16 +matrix +\(opaque\) +2\.00 KiB", out)
    assert "(opaque) rules can't be seen" in out
    assert "One device: " in out


def test_a_role_that_was_said_is_marked(here, capsys):
    (here / "said_roles.py").write_text(
        "import functools, optlab\n"
        "def rule(learning_rate: float):\n"
        "    said = functools.partial(optlab.roles.read_names, overrides={'head/kernel': 'matrix'})\n"
        "    return optlab.muon(learning_rate, layout=said)\n"
    )
    assert (
        main(["explain", "small.py", "optimizer=said_roles:rule", "optimizer.learning_rate=1e-3", "schedule=constant"])
        == 0
    )
    out = capsys.readouterr().out
    assert re.search(r"head/kernel +16×10 +matrix\* +matrix +1 of 16×10", out)
    assert "Names and shapes alone would say something else: head/kernel (head)" in out


@pytest.mark.slow
def test_it_is_whole_when_it_is_piped(here):
    program = "import sys; from optlab.commands import main; sys.exit(main())"
    words = ["explain", "small.py", "model=vision_transformer", "model.depth=1"]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}  # which pytest may set
    found = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    (line,) = (line for line in found.stdout.splitlines() if "block_0/attention/query/kernel" in line)
    assert re.search(r"body/block_0/attention/query/kernel +192×192 +matrix +matrix +1 of 192×192", line)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["small.py", "--devices", "0"], "optlab: --devices must be at least 1, got 0"),
        (["small.py", "stepz=1"], "optlab: unknown key 'stepz'; did you mean 'steps'?"),
        (["smal.py"], "optlab: no config file 'smal.py'; did you mean 'small.py'?"),
        (["small.py", "optimizer.weight_decay=-1"], "weight_decay must not be negative, got -1"),
        (
            ["small.py", "optimizer=odd:rule", "optimizer.learning_rate=1", "schedule=constant"],
            "the layout has no parameter 'odd' of shape (2, 3, 4)",
        ),
    ],
)
def test_bad_input_is_two_lines_at_most_and_exit_2(here, capsys, words, message):
    (here / "odd.py").write_text(
        "import jax.numpy as jnp, optax, optlab\n"
        "def rule(learning_rate: float):\n"
        "    tx = optlab.muon(learning_rate)\n"
        "    return optax.GradientTransformation(lambda params: tx.init({'odd': jnp.ones((2, 3, 4))}), tx.update)\n"
    )
    assert main(["explain", *words]) == 2
    out, error = capsys.readouterr()
    assert message in error
    assert out == ""
    assert error.count("\n") <= 2


def test_a_missing_extra_names_the_line_that_installs_it(here):
    code = (
        "import sys; sys.modules['rich'] = None\n"
        "from optlab.commands import main\n"
        "assert main(['explain', 'small.py']) == 2\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stderr.startswith("optlab: optlab explain needs rich: pip install -e '.[train]'")
