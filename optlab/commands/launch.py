"""`optlab launch -n N -- train CONFIG`: starts processes on this machine, and restarts all of them when one dies."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import IO

from optlab.commands import parsed
from optlab.commands._config import run_folder
from optlab.config import ConfigError
from optlab.runs._listing import saved_steps

HELP = "start several processes of optlab train on this machine, again when one dies"
DESCRIPTION = (
    "Starts several processes of optlab train on this machine. When one dies, all start again from the last "
    "checkpoint. On a cluster the scheduler does that: see optlab train --processes."
)
EPILOG = "optlab launch -n 2 -- train CONFIG strategy=fsdp"

# The child's input is a pipe that closes when the launcher ends, however it ends: then the child ends too.
PROGRAM = """
import os, signal, sys, threading
def watch():
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
from optlab.commands import main
sys.exit(main())
"""
REFUSED = (1, 2)  # the run printed an error that a restart would meet again
STOPPED = (75, 130)  # saved, because a signal asked for it
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # all but the first go on as SIGTERM
GRACE = 10  # seconds for the other processes to end with their own message after one was refused


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("-n", dest="count", metavar="N", type=int, required=True, help="how many processes")
    parser.add_argument("--restarts", metavar="N", type=int, default=3, help="how often at most (default: 3)")
    parser.add_argument("words", metavar="-- train CONFIG …", nargs=argparse.REMAINDER, help="the command")


def run(arguments: argparse.Namespace) -> int:
    """Starts the processes until they end by themselves. Returns their exit code, or 1 after too many restarts."""
    if arguments.count < 1 or arguments.restarts < 0:
        raise ConfigError(f"-n must be at least 1 and --restarts 0, got {arguments.count} and {arguments.restarts}")
    words = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    train = parsed(words)
    if train.command != "train" or any(w.split("=")[0] == "--processes" for w in words):
        raise ConfigError("launch starts optlab train, without --processes: optlab launch -n 2 -- train CONFIG …")
    gpus, checkpoints = _gpus_each(arguments.count), run_folder(train) / "checkpoints"
    for restart in range(arguments.restarts + 1):
        with _Processes(words, arguments.count, gpus) as processes:
            index, code = processes.wait()
            if processes.asked and code != 0:
                return 130 if processes.asked[0] == signal.SIGINT else 75
            if code in (0, *STOPPED, *REFUSED):
                return code
        saved = saved_steps(checkpoints)
        where = f"from step {saved[-1]}" if saved else "from the beginning"
        what = f"optlab: process {index} of {arguments.count} {_how(code)};"
        if restart < arguments.restarts:
            goes_on = f"all start again {where} (restart {restart + 1} of {arguments.restarts})"
            print(what, goes_on, file=sys.stderr, flush=True)
    print(what, f"given up after {arguments.restarts} restarts; the same command goes on {where}", file=sys.stderr)
    return 1


class _Processes:
    """Processes of one attempt. They receive the launcher's signals, are killed at the third, and end with it."""

    def __init__(self, words: Sequence[str], count: int, gpus: list[str] | None):
        self.words, self.count, self.gpus = words, count, gpus
        self.asked: list[int] = []
        self.ended: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()

    def __enter__(self) -> _Processes:
        self.children: list[subprocess.Popen[bytes]] = []
        self.outputs: list[IO[bytes] | None] = []
        self.handlers = {s: signal.signal(s, self._pass_on) for s in SIGNALS}
        port = _free_port()
        self.watched, self.alive = os.pipe()  # nothing is written to it, and only the launcher holds the writing end
        for index in range(self.count):
            environment = {**os.environ, "OPTLAB_PROCESSES": f"127.0.0.1:{port},{self.count},{index}"}
            if self.gpus is not None:
                environment["CUDA_VISIBLE_DEVICES"] = self.gpus[index]
            output = None if index == 0 else tempfile.TemporaryFile()
            child = subprocess.Popen(
                [sys.executable, "-P", "-c", PROGRAM, *self.words],
                env=environment,
                stdin=self.watched,
                stdout=output,
                stderr=output,
                process_group=0,  # Ctrl-C reaches the launcher alone, which passes it on
            )
            self.outputs.append(output)
            self.children.append(child)
            threading.Thread(target=lambda i=index, c=child: self.ended.put((i, c.wait())), daemon=True).start()
        if self.asked:  # a signal came while they were starting
            self._send(self.asked[0])
        return self

    def __exit__(self, *error: object) -> None:
        self._send(signal.SIGKILL)
        for child in self.children:
            child.wait()
        os.close(self.watched)
        os.close(self.alive)
        for output in self.outputs:
            if output is not None:
                output.close()
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def wait(self) -> tuple[int, int]:
        """Waits for the end. Returns (index, exit code) of the first that failed, or (0, 0); a signal's code is < 0."""
        codes: dict[int, int] = {}
        while len(codes) < self.count:
            index, code = self.ended.get()
            codes[index] = code
            if code not in (0, *STOPPED):
                if code in REFUSED:
                    codes |= self._others(codes)
                else:
                    self._send(signal.SIGKILL)
                if not self.asked and codes.get(0) != code:
                    self._show(index)
                return index, code
        return next(((i, c) for i, c in sorted(codes.items()) if c), (0, 0))

    def _others(self, codes: dict[int, int]) -> dict[int, int]:
        found: dict[int, int] = {}
        with contextlib.suppress(queue.Empty):
            while len(codes) + len(found) < self.count:
                index, code = self.ended.get(timeout=GRACE)
                found[index] = code
        return found

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.asked.append(number)
        self._send(signal.SIGKILL if len(self.asked) > 2 else number if number == signal.SIGINT else signal.SIGTERM)

    def _send(self, number: int) -> None:
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                if child.poll() is None:
                    os.killpg(child.pid, number)

    def _show(self, index: int) -> None:
        """Prints the end of what one of the silent processes wrote."""
        if (output := self.outputs[index]) is not None:
            output.seek(max(0, output.seek(0, os.SEEK_END) - 8000))
            sys.stderr.write(output.read().decode(errors="replace"))


def _how(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _gpus_each(count: int) -> list[str] | None:
    """Divides the machine's GPUs: CUDA_VISIBLE_DEVICES of each process, or None where JAX will use no GPU."""
    platforms = os.environ.get("JAX_PLATFORMS", "cuda")
    has_plugin = any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13))
    if not has_plugin or not {"cuda", "gpu"} & set(platforms.split(",")):
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = list(_installed_gpus()) if visible is None else [g for g in visible.split(",") if g]
    if not gpus:
        return None
    if len(gpus) % count:
        raise ConfigError(f"-n must divide the GPUs here ({len(gpus)}), got {count}; JAX_PLATFORMS=cpu does without")
    each = len(gpus) // count
    return [",".join(gpus[i * each : (i + 1) * each]) for i in range(count)]


def _installed_gpus() -> Iterator[str]:
    if shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
        yield from (str(i) for i in range(listed.count("GPU ")))
