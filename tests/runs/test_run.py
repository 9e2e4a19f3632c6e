"""A run folder as one object."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from optlab.config import ConfigError
from optlab.runs import CheckpointError, Run

SAVED = Path(__file__).with_name("saved")


def test_metrics_are_columns_by_name():
    metrics = Run(SAVED).metrics()
    np.testing.assert_array_equal(metrics["step"], [1, 2, 3, 4])
    assert metrics["step"].dtype == np.int64
    np.testing.assert_array_equal(metrics["validation/accuracy"], [np.nan, 0.09, np.nan, 0.085])
    assert {len(column) for column in metrics.values()} == {4}


def test_parameters_are_a_checkpoints():
    run = Run(SAVED)
    assert run.params()["hidden_0"]["kernel"].shape == (64, 2)
    latest, best, second = (np.asarray(run.params(step)["head"]["bias"]) for step in (None, "best", 2))
    np.testing.assert_array_equal(best, second)
    assert not np.array_equal(latest, best)
    assert not np.array_equal(run.params(collection="ema")["head"]["bias"], latest)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3 in .*; saved are \[2, 4\]"):
        run.params(3)


def test_the_summary_is_the_files(tmp_path):
    assert Run(tmp_path).summary is None
    (tmp_path / "summary.json").write_text(json.dumps({"outcome": "finished"}))
    assert Run(tmp_path).summary == {"outcome": "finished"}


def test_curves_are_a_picture_in_the_folder(tmp_path):
    shutil.copy(SAVED / "metrics.jsonl", tmp_path)
    assert Run(tmp_path).curves() == tmp_path / "curves.png"
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_what_is_not_there_is_empty_or_named(tmp_path):
    run = Run(tmp_path)
    assert (run.metrics(), run.checkpoints) == ({}, [])
    with pytest.raises(ConfigError, match=r"no config file '.*config.json'"):
        run.config  # noqa: B018
    with pytest.raises(FileNotFoundError, match=r"nowhere is no folder; name a run's"):
        Run(tmp_path / "nowhere")
