"""Signals that end a run after the step, with its state saved."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

# The handlers that a run replaced with its own. A forked worker isn't the run and gets them back: whoever ends it with
# SIGTERM waits for its end.
_before: dict[int, Any] = {}


_forking = threading.local()


def _hold_signals() -> None:
    """Blocks signals during a fork: one that reached the worker before it has its handlers back would be lost."""
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _before) if _before else None


def _deliver_signals() -> None:
    if _forking.mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _restore_handlers() -> None:
    for number, handler in _before.items():
        if handler is not None:  # one that wasn't set from Python can't be set again
            signal.signal(number, handler)
    _before.clear()
    _deliver_signals()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold_signals, after_in_parent=_deliver_signals, after_in_child=_restore_handlers)

# JAX's preemption service waits for a call of a certain number, so that calls are counted over all runs.
_calls = itertools.count(1)


@contextlib.contextmanager
def catch_signals(*, listen: bool) -> Iterator[Callable[[], str | None]]:
    """Yields a function that returns the name of the signal that asked for an end, or None; call it after every step.

    From the third on, signals end the process as they always do. Several processes get the same answer at the same
    step: JAX's preemption service, which handles SIGTERM, agrees on one for them.

    Args:
        listen: whether signals are caught; else they do what they did before.
    """
    caught: list[str] = []
    is_alone = jax.process_count() == 1

    def asked() -> str | None:
        if is_alone:
            return caught[0] if caught else None
        is_agreed = multihost_utils.reached_preemption_sync_point(next(_calls))
        return (caught or ["SIGTERM"])[0] if is_agreed else None

    def handler(number: int, frame: Any) -> None:
        caught.append(signal.Signals(number).name)
        if len(caught) > 2:
            raise KeyboardInterrupt
        if not is_alone:
            os.kill(os.getpid(), signal.SIGTERM)

    if not listen or threading.current_thread() is not threading.main_thread():
        yield asked
        return
    mine = [signal.SIGINT, signal.SIGUSR1, *([signal.SIGTERM] if is_alone else [])]
    # A terminal that closes sends SIGHUP, which `nohup` has ignored.
    mine += [s for s in [getattr(signal, "SIGHUP", None)] if s and signal.getsignal(s) is not signal.SIG_IGN]
    outer = dict(_before)  # of a run around this one
    found = {s: signal.signal(s, handler) for s in mine}
    _before.update({s: outer.get(s, old) for s, old in found.items()})
    try:
        yield asked
    finally:
        for s, old in found.items():
            if old is not None:
                signal.signal(s, old)
        _before.clear()
        _before.update(outer)
