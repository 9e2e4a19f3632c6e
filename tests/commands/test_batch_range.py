"""`optlab batch-range`: a batch size, a picture, the next command; bad input in one line."""

import shlex

import pytest

from optlab.commands import main, parsed

WORDS = ["batch_size=64", "steps=8", "target.value=2.2"]


@pytest.mark.slow
def test_a_range_test_leaves_a_picture_and_the_next_command(here, capsys):
    assert main(["batch-range", "small.py", *WORDS, "--sizes", "64,128", "--out", "found"]) == 0
    out = capsys.readouterr().out
    command = shlex.split(next(line for line in out.splitlines() if line.startswith("next")))[1:]
    assert command[:5] == ["optlab", "lr-range", "small.py", "steps=8", "target.value=2.2"]
    assert command[-1] in ("batch_size=64", "batch_size=128")
    assert parsed(command[1:]).command == "lr-range"
    assert (here / "found" / "range.png").exists()
    assert "to validation/loss 2.2" in (here / "found" / "range.txt").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (WORDS[:2], "batch-range counts the steps to a target: say target.value=…"),
        ([*WORDS, "--sizes", "many"], "--sizes must be batch sizes with commas between them, such as 32,64,128"),
        ([*WORDS, "--sizes", "64,99999"], "sizes must be numbers of examples in [1, "),
        ([*WORDS, "--out", "."], ". is there already: say --out DIR"),
    ],
)
def test_bad_input_is_one_line_and_two(here, capsys, words, message):
    assert main(["batch-range", "small.py", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (here / "ranges").exists()
