"""benchmarks/gpu.py runs from end to end, and whatever fails in it costs a row and no more."""

import io
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

import optlab
from optlab.transforms.matrices._newton_schulz import flops

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PLANTED = """
import os, signal, subprocess, sys, time

def fine(bench):
    bench.row("a case", "fine", [1.0, 2.0, 3.0], "ms", goals={"other": 0.5})

def raises(bench):
    bench.row("a case", "before", 1.0, "ms")
    raise ValueError("planted\\nsecond line")

def hangs(bench):
    bench.row("a case", "before", 1.0, "ms")
    subprocess.Popen([sys.executable, "-c", f"import time; time.sleep(30) # {os.getpid()}"])
    time.sleep(30)

def hangs_in_its_turn(bench):
    bench.take_turn()
    time.sleep(30)

def is_killed(bench):
    bench.row("a case", "before", 1.0, "ms")
    os.kill(os.getpid(), signal.SIGKILL)

def arm_raises(bench):
    def good():
        return lambda: None, lambda: None
    def bad():
        raise MemoryError("RESOURCE_EXHAUSTED")
    for name in bench.measure({"bad": bad, "good": good}):
        bench.row("a case", name, 1.0, "ms")

def turns(bench):
    def make():
        def advance():
            began = time.time()
            time.sleep(0.02)
            with open(os.environ["TURNS"], "a") as file:
                print(os.getpid(), began, time.time(), file=file)
        return advance, lambda: None
    bench.smoke = False
    bench.measure({"arm": make}, turns=3)

also = turns

def last(bench):
    bench.take_turn(last=True)
    bench.row("a case", "last", time.time(), "s")

def first(bench):
    bench.take_turn()
    time.sleep(0.5)
    bench.take_turn()
    bench.row("a case", "first", time.time(), "s")
"""


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    return gpu


@pytest.fixture
def run(gpu, tmp_path, monkeypatch):
    """Runs sections whose sides are planted functions: rows by what was written."""
    (tmp_path / "planted.py").write_text(PLANTED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: name)

    def run(*sides, limit=1.5):
        sections = [gpu.Section(i, "planted", side.split("+"), limit) for i, side in enumerate(sides)]
        report = gpu.Report({"device": "cpu"}, tmp_path / "out", "gpu")
        with (tmp_path / "log").open("w") as log:
            gpu.run(sections, report, log)
        written = json.loads((tmp_path / "out" / "gpu.json").read_text())
        assert written["rows"] == report.rows
        return report.rows

    return run


def failures(rows):
    return {row["section"]: row["failed"] for row in rows if "failed" in row}


def test_what_raises_or_is_killed_costs_a_row_that_says_why(run):
    rows = run("raises", "is_killed", "arm_raises", "fine")
    found = failures(rows)
    assert found[0] == "ValueError: planted"
    assert found[1].startswith("killed by SIGKILL")
    assert found[2] == "MemoryError: RESOURCE_EXHAUSTED"
    assert [(row["section"], row["who"]) for row in rows if "value" in row] == [
        (0, "before"),
        (1, "before"),
        (2, "good"),
        (3, "fine"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("side", ["hangs", "hangs_in_its_turn+turns"])
def test_what_hangs_is_stopped_at_its_limit_with_all_that_it_started(run, tmp_path, monkeypatch, side):
    monkeypatch.setenv("TURNS", str(tmp_path / "turns"))
    began = time.time()
    rows = run(side, "fine", limit=0.4)
    assert time.time() - began < 15
    assert failures(rows)[0].startswith("stopped at its limit")
    assert rows[-1]["who"] == "fine"
    if side == "hangs":
        assert rows[0]["who"] == "before"
        (log,) = [line for line in (tmp_path / "log").read_text().splitlines() if "in hangs" in line]
        assert "planted.py" in log  # where it hung
        processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
        assert not any("import time; time.sleep(30) #" in line for line in processes.splitlines())


def test_sides_measure_in_turns(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TURNS", str(tmp_path / "turns"))
    run("turns+also", limit=3)
    turns = [line.split() for line in (tmp_path / "turns").read_text().splitlines()]
    turns = sorted((float(began), float(ended), pid) for pid, began, ended in turns)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(turns))
    assert len({pid for *_, pid in turns}) == 2
    assert sum(one[2] != other[2] for one, other in itertools.pairwise(turns)) >= 6


def test_a_side_waits_once_for_another_one_to_be_ready(gpu):
    """And not before each of its turns."""
    waits, compiles = (gpu.Side(name, SimpleNamespace(stdin=io.BytesIO()), patience=10.0) for name in "ab")
    for ago, served in ((5.0, 0), (11.0, 1), (0.0, 1), (1.0, 2)):
        waits.asked, waits.since, waits.is_measuring = "ready", time.time() - ago, False
        gpu._pass_on([waits, compiles])
        assert waits.served == served, ago


def test_what_doesnt_compile_in_time_costs_its_own_row(gpu, tmp_path):
    from on_gpu.bench import Bench
    from on_gpu.floors import H100

    class Program:
        def __init__(self, seconds):
            self.compile = lambda: time.sleep(seconds) or "compiled"

    with (tmp_path / "rows").open("w") as rows:
        bench = Bench(True, time.time() + 1.5, H100, rows)
        assert bench.compiled({"slow": lambda: Program(3), "fast": lambda: Program(0)}) == {"fast": "compiled"}
        assert bench.left > 0
    assert json.loads((tmp_path / "rows").read_text()) == {
        "case": "slow",
        "who": "",
        "failed": "not compiled after 1 s",
    }


def test_a_step_that_takes_seconds_is_a_turn(gpu, monkeypatch):
    """By a clock that the steps alone move."""
    from on_gpu import bench

    clock, steps = [0.0], []
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    for seconds, expected in ((2 * bench.LONG, 3), (bench.SECONDS / 5000, 1002)):
        steps.clear()

        def advance(seconds=seconds):
            clock[0] += seconds
            steps.append(seconds)

        bench._Timer(lambda advance=advance: (advance, lambda: None), bench.SECONDS)()
        assert len(steps) == expected


def test_who_asks_for_the_last_turn_gets_it_when_others_have_ended(run):
    rows = run("last+first")
    at = {row["who"]: row["value"] for row in rows}
    assert at["first"] < at["last"]


def test_without_torch_its_side_is_skipped(run, gpu, monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    rows = run("fine+theirs")
    assert {"section": 0, "case": "torch", "who": "", "skipped": "torch isn't here"} in rows
    assert not failures(rows)


def test_no_time_left_is_said(run, gpu, monkeypatch):
    monkeypatch.setattr(gpu, "TOTAL", 0.2)
    rows = run("hangs", "fine")
    assert failures(rows)[1] == "no time was left"


def test_verdicts(gpu):
    row = lambda who, value, unit="ms", **more: (
        {"section": 1, "case": "c", "who": who, "unit": unit}
        | {
            "value": value,
            "floor": None,
            "goals": {},
            "note": "",
            **more,
        }
    )
    ours = row("ours", 3.0, goals={"theirs": 0.5, "gone": 0.5})
    told = gpu.verdicts(ours, [ours, row("theirs", 4.0)])
    assert told == ["0.75 of theirs, goal ≤ 0.5: MISSED", "gone: not measured"]
    fast = row("ours", 600.0, "tokens/s", floor=1000.0, goals={"floor": 0.5, "": 700.0})
    assert gpu.verdicts(fast, [fast]) == ["0.6 of the floor, goal ≥ 0.5: met", "600, goal ≥ 700: MISSED"]


def test_the_limits_fit_the_time_that_a_lent_gpu_has(gpu):
    assert sum(section.limit for section in gpu.SECTIONS) <= gpu.TOTAL <= 480


def test_the_counts_are_the_programs(gpu):
    from on_gpu import adamw, floors
    from on_gpu.bench import Bench
    from on_gpu.muon import FORMS, GRAM, cases

    bench = Bench(False, 0.0, floors.H100, sys.stderr)
    assert floors.GPT().parameters == floors.count(adamw.shapes(bench)) == 124_439_808
    shapes = cases(bench)["GPT-2 small"]
    of_ours = lambda form, chunks: sum(flops((min(s), max(s)), chunks, form) for s in shapes)
    assert floors.newton_schulz_flops(shapes) == of_ours("standard", (5,))
    leaves = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    for name, chunks in GRAM.items():
        ((_, plan),) = optlab.explain(optlab.orthogonalize(**FORMS[name][0]), leaves).plans
        assert floors.gram_flops(shapes, chunks) == plan.flops_per_device({}, "gpu"), name


def test_the_expectations_are_what_the_floors_say(gpu):
    from on_gpu import expectations

    assert expectations.FILE.read_text() == expectations.text()


def test_the_largest_batch_fits_beside_what_the_allocator_keeps(gpu):
    from on_gpu.bench import Bench
    from on_gpu.floors import H100
    from on_gpu.gpt import ROOM, contiguous, largest_batch

    bench, size = Bench(False, 0.0, H100, sys.stderr), lambda limit: largest_batch(bench, 8, 2, 10, limit)
    assert contiguous({}, held=2) is None
    assert size(None) == 16
    assert size(contiguous({"bytes_limit": 73}, held=2)) == int(ROOM * 73 - 2) // 8 * 8 == 64
    assert size(contiguous({"bytes_limit": 73, "pool_bytes": 26}, held=2)) == int(ROOM * 49 - 2) // 8 * 8 == 40


@pytest.mark.slow
@pytest.mark.parametrize("section", range(1, 8))
def test_smoke(section, tmp_path):
    environment = os.environ | {"OUT": str(tmp_path), "PYTHONPATH": str(BENCHMARKS.parent)}
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--smoke", "--only", str(section)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    log = (tmp_path / "gpu.log").read_text()
    assert done.returncode == 0, done.stdout + log[-3000:]
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert rows
    assert all(row["value"] >= 0 for row in rows if "skipped" not in row)
    assert done.stdout.count("\n| ") >= len(rows)
    assert (tmp_path / "gpu.md").read_text().count("\n") >= len(rows)
