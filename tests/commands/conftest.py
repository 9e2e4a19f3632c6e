"""What the commands' tests share."""

import sys

import pytest


@pytest.fixture
def here(request, tmp_path, monkeypatch):
    """A directory with the test module's CONFIG in it."""
    (tmp_path / "small.py").write_text(request.module.CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path
