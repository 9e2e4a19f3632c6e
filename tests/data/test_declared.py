"""Shapes that are declared are those that are read."""

from pathlib import Path

import numpy as np
import pytest
from published_files import write_binary

from optlab.data import cifar10, text
from optlab.data._declared import declared


def kinds(source) -> list:
    splits = [s and s.take(np.arange(3)) for s in (source.train, source.validation, source.test)]
    return [source.facts, *(s and {name: (x.dtype, x.shape) for name, x in s.items()} for s in splits)]


@pytest.mark.parametrize("validation", [10, 0])
def test_of_images(cifar: tuple, tmp_path: Path, validation: int) -> None:
    said = {"path": "/nowhere", "validation": validation}
    assert kinds(declared("cifar10", said)) == kinds(
        cifar10(str(write_binary(tmp_path, *cifar)), validation=validation)
    )
    assert len(declared("cifar10", said).train) == 50_000 - validation


@pytest.mark.parametrize("validation", [0.1, 0])
def test_of_a_text_that_is_not_here(tmp_path: Path, validation: float) -> None:
    (tmp_path / "book.txt").write_text("so it goes. " * 100)
    said = {"length": 16, "validation": validation, "test": 0.1}
    assert kinds(declared("text", {**said, "path": "/nowhere"})) == kinds(text(str(tmp_path / "book.txt"), **said))


def test_what_is_here_or_unknown_is_read(tmp_path: Path) -> None:
    assert declared("text", {"path": str(tmp_path), "length": 16}) is None
    assert declared("digits", {}) is None
    assert declared("mine:own", {"path": "/nowhere"}) is None
