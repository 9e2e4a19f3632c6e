"""Configs in files: Python files with `get_config()`, and the `config.json` of a run."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optlab._messages import meant
from optlab.config._schema import Config, flatten, from_tree, keys
from optlab.config._values import ConfigError


def load(path: str | Path, kind: type = Config) -> Any:
    """Loads the config that a Python file's `get_config()` returns, or the one in a run folder's `config.json`.

    Args:
        path: the file's.
        kind: what the file has to hold: a run's `Config`, or what another command takes.

    Raises:
        ConfigError: if there is no such file, or it doesn't hold a config.
    """
    path = Path(path)
    if not path.is_file():
        if (path / "config.json").is_file():
            raise ConfigError(
                f"{str(path)!r} is a run's folder, not a config: say {path / 'config.json'} to train as it did in a "
                "folder of its own; the command that began the run continues it"
            )
        nearby = {p.stem: str(p) for p in sorted(path.parent.glob("*.py"))} if path.parent.is_dir() else {}
        files = [nearby[stem] for stem in meant(path.stem, nearby)] or list(nearby.values())
        near = f"did you mean {files[0]!r}?" if len(files) == 1 else f"there are {', '.join(files)}"
        raise ConfigError(f"no config file {str(path)!r}" + (f"; {near}" if files else ""))
    if path.suffix == ".json" and kind is Config:
        return _from_json(path)
    if path.suffix != ".py":
        raise ConfigError(f"a config is a .py file with get_config(), or a run's config.json, got {str(path)!r}")
    spec = importlib.util.spec_from_file_location("optlab_config_" + re.sub(r"\W", "_", path.stem), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error
    if not isinstance(config, kind):
        wanted, found = (f"{k.__module__.rpartition('.')[0]}.{k.__name__}" for k in (kind, type(config)))
        command = {"optlab.compare.Comparison": "compare", "optlab.config.Config": "train"}.get(found)
        way = f": say optlab {command} {path}" if command else ""
        raise ConfigError(f"{path}: get_config() must return an {wanted}, got {found.removeprefix('.')}{way}")
    return config


def to_json(config: Config) -> dict[str, Any]:
    """Converts a config to plain JSON data. Raises ConfigError for an argument that JSON can't hold."""
    tree = dataclasses.asdict(config, dict_factory=_without_texts)
    try:
        return json.loads(json.dumps(tree, allow_nan=False))
    except (TypeError, ValueError) as error:
        bad = [k for k, v in flatten(config).items() if not _is_json(v)]
        raise ConfigError(
            f"{', '.join(bad)} can't be written to config.json ({error}); "
            "use numbers, strings and lists, or module:function names"
        ) from error


def _without_texts(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """Leaves the text behind a component's arguments out, which only the command line has."""
    found = dict(items)
    return {n: v for n, v in items if n != "written"} if "arguments" in found else found


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _from_json(path: Path) -> Config:
    try:
        tree = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} isn't JSON: {error}") from error
    if isinstance(tree, dict) and "train" in tree:
        raise ConfigError(
            f"{path} is of a run that Python's train made: it has no config; "
            "its script trains it again, and load_run(folder, workload=…, tx=…) loads it"
        )
    if not isinstance(tree, dict) or not isinstance(tree.get("config"), dict):
        raise ConfigError(f"{path} isn't the config.json of a run: it has no 'config'")
    return from_tree(Config, tree["config"])


def slug(path: str | Path, assignments: Sequence[str]) -> str:
    """Names a run's folder by the config and the overrides, in characters that every file system allows.

    The optimizer and its learning rate come first; keys that a continued run may change aren't part of the name.
    """
    path = Path(path)
    stem = path.parent.name + "-again" if path.name == "config.json" else path.stem
    known, first = keys(Config), ("optimizer", "optimizer.learning_rate")
    said = {a: a.partition("=")[0] for a in sorted(assignments)}
    kept = [a for a, key in said.items() if key not in known or known[key][1]["change"] != "changeable"]
    kept.sort(key=lambda a: first.index(said[a]) if said[a] in first else len(first))
    name = "-".join([stem, *(re.sub(r"[^\w.=+-]+", "_", a) for a in kept)])
    if len(name) > 120:
        name = f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name
