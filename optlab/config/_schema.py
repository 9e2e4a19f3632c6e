"""Schema of a config, as frozen dataclasses: the one list of its keys, their meanings and their bounds."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from optlab._messages import meant, nearest
from optlab.config._strategies import STRATEGIES, StrategyName
from optlab.config._values import ConfigError, accepts, describe


@dataclass(frozen=True)
class Component:
    """A factory's name and its keyword arguments. See `component`."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    # The arguments' text on the command line, which is parsed again where the factory shows their types.
    written: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)


def component(name: str, /, **arguments: Any) -> Component:
    """Makes a part of a run that is chosen by name, such as `component("adamw", learning_rate=1e-3)`.

    Args:
        name: a factory of optlab (`adamw`), of optax or optax.contrib (`optax.adamw`, `lbfgs`), or your own
            (`module:function`).
        **arguments: the factory's arguments, checked against its signature when the config is checked. A part of
            an optimizer can be a component too, as in `component("muon", rest=component("lion"))`.
    """
    return Component(name, arguments)


def _key(
    help: str,
    *,
    change: Literal["fixed", "noted", "changeable"],
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    **kwargs: Any,
) -> Any:
    """Makes a field with its meaning, its bounds, and what happens when a continued run changes it.

    Args:
        help: meaning, for `optlab show`.
        change: another value in a continued run is refused where "fixed", since it would be another run; is allowed and
            noted in the run's config.json where "noted"; and is allowed where "changeable".
        least: bound of a number, least <= value.
        above: bound of a number, above < value.
        below: bound of a number, value < below.
        **kwargs: arguments of `dataclasses.field`.
    """
    metadata = {"help": help, "change": change, "least": least, "above": above, "below": below}
    return field(metadata=metadata, **kwargs)


@dataclass(frozen=True, kw_only=True)
class Target:
    """Metric that the run is judged by, and its goal: for the best checkpoint, early stopping and the summary."""

    metric: str = _key(
        "name of a logged metric, such as validation/accuracy", change="fixed", default="validation/loss"
    )
    mode: Literal["min", "max"] = _key(
        "whether lower (min) or higher (max) values are better", change="fixed", default="min"
    )
    value: float | None = _key(
        "goal of the run; the summary names the step that reaches it", change="fixed", default=None
    )

    def gain(self, value: float, best: float | None) -> float:
        """Returns by how much a value is better than the best so far; one that isn't finite never is."""
        if not math.isfinite(value):
            return -math.inf
        if best is None:
            return math.inf
        return best - value if self.mode == "min" else value - best

    def reached(self, value: float) -> bool:
        """Returns whether a value is at least as good as the target's."""
        return self.value is not None and self.gain(value, self.value) >= 0


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Conditions that end a run before its last step."""

    patience: int | None = _key(
        "evaluations without a gain in target.metric before the run stops early; none: never",
        change="noted",
        least=1,
        default=None,
    )
    min_gain: float = _key("least change of target.metric that counts as a gain", change="noted", least=0, default=0.0)
    gradient_norm: float | None = _key(
        "stop before the update whose gradient norm is at most this; none: never", change="noted", least=0, default=None
    )


@dataclass(frozen=True, kw_only=True)
class Log:
    """Logs of a run, and their frequency."""

    every: int = _key("steps between two lines of metrics", change="changeable", least=1, default=10)
    tensorboard: bool = _key("write TensorBoard events beside metrics.jsonl", change="changeable", default=True)
    wandb: str | None = _key(
        "project of Weights & Biases that also gets the metrics; none: not sent",
        change="changeable",
        default=None,
    )


@dataclass(frozen=True, kw_only=True)
class MeshShape:
    """Arrangement of the devices."""

    data: int | None = _key("devices that share the batch; none: all", change="changeable", least=1, default=None)
    model: int = _key(
        "devices that share each of the matrices, where the strategy can", change="changeable", least=1, default=1
    )


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Frequency and number of checkpoints, each of the whole state."""

    every: int = _key(
        "steps between two checkpoints; the last step is always saved", change="changeable", least=1, default=500
    )
    keep: int = _key(
        "number of latest checkpoints to keep, beside the best one", change="changeable", least=1, default=2
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run. `configs/*.py` return one from `get_config()`.

    Raises:
        ConfigError: for a wrong type or an impossible value, as far as the values alone show.
    """

    data: Component = _key("where the examples come from", change="fixed")
    model: Component = _key("model to train", change="fixed")
    loss: Component = _key(
        "loss to minimize: a function of (outputs, batch)", change="fixed", default=Component("cross_entropy")
    )
    metrics: tuple[str, ...] = _key("other metrics: functions of (outputs, batch)", change="noted", default=())
    measure: tuple[str, ...] = _key(
        "measurements of the state along training: sharpness, noise_scale, agreement, norms, or module:function",
        change="noted",
        default=(),
    )
    measure_every: int = _key("steps between two measurements of `measure`", change="noted", least=1, default=50)
    optimizer: Component = _key("the rule that moves the parameters", change="fixed")
    roles: Mapping[str, str] = _key(
        "roles of parameters where the model's program shows another, by path or pattern: roles.PATTERN=matrix",
        change="fixed",
        default_factory=dict,
    )
    freeze: tuple[str, ...] = _key(
        "paths or patterns of the parameters that stay as they are", change="fixed", default=()
    )
    schedule: Component = _key(
        "the learning rate over the steps; its peak is optimizer.learning_rate",
        change="fixed",
        default=Component("constant"),
    )
    steps: int = _key("updates of the parameters; the schedule's length", change="fixed", least=1)
    batch_size: int = _key(
        "examples of an update, over all devices and microbatches", change="fixed", least=1, default=128
    )
    draw: Literal["shuffled", "replacement", "ordered", "stream"] = _key(
        "drawing of an update's examples: shuffled every epoch, at random with replacement, in the data's order, "
        "or as a stream that shows each once",
        change="fixed",
        default="shuffled",
    )
    accumulate: int = _key(
        "microbatches that an update's gradient is averaged over", change="fixed", least=1, default=1
    )
    clip_norm: float | None = _key(
        "largest global norm of the gradients, which are scaled down to it; none: not clipped",
        change="fixed",
        above=0,
        default=None,
    )
    clip_value: float | None = _key(
        "largest size of an entry of the gradients, which is cut to it before clip_norm; none: not cut",
        change="fixed",
        above=0,
        default=None,
    )
    ema: float | None = _key(
        "decay of the weights' moving average, which is then evaluated; none: no average",
        change="fixed",
        least=0,
        below=1,
        default=None,
    )
    average_from: int | None = _key(
        "evaluate the mean of the weights from this step on; none: no such mean",
        change="fixed",
        least=0,
        default=None,
    )
    guard: Literal["stop", "skip"] | None = _key(
        "at a loss, gradient or new parameters that aren't finite stop the run, or skip the step; none: continue",
        change="noted",
        default="stop",
    )
    skip_limit: int = _key(
        "the most steps that guard=skip may leave out in the whole run, and the most damaged examples",
        change="noted",
        least=1,
        default=10,
    )
    spike: float | None = _key(
        "the guard also acts on a loss more than so many standard deviations above its running mean; none: it doesn't",
        change="noted",
        above=0,
        default=None,
    )
    strategy: StrategyName = _key(
        "how a step runs on the devices; `optlab devices` describes each strategy",
        change="changeable",
        default="single",
    )
    mesh: MeshShape = MeshShape()
    seed: int = _key(
        "seed of the initialization, the order of the data and dropout", change="fixed", least=0, below=2**32, default=0
    )
    deterministic: bool = _key(
        "the same command gives the same bits on GPUs too, more slowly; on a CPU it does anyway",
        change="noted",
        default=False,
    )
    init_from: str | None = _key(
        "folder of another run, whose parameters initialize this one", change="fixed", default=None
    )
    evaluate_every: int | None = _key(
        "steps between two evaluations on the validation split; none: ten in a run",
        change="noted",
        least=1,
        default=None,
    )
    evaluate_batches: int | None = _key(
        "batches of the validation split in each evaluation, by which the best step and the target are judged; the "
        "last record has the whole split; none: all",
        change="fixed",
        least=1,
        default=None,
    )
    target: Target = Target()
    stop: Stop = Stop()
    log: Log = Log()
    checkpoint: Checkpoint = Checkpoint()

    def __post_init__(self) -> None:
        check(self)
        if self.batch_size % self.accumulate:
            raise ConfigError(f"accumulate must divide batch_size ({self.batch_size}), got {self.accumulate}")
        if self.ema is not None and self.average_from is not None:
            raise ConfigError(f"ema={self.ema} and average_from={self.average_from} are two averages: say one of them")
        if self.average_from is not None and self.average_from >= self.steps:
            raise ConfigError(f"average_from must be below steps ({self.steps}), got {self.average_from}")
        axes = STRATEGIES[self.strategy].axes
        if not axes and self.mesh != MeshShape():
            raise ConfigError(f"mesh.data={self.mesh.data} and mesh.model={self.mesh.model} need strategy=jit, or so")
        if self.mesh.model > 1 and "model" not in axes:
            others = ", ".join(s.name for s in STRATEGIES.values() if "model" in s.axes)
            raise ConfigError(f"mesh.model={self.mesh.model} needs strategy={others}; got {self.strategy}")
        if self.spike is not None and self.guard is None:
            raise ConfigError(f"spike={self.spike} has no effect without a guard: say guard=stop or guard=skip")
        if self.stop.min_gain and self.stop.patience is None:
            raise ConfigError(f"stop.min_gain={self.stop.min_gain} has no effect without stop.patience")
        measured = [f"{split}/{name}" for split in ("train", "validation") for name in ("loss", *self.metrics)]
        if self.target.metric not in measured:
            bare = meant(
                self.target.metric, ["loss", *self.metrics]
            )  # without a split it is mostly of the held-out one
            way = f"did you mean 'validation/{bare[0]}'?" if bare else nearest(self.target.metric, measured)
            raise ConfigError(f"target.metric={self.target.metric} isn't measured; {way}")


def check(section: Any, prefix: str = "") -> None:
    """Checks a dataclass of this module: the types of its values, and their bounds.

    Raises:
        ConfigError: it names the key, the value and the constraint.
    """
    hints = typing.get_type_hints(type(section))
    for f in dataclasses.fields(section):
        key, value, hint = prefix + f.name, getattr(section, f.name), hints[f.name]
        if not accepts(value, hint):
            raise ConfigError(f"{key} must be {describe(hint)}, got {value!r}")
        if dataclasses.is_dataclass(hint) and hint is not Component:
            check(value, f"{key}.")
        if isinstance(value, int | float):
            _check_bounds(key, value, f.metadata)


def _check_bounds(key: str, value: float, bounds: Mapping[str, Any]) -> None:
    least, above, below = bounds["least"], bounds["above"], bounds["below"]
    if least is not None and below is not None and not least <= value < below:
        raise ConfigError(f"{key} must lie in [{least}, {below}), got {value}")
    if least is not None and not value >= least:
        raise ConfigError(f"{key} must be at least {least}, got {value}")
    if above is not None and not value > above:
        raise ConfigError(f"{key} must be above {above}, got {value}; to do without it, say {key}=none")


def keys(section: type, prefix: str = "") -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """Returns (type, metadata of `_key`) of every dotted key, without the arguments of components."""
    found: dict[str, tuple[Any, Mapping[str, Any]]] = {}
    hints = typing.get_type_hints(section)
    for f in dataclasses.fields(section):
        hint = hints[f.name]
        is_group = dataclasses.is_dataclass(hint) and hint is not Component
        found |= keys(hint, f"{prefix}{f.name}.") if is_group else {prefix + f.name: (hint, f.metadata)}
    return found


def covers(names: Iterable[str], key: str) -> bool:
    """Returns whether a name is the key or a prefix of it that ends at a dot: "optimizer" covers "optimizer.b1"."""
    return any(f"{key}.".startswith(f"{name}.") for name in names)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns every dotted key of a config with its value; a component's own key holds its name."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value, key = getattr(config, f.name), prefix + f.name
        if isinstance(value, Component):
            flat |= _flat_component(key, value)
        elif dataclasses.is_dataclass(value):
            flat.update(flatten(value, f"{key}."))
        else:
            flat[key] = value
    return flat


def _flat_component(key: str, part: Component) -> dict[str, Any]:
    flat: dict[str, Any] = {key: part.name}
    for name, value in part.arguments.items():
        flat |= _flat_component(f"{key}.{name}", value) if isinstance(value, Component) else {f"{key}.{name}": value}
    return flat


def from_tree(kind: Any, tree: Mapping[str, Any], prefix: str = "") -> Any:
    """Makes a dataclass of this module from nested dicts, the inverse of `dataclasses.asdict`.

    Raises:
        ConfigError: for an unknown or missing key, and as `check`.
    """
    hints = typing.get_type_hints(kind)
    arguments = {}
    for name, value in tree.items():
        if name not in hints:
            raise ConfigError(f"unknown key {prefix + name!r}; {nearest_key(prefix, [name], hints)}")
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(value, dict):
            value = from_tree(hint, value, f"{prefix}{name}.")
        elif kind is Component and name == "arguments":
            value = {n: from_tree(Component, v, f"{prefix}{n}.") if is_component(v) else v for n, v in value.items()}
        arguments[name] = tuple(value) if typing.get_origin(hint) is tuple and isinstance(value, list) else value
    missing = [
        f.name
        for f in dataclasses.fields(kind)
        if f.default is f.default_factory is dataclasses.MISSING and f.name not in arguments
    ]
    if missing:
        raise ConfigError(f"{prefix}{missing[0]} is missing")
    return kind(**arguments)


def is_component(value: Any) -> bool:
    """Returns whether a value is a component among another's arguments, as `dataclasses.asdict` writes it."""
    return isinstance(value, dict) and value.keys() | {"written"} == {"name", "arguments", "written"}


def nearest_key(prefix: str, path: list[str], names: Iterable[str]) -> str:
    """Ends an error message with the key behind a prefix that was probably meant, or with all of them."""
    names = list(names)
    if close := meant(path[0], names):
        return f"did you mean {' or '.join(repr(prefix + '.'.join([name, *path[1:]])) for name in close)}?"
    return f"there are {', '.join(prefix + name for name in names)}"
