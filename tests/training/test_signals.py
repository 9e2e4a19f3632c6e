"""What a worker that is forked while a run goes on inherits of it: nothing that keeps it, or the next run, waiting."""

import contextlib
import os
import signal
import threading
from concurrent.futures import Future

import pytest

from optlab.runs import CheckpointError, _background
from optlab.runs._lock import WriterLock
from optlab.training.signals import catch_signals

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork"),
    pytest.mark.filterwarnings("ignore:os.fork"),
    pytest.mark.filterwarnings("ignore:This process"),
]


def forked(child, then=lambda pid: None):
    """The status that a forked worker ends with, which is killed after a while."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(child() or 0)
        finally:
            os._exit(99)
    then(pid)
    killer = threading.Timer(20, os.kill, (pid, signal.SIGKILL))
    killer.start()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    killer.cancel()
    return status


def wait():
    signal.pause()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("is_thread", [False, True])
def test_a_signal_ends_a_worker_as_if_there_were_no_run(number, is_thread):
    found = []
    work = lambda: found.append(forked(wait, lambda pid: os.kill(pid, number)))
    with catch_signals(listen=True) as asked:
        for _ in range(5):  # at once: the worker may not have begun
            thread = threading.Thread(target=work) if is_thread else None
            (thread.start() or thread.join()) if thread else work()
        assert asked() is None
    assert found == [-number] * 5


@pytest.mark.parametrize("before", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_worker_has_the_handlers_from_before_the_run_and_the_run_its_own(before):
    original = signal.signal(signal.SIGUSR1, before)
    try:
        with catch_signals(listen=True) as asked, catch_signals(listen=True):
            assert forked(lambda: signal.getsignal(signal.SIGUSR1) is not before) == 0
            os.kill(os.getpid(), signal.SIGUSR1)
            assert asked() is None  # the inner one's
        assert signal.getsignal(signal.SIGUSR1) is before
        assert forked(lambda: signal.getsignal(signal.SIGUSR1) is not before) == 0
    finally:
        signal.signal(signal.SIGUSR1, original)


def test_a_worker_that_outlives_the_run_does_not_hold_its_lock(tmp_path):
    read, write = os.pipe()
    lock, held = WriterLock(tmp_path), contextlib.ExitStack()
    held.enter_context(lock.held())

    def outlive():
        held.close()  # as a worker that unwinds does: nothing of the run's is unlocked
        os.read(read, 1)

    def then(pid):
        code = forked(lambda: 0 if refuses(tmp_path) else 1)
        lock._file.close()  # as the kernel does for a run that was killed
        with WriterLock(tmp_path).held():
            os.write(write, b".")
        assert code == 0

    assert forked(outlive, then) == 0
    lock.forget()
    held.close()


def refuses(folder):
    try:
        with WriterLock(folder).held():
            return False
    except CheckpointError:
        return True


def test_a_worker_does_not_wait_for_a_save_of_the_run(monkeypatch):
    pending = Future()
    _background._UNAWAITED.add(pending)
    try:
        assert forked(_background._await_all) == 0
    finally:
        _background._UNAWAITED.discard(pending)
