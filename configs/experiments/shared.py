"""What the experiments beside this file share: a page with tables and a figure, and a small network on the digits.

An experiment is a file `e<number>_<name>.py`. Its docstring opens with its title, and says what is claimed and what is
done about it. Its function `measure(smoke) -> Page` does it, at full size or at a size that takes seconds; where it can
read a file, it is `measure(smoke, path=None)`, and `--data` gives the path. As a script it prints the page; at full
size it also writes `docs/experiments/e<number>_<name>.md` and the figure beside it.
"""

import argparse
import ast
import datetime
import hashlib
import inspect
import io
import os
import platform
import re
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import ArrayLike
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import optlab
from optlab import data as sources
from optlab.compare.statistics import mean
from optlab.report import Table

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Page:
    """What an experiment found.

    Attributes:
        how: its sizes and seeds, a sentence.
        tables: what was measured; intervals hold 95 %.
        figure: the same as a picture.
        finding: what it says, whose numbers are the measured ones.
    """

    how: str
    tables: Sequence[Table]
    figure: Figure
    finding: str


def estimate(sample: ArrayLike, digits: int = 3) -> str:
    """The mean and the half width of Student's interval of 95 %, as a table's cell; of equal values the mean alone."""
    found = mean(np.asarray(sample, np.float64))
    if np.isnan(found.low):
        return f"{found.value:.{digits}f}"
    return f"{found.value:.{digits}f} ± {(found.high - found.low) / 2:.{digits}f}"


def share(hits: ArrayLike) -> str:
    """A share of trials in percent, as a cell of a table."""
    return f"{100 * np.mean(np.asarray(hits, np.float64)):.1f} %"


def at_values(axis: Any, values: Sequence[float]) -> None:
    """Labels a logarithmic axis at the values that were measured, and nowhere else."""
    axis.set_major_locator(FixedLocator(list(values)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_locator(NullLocator())


def band(ax: Any, x: ArrayLike, sample: ArrayLike, **style: Any) -> None:
    """Draws the mean of curves, one a row, in a band from the lowest to the highest of them."""
    (line,) = ax.plot(x, np.mean(sample, axis=0), **style)
    ax.fill_between(x, np.min(sample, axis=0), np.max(sample, axis=0), color=line.get_color(), alpha=0.15, linewidth=0)


def markdown(measure: Callable[..., Page], page: Page, seconds: float, data: Path | None = None) -> str:
    """The page of an experiment as Markdown; `data` is what it was given to read."""
    path, doc = Path(inspect.getfile(measure)), inspect.getdoc(inspect.getmodule(measure)) or ""
    title, _, text = doc.partition("\n")
    machine = (
        f"{jax.devices()[0].device_kind} ({processor()}), {os.cpu_count()} cores, {platform.machine()}, "
        f"Python {platform.python_version()}, jax {jax.__version__}"
    )
    command = f"python {path.relative_to(ROOT)}"
    given = "" if data is None else f" with `--data {data.name}`"
    parts = [
        f"# {title.rstrip('.')}",
        text.strip(),
        f"`{command}`{given}: {page.how} Measured on {datetime.date.today()} in {seconds:.0f} s of CPU time "
        f"on {machine}. Intervals hold 95 %.",
        *(as_markdown(table) for table in page.tables),
        f"![{title.rstrip('.')}]({path.stem}.png)",
        "## What it says",
        filled(page.finding),
        f"<!-- made by code {code(path)} -->",
    ]
    return "\n\n".join(parts) + "\n"


def filled(words: str) -> str:
    """Paragraphs in lines of 120 characters, whatever the lines were that the numbers were put into."""
    paragraphs = [" ".join(lines.split()) for lines in re.split(r"\n\s*\n", words.strip())]
    return "\n\n".join(textwrap.fill(p, 120, break_long_words=False, break_on_hyphens=False) for p in paragraphs)


# A page says by which code it was made, so that a test finds one that is older than its script.


def code(script: Path) -> str:
    """A digest of what decides an experiment's tables and figure: the script's code, and what it takes from this file.

    Comments, docstrings and the words of the finding aren't in it; a test compares those words themselves. Nor is
    optlab.
    """
    tree, here = ast.parse(script.read_text()), ast.parse(Path(__file__).read_text())
    imports = [x for x in tree.body if isinstance(x, ast.ImportFrom) and x.module == "shared"]
    taken = {name.name for x in imports for name in x.names} - {"Page", "main"}
    words, function = finding(tree)
    body = [x for x in tree.body if x is not function]
    body += [x for x in here.body if getattr(x, "name", None) in taken]
    return hashlib.sha256(repr(_told(body, words)).encode()).hexdigest()[:12]


def finding(tree: ast.Module) -> tuple[ast.expr, ast.stmt | None]:
    """The expression of a page's finding, and the function that returns it where it isn't in `Page(…)` itself."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    page = next(node for node in calls if isinstance(node.func, ast.Name) and node.func.id == "Page")
    words = page.args[3]
    if not isinstance(words, ast.Call):
        return words, None
    function = next(x for x in tree.body if isinstance(x, ast.FunctionDef) and x.name == words.func.id)
    return function.body[-1].value, function


def _told(part: Any, words: ast.expr) -> Any:
    """A piece of a syntax tree as tuples, alike on every Python, without docstrings and without `words`."""
    if part is words:
        return "words"
    if isinstance(part, list):
        return [_told(x, words) for x in part if not (isinstance(x, ast.Expr) and isinstance(x.value, ast.Constant))]
    if not isinstance(part, ast.AST):
        return part
    fields = [(name, _told(value, words)) for name, value in ast.iter_fields(part) if value not in (None, [])]
    return type(part).__name__, fields


def processor() -> str:
    """The name of the processor: Linux's own, else what Python knows of it."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or "unknown model"


def as_markdown(table: Table) -> str:
    """A table as Markdown."""
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(measure: Callable[..., Page], argv: Sequence[str] | None = None) -> None:
    """The command line of an experiment: of measure(smoke), or of measure(smoke, path) where it reads files."""
    parser = argparse.ArgumentParser(description=inspect.getdoc(inspect.getmodule(measure)))
    parser.add_argument("--smoke", action="store_true", help="a size that takes seconds; nothing is written")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "experiments", help="folder of page and figure")
    if "path" in inspect.signature(measure).parameters:
        parser.add_argument("--data", type=Path, help="the file or folder that the docstring names")
    arguments = parser.parse_args(argv)
    data = getattr(arguments, "data", None)
    began = time.process_time()
    page = measure(arguments.smoke) if data is None else measure(arguments.smoke, data)
    text = markdown(measure, page, time.process_time() - began, data)
    print(text)
    if not arguments.smoke:
        stem = Path(inspect.getfile(measure)).stem
        (arguments.out / f"{stem}.md").write_text(text)
        save(page.figure, arguments.out / f"{stem}.png", code(Path(inspect.getfile(measure))))


def save(figure: Figure, path: Path, made_by: str) -> None:
    """Writes a figure as a small PNG of few colours, with the code that made it and without a date in it."""
    picture, about = io.BytesIO(), PngInfo()
    about.add_text("code", made_by)
    figure.savefig(picture, dpi=90, bbox_inches="tight")
    small = Image.open(picture).convert("RGB").quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(path, optimize=True, pnginfo=about)  # by coverage: the median's cut takes one colour for two lines


# A small network on the digits or on text, whose training vmaps over seeds and hyperparameters.

Data = tuple[jax.Array, jax.Array]  # images (N, 8, 8, 1) and labels (N,), or tokens and labels (N, T)


def digits() -> tuple[Data, Data, Data]:
    """All images and labels of scikit-learn's digits: 1,297 to train, 200 to validate, 300 to test."""
    source = sources.digits()

    def whole(split: Any) -> Data:
        rows = split.take(np.arange(len(split)))
        return jnp.asarray(rows["inputs"]), jnp.asarray(rows["labels"])

    return whole(source.train), whole(source.validation), whole(source.test)


def text(path: str | Path | None, length: int, held: int) -> tuple[Data, Data]:
    """Windows of bytes and the bytes that follow each, (N, length), and the first `held` windows for validation.

    Args:
        path: the file, such as tinyshakespeare.txt; None is the source of Python's standard library.
        length: of a window.
        held: how many windows to validate on.
    """
    source = sources.text(None if path is None else str(path), length=length)

    def windows(split: Any, count: int) -> Data:
        rows = split.take(np.arange(count))
        return jnp.asarray(rows["inputs"]), jnp.asarray(rows["labels"])

    return windows(source.train, min(len(source.train), 40_000)), windows(source.validation, held)


@dataclass(frozen=True)
class Learner:
    """A classifier and its training examples, for `optlab.minimize`: `loss(params, key)` draws a batch by the key.

    It classifies images, or every token of a window by the one that follows.

    Attributes:
        model: a Flax module. With BatchNorm the statistics are those of the batch at hand, and of all examples of
            a set in `error` and `mean_loss`.
        train: the examples.
        batch_size: how many a step, drawn with replacement; their number is all of them, and the gradient exact.
    """

    model: Any
    train: Data
    batch_size: int = 64

    def init(self, key: jax.Array) -> Any:
        return self.model.init(key, self.train[0][:2])

    def outputs(self, params: Any, images: jax.Array) -> jax.Array:
        return self.model.apply(params, images, train=True, mutable=["batch_stats"])[0]

    def loss(self, params: Any, key: jax.Array) -> jax.Array:
        if self.batch_size == len(self.train[0]):
            return self.mean_loss(params, self.train)
        rows = jax.random.randint(key, (self.batch_size,), 0, len(self.train[0]))
        return self.mean_loss(params, (self.train[0][rows], self.train[1][rows]))

    def mean_loss(self, params: Any, data: Data) -> jax.Array:
        each = optax.softmax_cross_entropy_with_integer_labels(self.outputs(params, data[0]), data[1])
        return jnp.mean(each)

    def error(self, params: Any, data: Data) -> jax.Array:
        """The share of wrong answers, in percent."""
        return 100 * jnp.mean(jnp.argmax(self.outputs(params, data[0]), axis=-1) != data[1])

    def path(self, tx: Any, steps: int, key: jax.Array, record: Callable[[Any], Any] | None = None) -> Any:
        """One training from a key: `optlab.minimize`'s path, of which every step's `record(params)` is kept."""
        for_init, for_batches = jax.random.split(key)
        return optlab.minimize(self.loss, tx, self.init(for_init), steps=steps, key=for_batches, record=record)


def stepping(learner: Learner, tx: Any) -> Callable[[Any, Any, jax.Array], tuple[Any, Any]]:
    """A compiled training step: parameters, state and key -> parameters and state."""

    @jax.jit
    def step(params: Any, state: Any, key: jax.Array) -> tuple[Any, Any]:
        updates, state = tx.update(jax.grad(learner.loss)(params, key), state, params)
        return optax.apply_updates(params, updates), state

    return step


def step_seconds(
    learner: Learner, optimizers: Mapping[str, Any], rounds: int, steps: int = 20
) -> dict[str, np.ndarray[Any, Any]]:
    """Seconds of a training step, round by round: in each all optimizers have their turn. Name -> (rounds,)."""
    key = jax.random.key(0)
    params = learner.init(key)
    starts = {name: (params, tx.init(params)) for name, tx in optimizers.items()}
    programs = {name: stepping(learner, tx) for name, tx in optimizers.items()}
    for name, step in programs.items():
        jax.block_until_ready(step(*starts[name], key))  # compiled before it is timed
    taken: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(rounds):
        for name, step in programs.items():
            began, at = time.perf_counter(), starts[name]
            for _ in range(steps):
                at = step(*at, key)
            jax.block_until_ready(at)
            taken[name].append((time.perf_counter() - began) / steps)
    return {name: np.array(seconds) for name, seconds in taken.items()}
