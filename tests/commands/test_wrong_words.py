"""What people type on a command line by mistake, each answered with the one line that would work."""

import pytest

from optlab._messages import meant
from optlab.commands import main
from optlab.config._values import parse
from optlab.experiment import resolve


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["lr=0.1"], "did you mean optimizer.learning_rate=0.1?"),
        (["weight_decay=0.1"], "did you mean optimizer.weight_decay=0.1?"),
        (["warmup=10"], "did you mean schedule.warmup=10?"),
        (["optimizer.lr=0.1"], "did you mean 'optimizer.learning_rate'?"),
        (["optimizer=AdamW"], "did you mean 'adamw'?"),
        (["optimizer=adamq"], "did you mean 'adam' or 'adamw'?"),
        (["loss=mse"], "did you mean 'squared_error'?"),
        (["loss=ce"], "did you mean 'cross_entropy'?"),
        (["epochs=10"], "say steps=101, which is epochs=10 with 1,297 training examples and batch_size=128"),
        (["epochs=ten"], "say steps=N, where N is ten times the training examples, divided by batch_size=128"),
        (["--steps", "100"], "a config's keys are said without dashes: steps=100"),
        (["--step", "100"], "a config's keys are said without dashes: steps=100\n"),
        (["--clip=1"], "said without dashes: clip_norm=1 or clip_value=1\n"),
        (["--rnu", "runs/q"], "unknown arguments: --rnu runs/q; did you mean --run?"),
        (["--zzz"], "unknown arguments: --zzz; see optlab train --help"),
        (["step=100"], "unknown key 'step'; did you mean 'steps'?"),
        (["--lr=0.1"], "a config's keys are said without dashes: optimizer.learning_rate=0.1"),
        (["--epochs", "3", "batch_size=64"], "say steps=61, which is epochs=3 with 1,297 training examples"),
        (["model.widths=512"], "say model.widths=[512]"),
        (["metrics=acc"], "say metrics=[accuracy]"),
        (["metrics=[accuracy]", "target.metric=accuracy"], "did you mean 'validation/accuracy'?"),
        (["run=runs/q"], "unknown key 'run'; a run's folder is no key of a config: say --run runs/q"),
        (['roles={"foo":"matrix"}'], "roles is said by name, as roles.foo=matrix"),
        (['roles={"a/*": "matrix", "b": "head"}'], "roles is said by name, as roles.a/*=matrix roles.b=head"),
        (["clip=1"], "did you mean 'clip_norm' or 'clip_value'?"),
    ],
)
def test_a_mistake_is_answered_with_the_line_that_works(here, capsys, words, answer):
    try:
        code = main(["train", "small.py", *words])
    except SystemExit as exit:
        code = exit.code
    error = capsys.readouterr().err
    assert code == 2
    assert answer in error
    assert "Traceback" not in error
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["trian", "small.py"], "there is no command 'trian'; did you mean 'train'?"),
        (["small.py", "steps=3"], "did you mean optlab train small.py steps=3?"),
        (["frobnicate"], "there is no command 'frobnicate'; there are "),
    ],
)
def test_a_command_that_is_not_there_is_answered_with_the_one_that_was_meant(here, capsys, words, answer):
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert answer in capsys.readouterr().err


def test_a_runs_folder_is_no_config(here, capsys):
    (here / "runs" / "digits").mkdir(parents=True)
    (here / "runs" / "digits" / "config.json").write_text("{}")
    assert main(["train", "runs/digits"]) == 2
    assert "is a run's folder, not a config: say runs/digits/config.json" in capsys.readouterr().err


def test_one_checkpoint_is_no_run_to_start_from(here, capsys):
    assert main(["train", "small.py", "init_from=runs/first/checkpoints/300"]) == 2
    assert "is one checkpoint, and a run is meant: say init_from=runs/first, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("1e5", str, "1e5"),
        ("2024_01", str | None, "2024_01"),
        ("none", str | None, None),
        ("none", str, "none"),
        ("'12'", str, "12"),
        ("[1e5, x]", list[str], ["1e5", "x"]),
        ("['a,b', c]", list[str], ["a,b", "c"]),
        ("1e5", float, 1e5),
        ("12", float | str, 12),
    ],
)
def test_the_type_decides_what_a_text_means(text, hint, value):
    assert parse(text, hint) == value


@pytest.mark.parametrize("name", ["2024_01", "1e5", "0x10", "1.50"])
def test_a_path_that_looks_like_a_number_is_a_path(name):
    from optlab.config import Config, component, override

    config = Config(
        data=component("text"), model=component("mlp", widths=[8]), optimizer=component("sgd", learning_rate=1), steps=1
    )
    found = resolve(override(config, [f"data.path={name}", "optimizer.momentum=0.5"]))
    assert found.data.arguments["path"] == name
    assert found.optimizer.arguments["momentum"] == 0.5


def test_errors_are_counted_once_each():
    names = ["learning_rate", "mlp", "steps"]
    assert [meant(n, names) for n in ("mpl", "stepz", "learning_rte", "zzz")] == [["mlp"], ["steps"], names[:1], []]
