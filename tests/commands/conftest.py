"""What the commands' tests share."""

import sys

import pytest

CONFIG = """
from optlab.config import Config, component

def get_config():
    return Config(
        data=component("digits"),
        model=component("mlp", widths=[8]),
        optimizer=component("sgd", learning_rate=0.05),
        steps=4,
        evaluate_every=2,
    )
"""


@pytest.fixture
def here(request, tmp_path, monkeypatch):
    """A directory with the test module's CONFIG in it, or this one where it has none."""
    (tmp_path / "small.py").write_text(getattr(request.module, "CONFIG", CONFIG))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path
