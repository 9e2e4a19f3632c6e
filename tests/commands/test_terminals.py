"""Terminals and pipes: whatever they are, a command ends without a traceback and a run goes on."""

import io
import os
import subprocess
import sys

import pytest

import optlab.commands as commands
from optlab.training.progress import Progress

COMMAND = [sys.executable, "-c", "import sys; from optlab.commands import main; sys.exit(main())"]


def test_an_encoding_without_the_characters_shows_others():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*COMMAND, "train", "--help"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_leaves_ends_no_run():
    reader, writer = os.pipe()
    with open(writer, "w") as file:
        os.close(reader)
        progress = Progress(batch_size=8)
        progress.console.file = file
        progress.begin(5, 10)
        progress.clock -= 11
        progress.record({"step": 6, "seconds": 0.1, "train/loss": 1.0})
        progress.end("finished")
        print("still open", file=file, flush=True)


@pytest.mark.parametrize("platform", ["cuda", "nonesuch"])
def test_a_platform_that_is_not_there_is_one_line(platform):
    environment = {**os.environ, "JAX_PLATFORMS": platform}
    done = subprocess.run([*COMMAND, "devices"], capture_output=True, text=True, env=environment)
    if platform == "cuda" and done.returncode == 0:
        pytest.skip("this machine has a GPU")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert f"JAX_PLATFORMS={platform} names a platform that JAX doesn't find here" in done.stderr


def test_streams_that_are_no_text_files_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with pytest.raises(SystemExit):
        commands.main(["--version"])
