"""What optlab does on a GPU, beside torch, optax and the floors: one command, eight minutes at most.

    python benchmarks/gpu.py                 # $OUT/gpu.json, .md, .log; without OUT, benchmarks/results/gpu_<device>.*
    python benchmarks/gpu.py --only 1,3      # these sections alone
    python benchmarks/gpu.py --smoke         # all of it at toy sizes on a CPU: that it runs, no figure

The sections, in the order of their worth, are modules of `on_gpu`, whose docstrings say what each measures. A section's
sides (optlab with optax, and torch) are processes of their own, so that what crashes, hangs or runs out of memory costs
its own row, with the reason. They compile at the same time, and measure in turns: figures are medians of several turns,
each synchronized at its end, after a warm-up. A section may take its limit and what those before it left over; the
results are written after each. What each should come to is in benchmarks/results/gpu_expectations.md.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TOTAL = 470.0  # seconds, for all sections
PATIENCE = 0.4  # of its time that a side waits for the other one to be ready to measure, too
LESS = {"ms", "s", "ratio"}  # units of which less is better
PACKAGES = ("optlab-jax", "jax", "jaxlib", "jax-cuda13-plugin", "optax", "flax", "orbax-checkpoint", "torch", "triton")


@dataclass(frozen=True)
class Section:
    """Attributes: number, as in the issue; module and its functions, each a process; limit, in seconds."""

    number: int
    module: str
    sides: tuple[str, ...]
    limit: float


SECTIONS = (
    Section(1, "on_gpu.muon", ("ours", "theirs"), 85),
    Section(2, "on_gpu.adamw", ("ours", "theirs"), 35),
    Section(3, "on_gpu.gpt", ("ours", "theirs"), 130),
    Section(4, "on_gpu.resnet", ("ours", "theirs"), 55),
    Section(5, "on_gpu.population", ("ours",), 45),
    Section(6, "on_gpu.costs", ("ours",), 70),
    Section(7, "on_gpu.compiles", ("ours",), 50),
)
assert sum(section.limit for section in SECTIONS) <= TOTAL


@dataclass
class Side:
    """A process of a section; what it asks for, and whether it measures."""

    name: str
    process: subprocess.Popen[bytes]
    asked: str = ""  # "ready" or "last", while it waits for its turn
    since: float = 0.0
    served: int = 0
    is_measuring: bool = False
    said: bytes = b""


@dataclass
class Report:
    """What is known so far, and where it is written."""

    about: dict[str, Any]
    folder: Path
    name: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**self.about, "rows": self.rows}, indent=1, ensure_ascii=False)
        (self.folder / f"{self.name}.json").write_text(text + "\n")
        head = [f"{name}: {value}" for name, value in self.about.items()]
        (self.folder / f"{self.name}.md").write_text(
            "\n".join([*(f"- {x}" for x in head), "", *table(self.rows)]) + "\n"
        )


def run_section(section: Section, device: str, deadline: float, log: TextIO) -> list[dict[str, Any]]:
    """The rows of a section: those that its sides wrote, and one for each side that didn't end well."""
    with tempfile.TemporaryDirectory() as folder:
        files = {side: Path(folder) / f"{side}.jsonl" for side in section.sides}
        has_torch = importlib.util.find_spec("torch") is not None
        here = [side for side in section.sides if side != "theirs" or has_torch]
        sides = [_start(section, side, files[side], device, deadline, log) for side in here]
        try:
            late = _conduct(sides, deadline)
        finally:
            for side in sides:
                _kill(side.process)
        rows = [] if len(here) == len(section.sides) else [{"case": "torch", "who": "", "skipped": "torch isn't here"}]
        for side in sides:
            found = [json.loads(line) for line in _lines(files[side.name])]
            code = side.process.wait()
            if side.name in late:
                found.append({"case": side.name, "who": "", "failed": f"stopped at its limit of {section.limit:.0f} s"})
            elif code and not any("failed" in row for row in found):
                why = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                found.append({"case": side.name, "who": "", "failed": f"{why}, see the log"})
            rows += found
    return [{"section": section.number, **row} for row in rows]


def _start(section: Section, side: str, rows: Path, device: str, deadline: float, log: TextIO) -> Side:
    rows.touch()
    command = [sys.executable, "-m", "on_gpu", section.module, side, str(rows), str(deadline), device]
    paths = [str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # both sides share the device's memory
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
    }
    environment.setdefault("JAX_PLATFORMS", "cuda,cpu")  # JAX itself would go on without the GPU
    if device == "cpu":
        environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
        environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    print(f"--- {section.number} {section.module} {side}, until {deadline:.0f}", file=log, flush=True)
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "process_group": 0}
    return Side(side, subprocess.Popen(command, cwd=ROOT, env=environment, **pipes))


def _conduct(sides: Sequence[Side], deadline: float) -> set[str]:
    """Lets one side measure at a time until all have ended; the names of those that hadn't at the deadline."""
    alive, patience = {side.process.stdout: side for side in sides}, PATIENCE * (deadline - time.time())
    with selectors.DefaultSelector() as selector:
        for pipe in alive:
            selector.register(pipe, selectors.EVENT_READ)
        while alive:
            if time.time() > deadline:
                return {side.name for side in alive.values()}
            for key, _ in selector.select(timeout=0.1):
                side = alive[key.fileobj]
                said = os.read(key.fd, 4096)
                if not said:
                    selector.unregister(key.fileobj)
                    del alive[key.fileobj]
                _hear(side, said)
            _pass_on(list(alive.values()), patience)
    for side in sides:
        try:
            side.process.wait(max(0.1, deadline - time.time()))
        except subprocess.TimeoutExpired:
            return {side.name}
    return set()


def _hear(side: Side, said: bytes) -> None:
    *words, side.said = (side.said + said).split(b"\n")
    for word in words:
        side.is_measuring = False
        side.asked = "" if word == b"done" else word.decode()
        side.since = time.time()


def _pass_on(sides: Sequence[Side], patience: float) -> None:
    """The next turn, where nobody has one, to who had the fewest; while another one compiles, after some patience."""
    waiting = [side for side in sides if side.asked and (side.asked != "last" or len(sides) == 1)]
    if not waiting or any(side.is_measuring for side in sides):
        return
    side = min(waiting, key=lambda side: side.served)
    is_busy = any(not other.asked for other in sides)
    if is_busy and time.time() - side.since < patience:
        return
    side.asked, side.is_measuring, side.served = "", True, max(s.served for s in sides) + 1
    with contextlib.suppress(BrokenPipeError):  # it has died, which is heard of in the next round
        side.process.stdin.write(b"go\n")
        side.process.stdin.flush()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """A side with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _lines(file: Path) -> list[str]:
    """The whole ones: a process may be killed within one."""
    return [line for line in file.read_text().splitlines() if line.endswith("}")]


def verdicts(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    """How a row stands to each of its goals."""
    told = []
    for against, goal in row.get("goals", {}).items():
        if against == "":
            ratio, name = row["value"], ""
        elif against == "floor":
            ratio, name = row["value"] / row["floor"] if row["floor"] else None, " of the floor"
        else:
            same = (row["section"], row["case"])
            peers = [r for r in rows if (r["section"], r["case"], r["who"]) == (*same, against) and "value" in r]
            ratio, name = row["value"] / peers[0]["value"] if peers else None, f" of {against}"
        if ratio is None:
            told.append(f"{against}: not measured")
            continue
        is_met = ratio <= goal if row["unit"] in LESS else ratio >= goal
        sign = "≤" if row["unit"] in LESS else "≥"
        told.append(f"{ratio:.3g}{name}, goal {sign} {goal:g}: {'met' if is_met else 'MISSED'}")
    return told


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown, a line a row."""
    lines = ["| | what | who | measured | low – high | floor | predicted | |", "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['section']} | {row['case']} | {row['who']} | - | | | | FAILED: {row['failed']} |")
            continue
        if "skipped" in row:
            lines.append(f"| {row['section']} | {row['case']} | {row['who']} | - | | | | {row['skipped']} |")
            continue
        numbers = [_number(row[name]) for name in ("value", "low", "high", "floor", "predicted")]
        notes = "; ".join(filter(None, [*verdicts(row, rows), row["note"]]))
        cells = [row["section"], row["case"], row["who"], f"{numbers[0]} {row['unit']}"]
        cells += [f"{numbers[1]} – {numbers[2]}", *numbers[3:], notes]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def about(is_smoke: bool) -> dict[str, Any]:
    """The device, the versions, the commit: what a figure is of."""
    device = "cpu" if is_smoke else _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").split("\n")[0]
    found: dict[str, Any] = {"device": device}
    if not is_smoke:
        found["driver, memory"] = _output(
            "nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"
        )
    found["when"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    commit = _output("git", "-C", str(ROOT), "rev-parse", "HEAD")
    changed = len(_output("git", "-C", str(ROOT), "status", "--porcelain").splitlines())
    found["commit"] = f"{commit}{f', and {changed} files changed' if changed else ''}" if commit else "not known"
    digest = hashlib.sha256()
    for file in sorted([*(ROOT / "optlab").rglob("*.py"), *HERE.rglob("*.py")]):
        digest.update(file.read_bytes())
    found["sources"] = digest.hexdigest()[:16]  # where there is no git
    found["versions"] = f"Python {platform.python_version()}, {', '.join(filter(None, map(_version, PACKAGES)))}"
    found["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "")
    return found


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return ""


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def run(sections: Sequence[Section], report: Report, log: TextIO) -> None:
    """All of them, one after another; written after each. A CPU, which others may use, has ten times as long."""
    device, ends = report.about["device"], time.time()
    slack = 10 if device == "cpu" else 1
    last = ends + slack * TOTAL
    for section in sections:
        ends = min(last, ends + section.limit * slack)  # what those before left over is the next one's
        if ends - time.time() < 1:
            report.rows.append({"section": section.number, "case": "all", "who": "", "failed": "no time was left"})
        else:
            began = time.time()
            report.rows += run_section(section, device, ends, log)
            print(f"section {section.number}: {time.time() - began:.0f} s", flush=True)
        report.write()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="toy sizes on a CPU")
    parser.add_argument("--only", help="sections, as 1,3")
    arguments = parser.parse_args()
    numbers = {str(s.number) for s in SECTIONS}
    only = set(arguments.only.split(",")) if arguments.only else numbers
    if only - numbers:
        parser.error(f"--only takes numbers of sections, {', '.join(sorted(numbers))}, got {arguments.only}")
    found = about(arguments.smoke)
    if not found["device"]:
        parser.error("no GPU is here (nvidia-smi names none): --smoke runs everything at toy sizes on a CPU")
    name, folder = "gpu", os.environ.get("OUT")
    if folder is None:
        name = f"gpu_{re.sub(r'[^A-Za-z0-9]+', '_', found['device'])}"
        folder = tempfile.mkdtemp(prefix="optlab-gpu-") if arguments.smoke else str(HERE / "results")
    report = Report(found, Path(folder), name)
    report.write()
    with (report.folder / f"{name}.log").open("w") as log:
        run([s for s in SECTIONS if str(s.number) in only], report, log)
    print("\n".join([*(f"{k}: {v}" for k, v in found.items()), "", *table(report.rows)]))
    print(f"\n{report.folder / name}.json, .md, .log")
    return 1 if any("failed" in row for row in report.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
