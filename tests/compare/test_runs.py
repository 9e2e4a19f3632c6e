"""Trials as ordinary runs: each goes on where it stood."""

import math
import signal

import pytest

import optlab
from optlab.compare import runs
from optlab.compare.contenders import contend
from optlab.compare.trials import Trial

from .cheap import tiny

TRIALS = [Trial("sgd [1]", 0, i, i, False, {"learning_rate": 0.1}, i) for i in range(2)]


def results(folder):
    executor = runs.Runs(tiny(), contend("sgd [1]", optlab.sgd, space=None, schedule=None, steps=40), 10, 1)
    executor.folder = folder
    return [result.curve for [result] in executor(TRIALS)]


@pytest.mark.parametrize("name", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_a_trial_that_was_interrupted_goes_on_from_its_checkpoint(name, tmp_path, monkeypatch):
    undisturbed, train, starts, at = results(None), runs.train, [], 20

    class Interrupts:
        def begin(self, start, steps):
            starts.append(start)

        def record(self, record):
            if record["step"] >= at:
                signal.raise_signal(getattr(signal, name))

        def end(self, outcome):
            pass

    def disturbed(*args, observers, **how):
        return train(*args, observers=[*observers, Interrupts()], **how)

    def ended(*_):
        raise SystemExit

    monkeypatch.setattr(runs, "train", disturbed)
    # A process in the background may have been started with SIGINT ignored.
    handlers = {signal.SIGTERM: ended, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            results(tmp_path)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert len(list((tmp_path / "unfinished").iterdir())) == 1
    at = math.inf
    assert results(tmp_path) == undisturbed
    assert starts[0] == starts[2] == 0
    assert 20 <= starts[1] < 40
    assert not (tmp_path / "unfinished").exists()
