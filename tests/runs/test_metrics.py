"""Observers: metrics.jsonl without gaps or duplicates, TensorBoard events, curves, the live line."""

import io
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from optlab.training import MetricsFile, Progress, StepLog, TensorBoard, WeightsAndBiases, plot_curves, read_metrics

RECORDS = [
    {"step": 10, "seconds": 1.0, "train/loss": 2.0, "train/accuracy": 0.1, "learning_rate": 0.01},
    {
        "step": 20,
        "seconds": 2.0,
        "train/loss": 1.0,
        "train/accuracy": 0.5,
        "validation/loss": 1.5,
        "learning_rate": 0.005,
    },
    {"step": 30, "seconds": 3.0, "train/loss": 0.5, "validation/loss": 1.0, "test/loss": 1.1},
]


def write(observer, records, start=0, steps=30):
    observer.begin(start, steps)
    for record in records:
        observer.record(record)
    observer.end("finished")


def test_a_continued_file_has_each_step_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(MetricsFile(path), RECORDS[:2])
    with path.open("a") as file:
        file.write('{"step": 25, "train/l')  # killed in the middle of a line
    write(MetricsFile(path), RECORDS[1:], start=10)
    assert read_metrics(path) == RECORDS
    assert read_metrics(tmp_path) == RECORDS
    assert [json.loads(line) for line in path.read_text().splitlines()] == RECORDS


def test_a_line_is_on_the_disk_when_record_returns(tmp_path):
    observer = MetricsFile(tmp_path / "metrics.jsonl")
    observer.begin(0, 30)
    observer.record(RECORDS[0])
    assert read_metrics(tmp_path) == RECORDS[:1]
    observer.end("finished")


@pytest.mark.parametrize(
    "damage", [b"\x00\xff\x00\n", b'{"step": 20, "tra\n', b"[1, 2]\n", b'{"loss": 3}\n', b'{"step": "20"}\n']
)
def test_a_damaged_line_in_the_middle_is_told_and_loses_nothing(tmp_path, capsys, damage):
    path = tmp_path / "metrics.jsonl"
    write(MetricsFile(path), [RECORDS[0]])
    with path.open("ab") as file:
        file.write(damage + b"\n" + json.dumps(RECORDS[1]).encode() + b"\n")
    before = path.read_bytes()
    with pytest.warns(UserWarning, match="what was line 2 can't be read"):
        assert read_metrics(path) == RECORDS[:2]
    write(MetricsFile(path), RECORDS[2:], start=20)
    assert read_metrics(path) == RECORDS
    [aside] = tmp_path.glob("damaged-*-metrics.jsonl")
    assert aside.read_bytes() == before
    assert f"what was line 2 can't be read; {aside.name} is a copy with them" in capsys.readouterr().err


def test_a_step_that_comes_twice_counts_once_and_is_told(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    write(MetricsFile(path), RECORDS)
    path.write_bytes(2 * path.read_bytes())
    with pytest.warns(UserWarning, match="what was line 4, 5, 6 isn't of a later step than those before"):
        assert read_metrics(path) == RECORDS
    write(MetricsFile(path), RECORDS[2:], start=20)
    assert len(path.read_text().splitlines()) == 3
    assert "what was line 4, 5, 6 isn't of a later step" in capsys.readouterr().err


@pytest.mark.parametrize("end", [bytes(9), b'{"step": 3' + bytes(9), b"thesis"])
def test_an_end_that_no_kill_leaves_is_damaged_and_not_cut_off(tmp_path, end):
    (tmp_path / "metrics.jsonl").write_bytes(end)
    with pytest.warns(UserWarning, match="what was line 1 can't be read"):
        assert read_metrics(tmp_path) == []


def test_a_kill_while_the_file_is_cut_back_leaves_the_old_one_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    write(MetricsFile(path), RECORDS)
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            MetricsFile(path).begin(10, 30)
    assert read_metrics(path) == RECORDS
    write(MetricsFile(path), RECORDS[1:], start=10)
    assert read_metrics(path) == RECORDS
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_file_that_goes_away_under_the_run_or_before_it_continues_is_told(tmp_path, capsys):
    observer = MetricsFile(tmp_path / "metrics.jsonl")
    observer.begin(0, 30)
    observer.record(RECORDS[0])
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"metrics.jsonl was deleted or replaced while the run wrote to it"):
        observer.record(RECORDS[1])
    observer.end("FileNotFoundError")
    write(MetricsFile(tmp_path / "metrics.jsonl"), RECORDS[1:], start=10)
    assert "metrics.jsonl isn't there; it begins after step 10" in capsys.readouterr().err


def test_a_log_of_steps_takes_several_entries_a_step_from_any_thread(tmp_path):
    log = StepLog(tmp_path / "skipped.jsonl")
    for start in (0, 2):  # a continued run: what was written after step 2 is written again
        log.begin(start)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda i: log.add({"step": 1 + i // 100, "record": i}), range(100 * start, 300)))
        log.end()
    assert sorted(json.loads(line)["record"] for line in log.path.read_text().splitlines()) == list(range(300))
    assert log.lines == 300


def test_tensorboard_events_are_written(tmp_path):
    write(TensorBoard(tmp_path), RECORDS)
    [events] = tmp_path.glob("events.out.tfevents.*")
    content = events.read_bytes()
    assert b"validation/loss" in content
    assert b"step" not in content


def test_curves_are_drawn(tmp_path):
    write(MetricsFile(tmp_path / "metrics.jsonl"), RECORDS)
    assert plot_curves(tmp_path).read_bytes()[:4] == b"\x89PNG"


def test_curves_have_a_title_a_target_errors_and_no_more_than_six_panels(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    accuracies = [{"step": t, "validation/accuracy": x} for t, x in ((1, 0.5), (2, 0.95), (3, 1.0))]
    write(MetricsFile(tmp_path / "metrics.jsonl"), [r | {f"train/m{i}": 1.0 for i in range(9)} for r in accuracies])
    optimizer = {"name": "adamw", "arguments": {"learning_rate": 0.003}}
    (tmp_path / "config.json").write_text(json.dumps({"config": {"optimizer": optimizer}}))
    target = {"metric": "validation/accuracy", "value": 0.9}
    (tmp_path / "summary.json").write_text(json.dumps({"best": {"step": 3, "value": 1.0}, "target": target}))
    plot_curves(tmp_path)
    (figure,) = figures
    assert len(figure.axes) == 6
    assert "adamw, learning rate 0.003   best validation/accuracy 1 at step 3" in figure.get_suptitle().replace(
        "\n", "   "
    )
    assert "not drawn: m5, m6, m7, m8" in figure.axes[-1].get_xlabel()
    (errors,) = [axes for axes in figure.axes if axes.get_ylabel() == "1 − accuracy"]
    np.testing.assert_allclose(errors.lines[0].get_ydata(), [0.5, 0.05, 0.0], atol=1e-12)
    np.testing.assert_allclose(errors.lines[1].get_ydata(), 0.1)
    assert errors.get_yscale() == "log"


def test_a_long_name_leaves_room_for_the_rest_of_the_title(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    run = tmp_path / ("long-" * 30)
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "validation/loss": 2.0}\n')
    summary = {"best": {"step": 1, "value": 2.0}, "target": {"metric": "validation/loss"}}
    (run / "summary.json").write_text(json.dumps(summary))
    plot_curves(run)
    first, second = figures[0].get_suptitle().splitlines()
    assert (len(first), first[-1]) == (95, "…")
    assert second == "best validation/loss 2 at step 1"


@pytest.mark.parametrize("terminal", [True, False])
def test_the_live_line_says_what_one_wants_to_know(terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=200)
    write(Progress(batch_size=128, metric="validation/accuracy", console=console), RECORDS)
    text = out.getvalue()
    for word in ("step 30/30", "train/loss 0.5", "validation/loss 1", "lr 0.005", "examples/s", "left"):
        assert word in text
    assert ("\x1b" in text) == terminal


def test_on_80_columns_evaluations_stay_above_a_live_line_that_fits():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, color_system=None)
    records = [{**r, "validation/accuracy": 0.9} if "validation/loss" in r else r for r in RECORDS]
    progress = Progress(batch_size=128, metric="validation/accuracy", about="digits: 1,297 training", console=console)
    write(progress, records)
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in re.split(r"[\r\n]+", out.getvalue())]
    assert all(len(line) <= 80 for line in lines)
    assert [line[:10] for line in lines if line.startswith("step")][:2] == ["step 20/30", "step 30/30"]
    assert "step 30/30  train/loss 0.5  validation/accuracy 0.9  0:00 left" in [line[:63].rstrip() for line in lines]
    assert "digits: 1,297 training" in lines
    assert not any("…" in line for line in lines if line.startswith("step"))


def test_throughput_is_of_the_training_time():
    out = io.StringIO()
    progress = Progress(batch_size=100, console=Console(file=out, width=200))
    write(progress, [{"step": t, "seconds": t / 10, "validation/loss": 1.0} for t in (10, 20, 30)])
    assert out.getvalue().count(" 1,000 examples/s") == 2


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"log.wandb needs wandb: pip install -e '.\[wandb\]'"):
        WeightsAndBiases("project", folder="run", config={})
