"""A run's folder: made, or held against the config that the run is to go on under."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optlab.changes import Change, changes
from optlab.commands._config import places, text_of
from optlab.config import Config, ConfigError, covers, load, to_json
from optlab.runs._listing import LOCK, saved_steps

PACKAGES = ("optlab-jax", "jax", "jaxlib", "optax", "flax", "orbax-checkpoint", "numpy")


_AGAIN = (
    "put it back, or have it written again: start the same command with --run OTHER, stop it and copy "
    "OTHER/config.json here"
)


def make_folder(folder: Path, config: Config, allowed: Sequence[str]) -> None:
    """Makes a run's folder; refuses one that something else is in, and to allow a key that a new run doesn't have.

    What a kill left of a run that had just begun is nothing else.
    """
    begun = {folder / "config.part", folder / "checkpoints", folder / "checkpoints" / LOCK}
    is_run = (folder / "config.json").exists()
    if not is_run and saved_steps(folder / "checkpoints"):
        raise ConfigError(f"{folder} has checkpoints, and no config.json any more; {_AGAIN}")
    if folder.exists() and not is_run and (not folder.is_dir() or any(p not in begun for p in folder.rglob("*"))):
        raise ConfigError(
            f"{folder} isn't empty and isn't a run (it has no config.json); name another folder: --run DIR"
        )
    if not is_run:
        changes(folder, config, config, allowed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} can't be made: {error.strerror}; name another folder: --run DIR") from error


def open_folder(folder: Path, config: Config, source: Path, allowed: Sequence[str]) -> list[Change]:
    """Writes a run's config.json, or checks that the run in the folder may go on under this config.

    Args:
      folder: the run's.
      config: resolved.
      source: the file that it was read from.
      allowed: fixed keys that may differ all the same.

    Returns:
      what differs from the run's config.json, which is left as it is: `ChangedConfig` writes it.

    Raises:
      ConfigError: if it is another run's.
    """
    file, changed = folder / "config.json", []
    if file.exists():
        try:
            before = load(file)
        except ConfigError as error:
            raise ConfigError(f"{error}; {_AGAIN}") from error
        changed = changes(folder, before, config, allowed)
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
        _say_earlier_changes(source)
    for name in allowed:
        if not any(covers([name], c.key) for c in changed):
            print(f"--allow-change {name} has nothing to allow: {file} says the same")
    return changed


class ChangedConfig:
    """An observer that writes down what a run's config says otherwise from here on, before the first step under it."""

    def __init__(self, folder: Path, config: Config, changed: Sequence[Change]):
        self.file, self.config, self.changed = folder / "config.json", config, changed

    def begin(self, start: int, steps: int) -> None:
        """Notes the changes, unless no step is left to be taken under them.

        Earlier ones hold from here on, too, if they were noted later: the run goes on from an older checkpoint then.
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
        """A record says nothing of the config."""

    def end(self, outcome: str) -> None:
        """Nothing is left open."""


def _say_earlier_changes(source: Path) -> None:
    """A run whose config changed on its way doesn't come again from its last config."""
    earlier = json.loads(source.read_text()).get("changes") if source.name == "config.json" else None
    if earlier:
        changed = ", ".join(f"{c['key']} after step {c['step']}" for c in earlier)
        print(f"the run of {source} changed on its way ({changed}); this one has its last config from the start")


def _write(file: Path, about: dict[str, Any]) -> None:
    part = file.with_suffix(".part")
    part.write_text(json.dumps(about, indent=2) + "\n")
    os.replace(part, file)


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in PACKAGES if _is_installed(name)}
    return {"python": platform.python_version(), **found}


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _git(folder: Path) -> dict[str, Any] | None:
    """Commit of the repository that the config lies in, and whether it was changed since; None without one."""

    def git(*words: str) -> bytes:  # a file's name may be in any encoding
        return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, check=True).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD").decode(),
            "changed": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.CalledProcessError):
        return None
