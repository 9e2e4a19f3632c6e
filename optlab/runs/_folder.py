"""A run's folder and its config.json: written for a new run, compared for one that continues."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from optlab.config import Config, ConfigError, load, text_of, to_json
from optlab.runs._changes import Change, changes
from optlab.runs._errors import PlaceError
from optlab.runs._listing import LOCK, saved_steps

PACKAGES = ("optlab-jax", "jax", "jaxlib", "optax", "flax", "orbax-checkpoint", "numpy")
_AGAIN = (
    "put it back, or have it written again: start the same run in another folder, stop it and copy its config.json here"
)


def make_folder(folder: Path, config: Config, kind_of: Callable[[str, Config], str], allowed: Sequence[str]) -> None:
    """Makes a run's folder. What a kill leaves of a run that had just begun may be there already.

    Raises:
        ConfigError: If something else is in the folder, it can't be made, or an allowed key doesn't exist.
    """
    is_run = (folder / "config.json").exists()
    if not is_run and saved_steps(folder / "checkpoints"):
        raise ConfigError(f"{folder} has checkpoints, and no config.json any more; {_AGAIN}")
    if is_run and "train" in _read(folder / "config.json"):
        raise ConfigError(f"{folder} holds a run of Python's train, which its script continues; name another folder")
    if not is_run:
        try:
            _refuse_others(folder)
        except PlaceError as error:
            raise ConfigError(str(error)) from error
        changes(folder, config, config, kind_of, allowed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} can't be made: {error.strerror}; name another folder") from error


def _refuse_others(folder: Path) -> None:
    """Refuses a folder without a config.json that holds more than a run that a kill ended as it began."""
    begun = {folder / "config.part", folder / "checkpoints", folder / "checkpoints" / LOCK}
    if folder.is_file():
        raise PlaceError(f"{folder} is a file: name a folder for the run")
    if folder.exists() and (not folder.is_dir() or any(p not in begun for p in folder.rglob("*"))):
        raise PlaceError(f"{folder} isn't empty and isn't a run (it has no config.json); name another folder")


def check_claim(folder: Path) -> None:
    """Refuses the folder for a run of Python's `train`, where it holds something else.

    Raises:
        PlaceError: If it holds something else, or a run of a config.
    """
    file = folder / "config.json"
    if not file.exists():
        _refuse_others(folder)
    elif "train" not in _read(file):
        raise PlaceError(f"{folder} holds a run of a config, which optlab train continues; name another folder")


def claim(folder: Path, about: Mapping[str, Any]) -> None:
    """Writes the config.json of a run of Python's `train`, which has no config: what the call was instead.

    Args:
        folder: The run's, locked by its checkpoints.
        about: What the call trains.

    Raises:
        PlaceError: As `check_claim`.
    """
    check_claim(folder)
    _write(folder / "config.json", {"train": dict(about), "versions": _versions(), "git": _git(Path.cwd())})


def claimed(folder: Path) -> dict[str, Any]:
    """What `claim` wrote about the call of Python's `train`: its steps and seed among others; {} for other runs."""
    file = folder / "config.json"
    found = _read(file).get("train") if file.is_file() else None
    return found if isinstance(found, dict) else {}


def _read(file: Path) -> dict[str, Any]:
    """The content of a config.json; nothing where it can't be read, which `load` says better."""
    try:
        found = json.loads(file.read_text())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def open_folder(
    folder: Path, config: Config, source: Path, kind_of: Callable[[str, Config], str], allowed: Sequence[str]
) -> list[Change]:
    """Writes a run's config.json, or checks that the run in the folder may continue under this config.

    Args:
        folder: the run's folder.
        config: the config, resolved.
        source: the file that it was read from.
        kind_of: As for `changes`.
        allowed: fixed keys that may differ all the same.

    Returns:
        The changes. config.json is left as it is: `ChangedConfig` writes them once a step is taken under them.

    Raises:
        ConfigError: If the folder holds another run.
    """
    file, changed = folder / "config.json", []
    if file.exists():
        try:
            before = load(file)
        except ConfigError as error:
            raise ConfigError(f"{error}; {_AGAIN}") from error
        changed = changes(folder, before, config, kind_of, allowed)
        if not saved_steps(folder / "checkpoints"):
            print(f"optlab: {folder} holds no checkpoint to continue from: it starts from step 0", file=sys.stderr)
    else:
        about = {
            "config": to_json(config),
            "versions": _versions(),
            "git": _git(source.absolute().parent),
            "places": places(source),
        }
        _write(file, about)
        _report_earlier_changes(source)
    return changed


class ChangedConfig:
    """An observer that writes a run's changed config before the first step under it."""

    def __init__(self, folder: Path, config: Config, changed: Sequence[Change]):
        self.file, self.config, self.changed = folder / "config.json", config, changed

    def begin(self, start: int, steps: int) -> None:
        """Notes the changes, unless no step is left to be taken under them.

        Earlier changes that were noted after `start` hold from `start` on: the run continues from an older checkpoint.
        """
        about = json.loads(self.file.read_text())
        earlier = about.get("changes", [])
        late = [c for c in earlier if c["step"] > start]
        if start == steps or not (self.changed or late):
            return
        noted = [c for c in self.changed if c.kind != "changeable"]
        lines = [{"step": start, "key": c.key, "from": c.before, "to": c.after} for c in noted]
        earlier = [{**c, "step": min(c["step"], start)} for c in earlier]
        _write(self.file, {**about, "config": to_json(self.config), "changes": [*earlier, *lines]})
        for c in late:
            print(f"after step {start} {c['key']} is {text_of(c['to'])}, which was so after step {c['step']} before")
        for c in noted:
            print(f"after step {start} {c.key} is {text_of(c.after)}, no longer {text_of(c.before)}")

    def record(self, record: dict[str, float]) -> None:
        """Does nothing."""

    def end(self, outcome: str) -> None:
        """Does nothing."""


def places(source: Path) -> list[str]:
    """Lists the folders of a config's own modules: its own and the working directory; of a config.json, the run's."""
    if source.name == "config.json" and source.is_file():
        try:
            found = json.loads(source.read_text())["places"]
        except (ValueError, TypeError, KeyError):  # `load` raises the error
            return []
        return [place for place in found if isinstance(place, str)] if isinstance(found, list) else []
    return [str(source.absolute().parent), str(Path.cwd())]


def load_anchored(source: Path) -> Config:
    """Loads a config from a file. Relative paths in a config.json start at the folder that the run was started in."""
    config, found = load(source), places(source)
    if source.name != "config.json" or not found:
        return config
    folder, arguments = Path(found[-1]), dict(config.data.arguments)
    if isinstance(arguments.get("path"), str):
        arguments["path"] = str(folder / Path(arguments["path"]).expanduser())
    init_from = config.init_from and str(folder / Path(config.init_from).expanduser())
    return replace(config, data=replace(config.data, arguments=arguments), init_from=init_from)


def _report_earlier_changes(source: Path) -> None:
    """Reports that a run whose config changed on its way can't be repeated from its last config."""
    earlier = json.loads(source.read_text()).get("changes") if source.name == "config.json" else None
    if earlier:
        changed = ", ".join(f"{c['key']} after step {c['step']}" for c in earlier)
        print(f"the run of {source} changed on its way ({changed}); this one has its last config from the start")


def _write(file: Path, about: dict[str, Any]) -> None:
    part = file.with_suffix(".part")
    part.write_text(json.dumps(about, indent=2) + "\n")
    os.replace(part, file)  # a kill leaves the old file or the new one


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git(folder: Path) -> dict[str, Any] | None:
    """Commit of the repository around a folder, and whether tracked files differ from it; None without a repository."""

    def git(*words: str) -> bytes:  # a file's name may be in any encoding
        return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, check=True).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD").decode(),
            "changed": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.CalledProcessError):
        return None
