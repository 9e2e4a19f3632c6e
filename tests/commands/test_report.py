"""`optlab report`: one page of some run folders; nothing is trained here."""

import json

import pytest

from optlab.commands import main
from optlab.config import Config, component, to_json


def folder_of(here, name, config=True, metrics=True, **keys):
    """A run folder as `optlab train` leaves one."""
    folder = here / "runs" / name
    folder.mkdir(parents=True)
    keys = {"optimizer": component("sgd", learning_rate=0.1), "steps": 4, **keys}
    made = Config(data=component("digits"), model=component("mlp", widths=[8]), **keys)
    if config:
        (folder / "config.json").write_text(json.dumps({"config": to_json(made)}))
    if metrics:
        lines = [{"step": s, "train/loss": 1 / s, "validation/loss": 2 / s} for s in (2, 4)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_runs_are_laid_over_each_other_with_the_keys_that_differ(here, capsys):
    runs = [folder_of(here, "a"), folder_of(here, "b", optimizer=component("sgd", learning_rate=0.2), steps=8)]
    assert main(["report", *runs]) == 0
    assert capsys.readouterr().out.strip() == str(here / "runs" / "report.html")
    text = (here / "runs" / "report.html").read_text()
    assert "<tr><td>optimizer.learning_rate</td><td>0.1</td><td>0.2</td></tr>" in text
    assert "<tr><td>steps</td><td>4</td><td>8</td></tr>" in text
    assert "<td>batch_size</td>" not in text
    assert "<tr><td>a</td><td>not ended</td><td>4</td><td>–</td><td>0.25</td><td>0.5</td></tr>" in text
    data = json.loads(text.partition('id="charts">')[2].partition("</script>")[0])
    assert [(c["id"], [line["name"] for line in c["data"]]) for c in data] == [
        ("train-loss", ["a", "b"]),
        ("validation-loss", ["a", "b"]),
    ]


def test_one_run_has_its_page_in_its_folder(here):
    run = folder_of(here, "a", config=False)
    assert main(["report", run]) == 0
    assert "Where their configs differ" not in (here / "runs" / "a" / "report.html").read_text()


def test_a_run_without_a_config_is_named(here):
    runs = [folder_of(here, "a"), folder_of(here, "b", config=False)]
    assert main(["report", *runs, "--out", "page.html"]) == 0
    assert "b has no config.json: what it was run with isn&#x27;t known" in (here / "page.html").read_text()


def test_a_run_of_pythons_has_its_curves_over_steps_examples_epochs_and_seconds(here):
    runs = [folder_of(here, "a"), folder_of(here, "b", config=False)]
    (here / "runs" / "b" / "config.json").write_text('{"train": {"workload": "mine"}}')
    for run in runs:
        lines = [{"step": t, "examples": 8 * t, "epoch": t / 4, "seconds": t / 10, "train/loss": 1 / t} for t in (2, 4)]
        (here / run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["report", *runs]) == 0
    text = (here / "runs" / "report.html").read_text()
    assert (
        "Their configs can&#x27;t be compared: runs/b/config.json is of a run that Python&#x27;s train made"
        in text.replace(f"{here}/", "")
    )
    assert "<td>a</td><td>not ended</td><td>4</td><td>0.4</td>" in text
    (chart,) = json.loads(text.partition('id="charts">')[2].partition("</script>")[0])
    assert chart["views"] == {"examples": [[16, 32]] * 2, "epoch": [[0.5, 1]] * 2, "seconds": [[0.2, 0.4]] * 2}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["runs/a", "runs/nowhere"], "runs/nowhere is no folder; name run folders"),
        (["runs/a", "runs/empty"], "runs/empty has no metrics.jsonl with a logged step"),
        (["runs/a", "runs/a"], "runs/a is named twice"),
        (["runs/a", "studies/s"], "studies/s is a study, and not all of the others are"),
        (["studies/s"], "studies/s has no verdict yet"),
    ],
)
def test_what_is_no_run_is_one_line_and_two(here, capsys, names, message):
    folder_of(here, "a")
    folder_of(here, "empty", metrics=False)
    (here / "studies" / "s").mkdir(parents=True)
    (here / "studies" / "s" / "trials.jsonl").touch()
    assert main(["report", *names]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not list(here.rglob("report.html"))
