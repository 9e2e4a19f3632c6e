"""Every fault that a run may meet, injected for real into a small run: what survives, what is lost, what is silent.

    python benchmarks/faults.py                  # writes benchmarks/results/faults.md
    python benchmarks/faults.py --only flip kill # prints the faults whose name holds one of the words
    python benchmarks/faults.py --tries 0.1      # a tenth of the tries

A try has *survived* if the run came to the undisturbed run's final state, bit by bit, and to the same metrics.jsonl but
for its seconds, no line missing and none twice; or, where there is nothing to go on with, if it was refused by a named
error and an exit code that isn't 0. It is *lost* if a complete checkpoint wasn't gone on from, or the run can't be
continued at all. It is *silent* if it ended well with another result.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from victim import EVERY, STEPS, Blow, Life, Process, Slow, command, live, mark, small

from optlab.data import Batches, DamagedRecordError, arrays
from optlab.runs import CheckpointError, Checkpoints
from optlab.runs import _storage as storage
from optlab.runs._fingerprints import fingerprints
from optlab.runs._listing import saved_steps
from optlab.runs._manifest import flatten
from optlab.runs._metrics import without_seconds

RESULTS = Path(__file__).parent / "results"
SURVIVED = "survived"


@dataclass(frozen=True)
class Verdict:
    """How one try ended: "survived", "lost", "silent" or, which is no try, "missed"; and what happened."""

    kind: str
    what: str


@dataclass(frozen=True)
class Fault:
    name: str
    tries: int
    inject: Callable[[int], Iterator[Verdict]]


FAULTS: list[Fault] = []


def fault(name: str, tries: int, *arguments: Any) -> Callable[[Any], Any]:
    """Enters a function of (*arguments, tries) that yields verdicts."""

    def enter(inject: Any) -> Any:
        FAULTS.append(Fault(name, tries, partial(inject, *arguments)))
        return inject

    return enter


def survived(what: str) -> Verdict:
    return Verdict("survived", what)


def judged(is_right: bool, what: str, wrong: str, kind: str = "silent") -> Verdict:
    return survived(what) if is_right else Verdict(kind, wrong)


# What a run has to come to.


def fresh() -> Path:
    return Path(tempfile.mkdtemp(prefix="run-", dir=SCRATCH))


def logged(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, as they stand but for their seconds."""
    return without_seconds([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()])


def alike(folder: Path) -> Callable[[], Any]:
    """A run on the data that a run with a disturbing `Slow` has: what is wrapped is other data, whatever it does."""
    return partial(small, folder, wrap=Slow)


@lru_cache
def undisturbed(strategy: str = "single", devices: int = 8) -> tuple[str, list[dict[str, float]]]:
    """(hash of the final state, metrics.jsonl) of the run that nothing happens to."""
    folder = fresh()
    life = live(partial(small, folder, strategy=strategy, devices=devices))
    if life.code or life.end.get("step") != STEPS:
        raise RuntimeError(f"the undisturbed run failed:\n{life.text}")
    return life.end["print"], logged(folder)


def same(folder: Path, life: Life, strategy: str = "single", *, goes_on_from: int | None = None) -> Verdict:
    """The verdict on a run that was continued, by its last life."""
    wanted, metrics = undisturbed(strategy)
    if life.code or life.end.get("step") != STEPS:
        return Verdict("lost", f"the run can't be continued: {_last(life)}")
    if goes_on_from is not None and (life.start or 0) < goes_on_from:
        return Verdict("lost", f"went on from {life.start}, saved was {goes_on_from}")
    if life.end["print"] != wanted:
        return Verdict("silent", "another final state")
    if logged(folder) != metrics:
        return Verdict("silent", "another metrics.jsonl")
    return survived("same bits")


def half(folder: Path, **settings: Any) -> None:
    """A run that a signal ends, saved, somewhere in its middle."""
    live(partial(small, folder, **settings), Blow(signal.SIGTERM, "step", 28, hold=0.1))
    if not 0 < newest(folder) < STEPS:
        raise RuntimeError(f"the run was to end in its middle, not at step {newest(folder)}")


def newest(folder: Path) -> int:
    return max(saved_steps(folder / "checkpoints"), default=0)


def refused(life: Life, *words: str) -> Verdict:
    """The verdict on a run that has to be refused by an error that holds the words."""
    if life.code == 0:
        return Verdict("silent", "went on")
    missing = [w for w in words if w not in life.text]
    return Verdict("lost", f"no word of {missing}: {_last(life)}") if missing else survived("refused")


def _last(life: Life) -> str:
    return f"code {life.code}, {(life.text.strip().splitlines() or [''])[-1][:160]}"


# Processes that end too early.


@fault("kill -9, single", 40, "single")
@fault("kill -9, pmap on 8 devices", 30, "pmap")
@fault("kill -9, fsdp on 8 devices", 30, "fsdp")
def killed(strategy: str, tries: int) -> Iterator[Verdict]:
    """Killed up to 10 times in a run: anywhere, or inside a save, a commit, a removal, a line of metrics."""
    dice = random.Random(strategy)
    victim = partial(small, strategy=strategy)
    while tries > 0:
        folder, kills, saved, failure = fresh(), [], 0, None
        for _ in range(min(10, tries)):
            aim = dice.choice(["start", "start", "step", "save", "commit", "check", "removal", "line"])
            count = 1 if aim == "start" else dice.randint(1, 12 if aim in ("step", "line") else 2)
            delay = dice.uniform(0, 0.5 if aim == "start" else 0.02)
            hold = dice.choice([0, 0.1]) if aim in ("commit", "check", "removal", "line") else 0
            life = live(partial(victim, folder), Blow(signal.SIGKILL, aim, count, delay, hold))
            if life.start is not None and life.start < saved:
                failure = Verdict("lost", f"went on from {life.start}, saved was {saved}")
            if life.code != -signal.SIGKILL:
                break
            kills.append("inside " + " and ".join(sorted(life.inside)) if life.inside else "elsewhere")
            saved = newest(folder)
        tries -= len(kills)
        verdict = failure or same(folder, live(partial(victim, folder)), strategy, goes_on_from=saved)
        yield from (Verdict(verdict.kind, where if verdict.kind == SURVIVED else verdict.what) for where in kills)
        shutil.rmtree(folder)


@fault("SIGTERM", 5, [signal.SIGTERM], 75)
@fault("SIGINT", 5, [signal.SIGINT], 130)
@fault("SIGUSR1", 5, [signal.SIGUSR1], 75)
@fault("SIGTERM twice in a row", 5, [signal.SIGTERM] * 2, 75)
@fault("SIGINT, then SIGTERM during the save", 5, [signal.SIGINT, signal.SIGTERM], 130)
def signalled(numbers: list[int], code: int, tries: int) -> Iterator[Verdict]:
    """Saved at that step, the exit code that says so, and the same command goes on from there."""
    dice, words = random.Random(code), ("train", "config.py", "--run", "run")
    folder = _with_config()
    live(partial(command, folder, *words))
    wanted = logged(folder / "run")
    for _ in range(tries):
        shutil.rmtree(folder / "run")
        first, later = numbers[0], numbers[1:]
        delay = dice.uniform(0, 0.1)
        blows = [Blow(first, "save", 1, delay), *(Blow(n, "save", 1, delay + 0.002) for n in later)]
        life = live(partial(command, folder, *words), *blows)
        at = newest(folder / "run")
        again = live(partial(command, folder, *words))
        found = logged(folder / "run")
        if life.code == 0:
            yield Verdict("missed", "ended before the signal")
        elif life.code != code:
            yield Verdict("lost", f"code {life.code} in place of {code}: {_last(life)}")
        else:
            is_there = f"continuing after step {at}" in again.text
            yield judged(is_there and found == wanted and again.code == 0, "saved, same metrics", _last(again))


CONFIG = f"""
from optlab.config import *

def get_config():
    return Config(data=component("digits"), model=component("mlp", widths=[8]), steps={STEPS}, batch_size=32,
                  optimizer=component("adamw", learning_rate=0.01), evaluate_every=20,
                  log=Log(every=1, tensorboard=False), checkpoint=Checkpoint(every={EVERY}))
"""


def _with_config() -> Path:
    folder = fresh()
    (folder / "config.py").write_text(CONFIG)
    return folder


@fault("an error in the step, a save under way", 5)
def step_fails(tries: int) -> Iterator[Verdict]:
    """The error is raised, the save before is finished, and the run can be continued."""

    def broken(metrics: Any) -> Any:
        raise RuntimeError("planted")

    def fails(folder: Path, at: int) -> int:
        from optlab.training import records

        read = records.Records.push
        records.Records.push = lambda self, t, metrics: broken(metrics) if t == at else read(self, t, metrics)
        return small(folder)

    for i in range(tries):
        folder, at = fresh(), 4 * EVERY + 1 + i % 2
        life = live(partial(fails, folder, at))
        if life.code == 0 or "planted" not in life.text:
            yield Verdict("silent", "no error")
            continue
        yield same(folder, live(partial(small, folder)), goes_on_from=4 * EVERY)


@fault("an error in the thread that prepares batches", 5)
def data_fails(tries: int) -> Iterator[Verdict]:
    """Raised in the step that needed the batch, no hang."""

    def broken(batch: Any) -> Any:
        raise OSError("planted")

    for i in range(tries):
        folder, at = fresh(), 20 + i
        # A batch may span two epochs and take twice: the step of the error is told by the data alone.
        life = live(partial(small, folder, wrap=lambda s, at=at: Slow(s, at=at, do=broken)))
        steps = [int(m.split()[1].split(".")[0]) for m in life.marks if m.startswith("step ")]
        if life.code == 0 or "planted" not in life.text or not steps:
            yield Verdict("silent", "no error")
            continue
        yield same(folder, live(alike(folder)), goes_on_from=max(steps) // EVERY * EVERY - EVERY)


HAND = """
import sys
import jax, jax.numpy as jnp, optax
from optlab.training import Checkpoints, init_state
params = {"w": jax.random.normal(jax.random.key(int(sys.argv[2])), (2000, 1000))}
Checkpoints(sys.argv[1]).save(init_state(params, {}, optax.adam(0.1), key=jax.random.key(0)), {"best": None})
"""


@fault("normal exit of a loop of one's own, a save under way", 5)
def exits(tries: int) -> Iterator[Verdict]:
    """Nobody waits for the save: Python's end does, or says by its exit code that it couldn't."""
    for i in range(tries):
        folder = fresh()
        done = subprocess.run([sys.executable, "-c", HAND, folder, str(i)], capture_output=True, text=True, timeout=120)
        is_saved = saved_steps(folder) == [0]
        if done.returncode:
            yield judged("save" in done.stderr, "said by the exit code", done.stderr[-160:], "lost")
        else:
            yield from in_process(partial(_is_whole, folder)) if is_saved else [Verdict("silent", "not saved")]


def _is_whole(folder: Path) -> Iterator[Verdict]:
    Checkpoints(folder).verify(0)
    yield survived("saved, whole")


@fault("a bit flipped on the disk between a save's commit and its check", 10)
def flipped_in_between(tries: int) -> Iterator[Verdict]:
    """The save fails, what it wrote is set aside, the older ones are there: the same command goes on from them."""

    def flipping(folder: Path, at: int) -> int:
        verify = storage.verify_share

        def spoil(path: Path, saved: Any) -> None:
            if path.name == str(at):
                data = max((p for p in path.rglob("d/*") if p.is_file()), key=lambda p: p.stat().st_size)
                content = bytearray(data.read_bytes())
                content[len(content) // 2] ^= 4
                data.write_bytes(content)
            verify(path, saved)

        storage.verify_share = spoil
        return small(folder)

    for i in range(tries):
        folder, at = fresh(), 2 * EVERY + EVERY * (i % 8)
        life = live(partial(flipping, folder, at))
        before = newest(folder)
        if life.code == 0:
            yield Verdict("silent", "the save counted")
        elif not any((folder / "checkpoints").glob(f"quarantine-{at}-*")) or not before:
            yield Verdict("lost", f"nothing set aside, or nothing left: {_last(life)}")
        else:
            yield same(folder, live(partial(small, folder)), goes_on_from=before)


# The disk.


@fault("disk full: a file may have 1, 2, 4 … KiB", 8)
def disk_full(tries: int) -> Iterator[Verdict]:
    """The run ends with an error that names the folder; with room again the same command goes on."""

    def limited(folder: Path, size: int) -> int:
        def at_step(batch: Any) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        return small(folder, wrap=lambda s: Slow(s, at=30, do=at_step))

    for i in range(tries):
        folder = fresh()
        life = live(partial(limited, folder, 1 << (10 + i)))
        saved = newest(folder)
        again = same(folder, live(alike(folder)), goes_on_from=saved)
        if life.code == 0 and again.kind == SURVIVED:
            yield Verdict("missed", "there was room enough")
        else:
            yield again if life.code else Verdict("silent", "no error")


@fault("the tmpfs of the run is full", 3)
def tmpfs_full(tries: int) -> Iterator[Verdict]:
    for i in range(tries):
        folder = fresh()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder], capture_output=True).returncode:
            yield Verdict("missed", "mount isn't allowed here")
            continue
        try:
            filler = folder / "filler"

            def fill(batch: Any, filler: Path = filler) -> None:
                with filler.open("wb") as file:
                    try:
                        while True:
                            file.write(b"0" * 4096)
                            file.flush()
                    except OSError:
                        pass

            life = live(partial(small, folder, wrap=lambda s, fill=fill, i=i: Slow(s, at=20 + i, do=fill)))
            filler.unlink(missing_ok=True)
            saved = newest(folder)
            again = same(folder, live(alike(folder)), goes_on_from=saved)
            yield again if life.code else Verdict("silent", "no error")
        finally:
            subprocess.run(["umount", "-l", folder], check=False)


@fault("the run's folder, or that of its checkpoints, is deleted under it", 6)
def folder_deleted(tries: int) -> Iterator[Verdict]:
    """The run says so, or saves again; it never ends well without its last state."""
    for i in range(tries):
        folder = fresh()
        what = folder / "checkpoints" if i % 2 else folder
        gone = lambda batch, what=what: shutil.rmtree(what, ignore_errors=True)
        life = live(partial(small, folder, wrap=lambda s, i=i, gone=gone: Slow(s, at=18 + i, do=gone)))
        if life.code:
            yield refused(life, str(folder))
        else:
            yield judged(newest(folder) == STEPS, "saved again", "no last state", "lost")


@fault("a read-only folder", 2)
def read_only(tries: int) -> Iterator[Verdict]:
    """As somebody else than root, whom modes don't stop."""

    def as_nobody(folder: Path) -> int:
        os.setgid(65534)
        os.setuid(65534)
        return small(folder)

    for _ in range(tries):
        folder = fresh()
        os.chmod(SCRATCH, 0o755)
        os.chmod(folder, 0o555)
        yield refused(live(partial(as_nobody, folder)), str(folder))


@fault("stray folders and files beside the checkpoints", 6)
def strays(tries: int) -> Iterator[Verdict]:
    """They are neither taken for checkpoints nor deleted."""
    for i in range(tries):
        folder = fresh()
        half(folder)
        saved, inside = newest(folder), folder / "checkpoints"
        stray = inside / ("70", "30.tmp", "notes", "35", "040", "x/99")[i]
        stray.mkdir(parents=True)
        (stray / "mine.txt").write_text("mine")
        verdict = same(folder, live(partial(small, folder)), goes_on_from=saved)
        kept = [p for p in inside.rglob("mine.txt")]
        yield verdict if verdict.kind != SURVIVED or kept else Verdict("lost", f"{stray.name} was deleted")


# Checkpoints that aren't what was saved.


def in_process(work: Callable[[], Iterator[Verdict]]) -> Iterator[Verdict]:
    """What a forked process finds, which may touch devices."""

    def tell() -> None:
        for verdict in work():
            mark("verdict " + json.dumps([verdict.kind, verdict.what]))

    life = live(tell)
    yield from (Verdict(*json.loads(m[8:])) for m in life.marks if m.startswith("verdict "))
    if life.code:
        yield Verdict("lost", _last(life))


def _two_saved(folder: Path) -> Any:
    """A state saved at the steps 1 and 2 in a folder; gives (state of 1, state of 2)."""
    from optlab.training import init_state

    params = {"a": jnp.arange(300.0).reshape(20, 15), "b": jnp.ones(7, jnp.bfloat16)}
    first = init_state(params, {"mean": jnp.arange(5)}, optax.adam(0.1), key=jax.random.key(0), ema=True)
    states, checkpoints = [], Checkpoints(folder, keep=5)
    for step in (1, 2):
        moved = jax.tree.map(lambda p, step=step: p + step, first.params)
        states.append(type(first)(**{**vars(first), "step": jnp.int32(step), "params": moved}))
        checkpoints.save(states[-1], {"best": None})
    checkpoints.wait()
    return states


def _print(state: Any) -> Any:
    leaves = [
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in jax.tree.leaves(state)
    ]
    return fingerprints({str(i): x for i, x in enumerate(leaves)})


def _damaged(damage: Callable[[Path, random.Random], None], *, both: bool, tries: int, seed: int) -> Iterator[Verdict]:
    """Damages a file of the newest checkpoint, or one of each, and restores."""
    source, dice = fresh(), random.Random(seed)
    states = _two_saved(source)
    prints = {step: _print(state) for step, state in zip((1, 2), states, strict=True)}
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - a line for every quarantine
    for _ in range(tries):
        folder = fresh()
        shutil.copytree(source, folder, dirs_exist_ok=True)
        for step in (1, 2) if both else (2,):
            files = sorted(p for p in (folder / str(step)).rglob("*") if p.is_file())
            damage(dice.choice(files), dice)
        try:
            restored = Checkpoints(folder).restore_latest(states[1])
        except CheckpointError:
            aside = len(list(folder.glob("quarantine-*")))
            yield judged(both and aside > 0, "refused, set aside", "refused, though one is whole", "lost")
        else:
            if restored is None:
                yield Verdict("silent", "starts again from 0")
                continue
            step = int(restored[0].step)
            is_same = _print(restored[0]) == prints.get(step)
            aside = step == 2 or any(folder.glob("quarantine-2-*"))
            what = "nothing that counts" if step == 2 else "set aside, the one before is taken"
            yield judged(is_same and aside, what, f"step {step} with other bits, or nothing set aside")
        shutil.rmtree(folder)


def _flip(path: Path, dice: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        path.write_bytes(content)


def _truncate(path: Path, dice: random.Random) -> None:
    os.truncate(path, dice.randrange(max(1, path.stat().st_size)))


def _zero(path: Path, dice: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _delete(path: Path, dice: random.Random) -> None:
    path.unlink()


@fault("one flipped bit in a file of the newest checkpoint", 1000, _flip, False)
@fault("a truncated file", 60, _truncate, False)
@fault("a zeroed file", 60, _zero, False)
@fault("a deleted file", 60, _delete, False)
@fault("a deleted file in every checkpoint", 30, _delete, True)
@fault("a zeroed file in every checkpoint", 30, _zero, True)
def damaged(damage: Any, both: bool, tries: int) -> Iterator[Verdict]:
    for done in range(0, tries, 100):
        some = partial(_damaged, damage, both=both, tries=min(100, tries - done), seed=done)
        yield from in_process(some)


# The wrong thing continued.


@fault("another width", 2, "is of another model or optimizer", {"widths": (9,)})
@fault("another depth", 2, "is of another model or optimizer", {"widths": (8, 8)})
@fault("another optimizer", 2, "is of another model or optimizer", {"tx": optax.sgd(0.1, momentum=0.9)})
@fault("momentum in another dtype", 2, "is of another", {"tx": optax.adam(0.01, mu_dtype=jnp.bfloat16)})
@fault("another seed", 2, "seed", {"seed": 1})
@fault("another batch size", 2, "batch_size", {"batch_size": 24})
@fault("other data", 2, "data", {"wrap": lambda split: type(split)(split.inputs + 1, split.labels, split.rows)})
def changed(word: str, settings: dict[str, Any], tries: int) -> Iterator[Verdict]:
    for _ in range(tries):
        folder = fresh()
        half(folder)
        yield refused(live(partial(small, folder, **settings)), "Error: ", "is of another", word)


@fault("another implementation of random keys", 2)
def other_keys(tries: int) -> Iterator[Verdict]:
    def other(folder: Path) -> int:
        jax.config.update("jax_default_prng_impl", "rbg")
        return small(folder)

    for _ in range(tries):
        folder = fresh()
        half(folder)
        yield refused(live(partial(other, folder)), "CheckpointError", "key")


@fault("8 devices, then 1", 3, 8, 1)
@fault("8 devices, then 4", 3, 8, 4)
@fault("1 device, then 8", 3, 1, 8)
def moved(before: int, after: int, tries: int) -> Iterator[Verdict]:
    """The state is restored bit by bit, and the run ends where the undisturbed one does, up to rounding."""

    def continued(folder: Path) -> int:
        restore = Checkpoints.restore

        def telling(self: Checkpoints, like: Any, step: int, **settings: Any) -> Any:
            state = restore(self, like, step, **settings)
            mark("restored " + ("same" if self.contents(step) == contents_of(state) else "other"))
            return state

        Checkpoints.restore = telling
        return small(folder, strategy="fsdp", devices=after)

    wanted = undisturbed("fsdp")[1]
    for _ in range(tries):
        folder = fresh()
        half(folder, strategy="fsdp", devices=before)
        life = live(partial(continued, folder))
        found = logged(folder)
        is_near = [r["step"] for r in found] == [r["step"] for r in wanted] and all(
            np.isclose(x[name], y[name], rtol=1e-3) for x, y in zip(found, wanted, strict=True) for name in y
        )
        yield judged("restored same" in life.marks and is_near and life.code == 0, "same state", _last(life))


def contents_of(state: Any) -> Any:
    flat, manifest = flatten(state)
    found = fingerprints(flat)
    return [{**leaf, "fingerprint": found.get(leaf["name"])} for leaf in manifest]


@fault("two writers at once", 5)
def two_writers(tries: int) -> Iterator[Verdict]:
    """The second is refused; the first goes on as if nothing had happened."""
    for _ in range(tries):
        folder = fresh()
        first = Process(partial(small, folder, wrap=lambda s: Slow(s, seconds=0.05)))
        first.wait_for("step")
        second = live(alike(folder))
        verdict = refused(second, "CheckpointError", str(folder))
        life = first.wait()
        yield verdict if verdict.kind != SURVIVED else same(folder, life)


# Numbers that aren't.


def poisoned(value: float) -> Callable[[Any], Any]:
    return lambda batch: {**batch, "inputs": np.full_like(batch["inputs"], value)}


@fault("a batch of NaN, guard=stop", 4, np.nan)
@fault("a batch of 1e20, gradients as large", 4, 1e20)
@fault("a batch of 1e30, the loss overflows", 4, 1e30)
def stopped(value: float, tries: int) -> Iterator[Verdict]:
    """The run ends with an error, nothing that isn't finite is saved, and the same command goes on."""
    for i in range(tries):
        folder = fresh()
        life = live(partial(small, folder, wrap=lambda s, i=i: Slow(s, at=30 + i, do=poisoned(value))))
        verdict = refused(life, "NonFiniteError", "step")
        yield verdict if verdict.kind != SURVIVED else same(folder, live(alike(folder)), goes_on_from=20)


class Spoiled:
    """A split whose example 17 is of one value in some epochs: the same in every life."""

    def __init__(self, split: Any, epochs: range, value: float):
        self.split, self.epochs, self.value = split, epochs, value

    def __len__(self) -> int:
        return len(self.split)

    def take(self, indices: np.ndarray, epoch: int | None = None, seed: int = 0) -> Any:
        batch = self.split.take(indices, epoch, seed)
        if epoch in self.epochs:
            is_bad = (indices == 17)[:, None]
            batch = {**batch, "inputs": np.where(is_bad, self.value, batch["inputs"]).astype(np.float32)}
        return batch


@fault("NaN in one example, guard=skip", 5, np.nan, {})
@fault("a loss spike, guard=skip spike=6", 5, -1000.0, {"spike": 6.0})
def skipped(value: float, settings: dict[str, Any], tries: int) -> Iterator[Verdict]:
    """Its step is left out and named; killed after that and continued, the run comes to the same."""
    spoil = lambda split: Spoiled(split, range(11, 12), value)
    victim = partial(small, guard="skip", wrap=spoil, **settings)
    calm = fresh()
    wanted = live(partial(victim, calm))
    log = [json.loads(line) for line in (calm / "skipped.jsonl").read_text().splitlines()]
    if wanted.code or len(log) != 1 or 17 not in log[0]["examples"]:
        yield Verdict("lost", f"{log}, {_last(wanted)}")
        return
    for i in range(tries):
        folder = fresh()
        live(partial(victim, folder), Blow(signal.SIGKILL, "step", 56 + i, hold=0.1))
        life = live(partial(victim, folder))
        same_skips = (folder / "skipped.jsonl").read_text() == (calm / "skipped.jsonl").read_text()
        same_files = same_skips and logged(folder) == logged(calm)
        yield judged(life.end == wanted.end and same_files, "left out, named, same bits after a kill", _last(life))


@fault("NaN in twelve steps, guard=skip skip_limit=10", 4)
def too_many(tries: int) -> Iterator[Verdict]:
    for i in range(tries):
        spoil = lambda split, i=i: Spoiled(split, range(i, i + 12), np.nan)
        yield refused(
            live(partial(small, fresh(), guard="skip", wrap=spoil, steps=80)), "NonFiniteError", "skip_limit=10"
        )


@fault("finite gradients, infinite update", 4)
def infinite_update(tries: int) -> Iterator[Verdict]:
    """The state isn't saved, the error says what it was."""
    for i in range(tries):
        folder = fresh()
        rate = lambda step, i=i: jnp.where(step == 30 + i, jnp.inf, 0.01)
        yield refused(live(partial(small, folder, tx=optax.adam(rate))), "NonFiniteError", "param")


@fault("NaN in the target's metric", 4)
def nan_metric(tries: int) -> Iterator[Verdict]:
    """The best checkpoint stays the best finite one."""
    from optlab.config import Target

    def best(at: int) -> Iterator[Verdict]:
        folder = fresh()
        from optlab.training.judge import Judge

        call = Judge.__call__

        def spoiled(self: Judge, record: Any) -> Any:
            return call(self, {**record, "validation/loss": np.nan} if record["step"] >= at else record)

        Judge.__call__ = spoiled
        small(folder)
        kept = Checkpoints(folder / "checkpoints")
        found = kept.notes(kept.steps()[-1])["best"]
        yield judged(found is not None and found[0] < at and found[0] in kept.steps(), "the best is kept", str(found))

    assert Target().metric == "validation/loss"
    for i in range(tries):
        yield from in_process(lambda i=i: best(40 + i % 2))


class Torn:
    """A split of which an example can't be read."""

    def __init__(self, split: Any, bad: int):
        self.split, self.bad = split, bad

    def __len__(self) -> int:
        return len(self.split)

    def take(self, indices: np.ndarray, *rest: Any) -> Any:
        if self.bad in indices:
            raise DamagedRecordError([self.bad], "torn")
        counted = {"weight": np.ones(len(indices), np.float32), "index": indices}
        return {**self.split.take(indices, *rest), **counted}


@fault("a damaged record in the data", 4)
def damaged_record(tries: int) -> Iterator[Verdict]:
    """Left out once an epoch, and named; killed and continued, the run comes to the same."""
    rng = np.random.default_rng(0)
    whole = arrays(rng.normal(size=(100, 6)), rng.integers(0, 3, 100)).train
    for i in range(tries):
        folders, ends, bad = (fresh(), fresh()), [], 17 + i
        five = [Batches(Torn(whole, bad), 16).batch(step) for step in range(5)]  # an epoch of 80
        seen = np.concatenate([b["index"][b["weight"] > 0] for b in five])
        if sorted(seen) != [n for n in range(80) if n != bad]:
            yield Verdict("lost", f"seen in an epoch: {sorted(seen)}")
            continue
        victim = partial(small, wrap=lambda split, bad=bad: Torn(split, bad))
        live(partial(victim, folders[0]), Blow(signal.SIGKILL, "step", 20 + i, hold=0.1))
        for folder in folders:
            ends.append(live(partial(victim, folder)))
        killed, calm = ([json.loads(x) for x in (f / "skipped.jsonl").read_text().splitlines()] for f in folders)
        epochs = STEPS * 16 // 80
        is_named = len(calm) == epochs and all(x["examples"] == [bad] and x["why"] == "torn" for x in calm)
        is_same = ends[0].end == ends[1].end and killed == calm
        yield judged(
            is_named and is_same,
            "left out, named, others once an epoch, same bits after a kill",
            f"{calm}, {_last(ends[0])}",
        )


# Several processes.


def _kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)


def _leave_no_room(process: int) -> None:
    """It can't make a file of more than 256 bytes, or add to a longer one."""
    resource.prlimit(process, resource.RLIMIT_FSIZE, (256, resource.RLIM_INFINITY))


@fault("a peer killed during a step, optlab launch -n 2", 2, "step", _kill)
@fault("a peer killed during a save, optlab launch -n 2", 2, "save", _kill)
@fault("the disk full for one of two, optlab launch -n 2", 2, "step", _leave_no_room)
def peer_hit(when: str, blow: Callable[[int], None], tries: int) -> Iterator[Verdict]:
    """All start again from the last checkpoint: by themselves, but after an error that was told by the same command."""
    words = ["launch", "-n", "2", "--restarts", "1", "--", "train", "config.py", "strategy=fsdp", "--run"]
    program = [sys.executable, "-c", "import sys; from optlab.commands import main; sys.exit(main())", *words]
    folder = _with_config()
    settings: dict[str, Any] = {"cwd": folder, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run([*program, "calm"], **settings)
    if done.returncode:
        yield Verdict("lost", done.stderr.strip()[-160:])
        return
    wanted = logged(folder / "calm")
    for i in range(tries):
        name = f"hit{i}"
        child = subprocess.Popen(
            [*program, name], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        _hit_a_child(child.pid, folder / name, when, blow, index=i % 2)
        _, text = child.communicate(timeout=300)
        code, is_hit = child.returncode, child.returncode != 0 or "restart 1 of 1" in text
        if code and blow is _leave_no_room:  # an error that would come again: it isn't started again by itself
            again = subprocess.run([*program, name], **settings)
            code, text = again.returncode, text + again.stderr
        metrics = logged(folder / name)
        if not is_hit:
            yield Verdict("missed", "ended before the blow")
        else:
            yield judged(code == 0 and metrics == wanted, "same metrics", text.strip()[-160:])


@fault("2 processes, then 1, then 2", 1)
def processes(tries: int) -> Iterator[Verdict]:
    """Each is ended by SIGTERM, saved, and the next goes on from there: to the same metrics, up to rounding."""
    program = [sys.executable, "-c", "import sys; from optlab.commands import main; sys.exit(main())"]
    two, words = ["launch", "-n", "2", "--"], ["train", "config.py", "strategy=jit", "--run"]
    for _ in range(tries):
        folder = _with_config()
        settings: dict[str, Any] = {"cwd": folder, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        subprocess.run([*program, *words, "calm"], **settings, timeout=300)
        starts, told, codes = [], [], []
        for front, until in ((two, 15), ([], 35), (two, None)):
            starts.append(newest(folder / "run"))
            child = subprocess.Popen([*program, *front, *words, "run"], **settings)
            while until and child.poll() is None and _lines(folder / "run" / "metrics.jsonl") < until:
                time.sleep(0.005)
            if until:
                child.send_signal(signal.SIGTERM)
            told.append(child.communicate(timeout=300)[0])
            codes.append(child.returncode)
        wanted, found = (logged(folder / name) for name in ("calm", "run"))
        is_near = [r["step"] for r in found] == [r["step"] for r in wanted] and all(
            np.isclose(x[name], y[name], rtol=1e-3) for x, y in zip(found, wanted, strict=True) for name in y
        )
        goes_on = all(f"continuing after step {s}" in t for s, t in zip(starts[1:], told[1:], strict=True))
        yield judged(
            is_near and goes_on and codes == [75, 75, 0], "same metrics", f"{codes}, {starts}: {told[-1][-100:]}"
        )


def _lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def _hit_a_child(parent: int, folder: Path, when: str, blow: Callable[[int], None], *, index: int) -> None:
    """Waits for the moment, and hits one of the launcher's processes."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        inside = folder / "checkpoints"
        names = [p.name for p in inside.iterdir()] if inside.is_dir() else []
        if when == "save" and any("tmp" in n for n in names) and len(names) > 1:
            break
        if when == "step" and (folder / "metrics.jsonl").exists() and len(saved_steps(inside)) > 0:
            time.sleep(0.05)
            break
        time.sleep(0.001)
    children = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True).stdout.split()
    if len(children) > index:
        blow(int(children[index]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="WORD", help="faults whose name holds one of the words"
    )
    parser.add_argument("--tries", type=float, default=1.0, help="times so many tries (default: 1)")
    arguments = parser.parse_args()
    rows, inside, began = [], 0, time.monotonic()
    for entry in FAULTS:
        if arguments.only and not any(w in entry.name for w in arguments.only):
            continue
        since = time.monotonic()
        verdicts = list(entry.inject(max(1, round(entry.tries * arguments.tries))))
        kinds = collections.Counter(v.kind for v in verdicts)
        what = collections.Counter((v.kind, v.what) for v in verdicts)
        told = "; ".join(f"{n} {w}" if k == SURVIVED else f"**{n} {k}: {w}**" for (k, w), n in what.most_common())
        counts = [kinds[k] for k in (SURVIVED, "lost", "silent")]
        inside += sum("inside" in v.what for v in verdicts)
        rows.append((entry.name, sum(counts), *counts, told))
        print(f"{time.monotonic() - since:5.0f} s  {rows[-1]}", flush=True)
    if not arguments.only:
        write(rows, inside, time.monotonic() - began)


def write(rows: list[tuple[Any, ...]], inside: int, seconds: float) -> None:
    totals = [sum(row[i] for row in rows) for i in range(1, 5)]
    told = f"{totals[0]} tries: {totals[1]} survived, {totals[2]} lost, {totals[3]} silent"
    lines = [
        "# Faults",
        "",
        f"`python benchmarks/faults.py`: {seconds / 60:.0f} minutes, jax {jax.__version__}, Python "
        f"{platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, simulated devices.",
        "",
        __doc__[__doc__.index("A try has") :].strip(),
        "",
        f"{told}. {inside} of the kills fell inside a save, its commit or check, a removal or a line of metrics.",
        "",
        "| fault | tries | survived | lost | silent | what happened |",
        "|---|---:|---:|---:|---:|---|",
        *(f"| {' | '.join(map(str, row))} |" for row in rows),
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "faults.md").write_text("\n".join(lines) + "\n")
    print(told)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="optlab-faults-", ignore_cleanup_errors=True) as scratch:
        SCRATCH = scratch
        main()
