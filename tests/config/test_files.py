"""Config files: what isn't one is named, with the reason."""

import pytest

from optlab.config import ConfigError, load


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.py", "x = 1", r"a.py: AttributeError: module .* has no attribute 'get_config'"),
        ("a.py", "def get_config(:", "a.py: SyntaxError"),
        ("a.py", "def get_config():\n    return {}", r"get_config\(\) must return an optlab.config.Config, got dict"),
        ("a.py", "from optlab.config import Config\ndef get_config(): return Config(stepz=1)", "TypeError.*'stepz'"),
        ("a.json", "{", "a.json isn't JSON"),
        ("a.json", "{}", "isn't the config.json of a run"),
        ("a.json", '{"config": {"stepz": 1}}', r"unknown key 'stepz'; did you mean 'steps'\?"),
        ("a.json", '{"config": {"steps": 1}}', "data is missing"),
        ("a.yaml", "", "a config is a .py file"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / name)


def test_a_missing_file_names_its_neighbours(tmp_path):
    (tmp_path / "digits.py").write_text("")
    with pytest.raises(ConfigError, match=r"no config file .*digitz.py'; did you mean .*digits.py"):
        load(tmp_path / "digitz.py")
    with pytest.raises(ConfigError, match="no config file"):
        load(tmp_path / "nowhere" / "digits.py")


def test_a_config_file_may_hold_dataclasses(tmp_path):
    file = tmp_path / "sized.py"
    file.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from optlab.config import Config, component\n"
        "@dataclass\n"
        "class Sizes:\n"
        "    width: int = 8\n"
        "def get_config():\n"
        "    return Config(data=component('digits'), model=component('mlp', widths=[Sizes().width]),\n"
        "        optimizer=component('sgd', learning_rate=0.1), steps=1)\n"
    )
    assert load(file).model.arguments == {"widths": [8]}
