"""What the data tests share."""

import numpy as np
import pytest
from published_files import RECORDS

from optlab.data import _readers


@pytest.fixture
def cifar(monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    """Images (120, 32, 32, 3) and labels (120,): what six files of 20 records hold, the last one being the test set."""
    monkeypatch.setattr(_readers, "RECORDS", RECORDS)
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (6 * RECORDS, 32, 32, 3), np.uint8), rng.integers(0, 10, 6 * RECORDS, np.uint8)
