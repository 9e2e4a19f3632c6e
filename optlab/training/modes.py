"""Training or evaluation: by which argument, field or attribute a model chooses, so that none is passed over."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flax import linen as nn
from flax import nnx

# Names without underscores, and whether they are true in training. Flax's own layers have deterministic and
# use_running_average, T5X enable_dropout; the others are those that models in public repositories use.
_IN_TRAINING = {
    **dict.fromkeys(("train", "training", "istrain", "istraining", "trainmode", "trainingmode", "intraining"), True),
    **dict.fromkeys(("deterministic", "isdeterministic", "userunningaverage", "userunningstats"), False),
    **dict.fromkeys(("eval", "evaluate", "evaluation", "iseval", "evaluating", "evalmode", "isevaluation"), False),
    **dict.fromkeys(("inference", "isinference", "inferencemode", "testing", "istest", "istesting", "testmode"), False),
}
# As an argument of the call these choose, too; as a field they are an option of the model.
_OF_CALL = {
    **dict.fromkeys(("dropout", "enabledropout", "usedropout", "applydropout", "withdropout"), True),
    **dict.fromkeys(("updatestats", "updatebatchstats", "updaterunningaverage", "updaterunningstats"), True),
    **dict.fromkeys(("test", "infer", "predict", "disabledropout"), False),
}
_WORDS = ("train", "training", "eval", "evaluation", "evaluate", "test", "testing", "inference", "infer", "predict")

Modes = Mapping[str, bool]  # name -> whether it is true in training


def of_call(call: Callable[..., Any]) -> Modes:
    """The arguments of a model's call that choose.

    Raises:
        TypeError: for one that can't be set to True or False.
    """
    found = {}
    for name, argument in inspect.signature(call).parameters.items():
        default = None if argument.default is inspect.Parameter.empty else argument.default
        if isinstance(default, str) and default.lower() in _WORDS:
            raise TypeError(f"the model's argument {name}={default!r} chooses a mode by a word: {_ADVICE}")
        is_true = (_IN_TRAINING | _OF_CALL).get(_plain(name))
        if is_true is None or argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            continue
        if _plain(name) == "dropout" and not isinstance(default, bool):  # its rate
            continue
        if default is not None and not isinstance(default, bool):
            raise TypeError(f"the model's argument {name}={default!r} must be True or False: {_ADVICE}")
        if argument.kind is argument.POSITIONAL_ONLY:
            raise TypeError(f"the model's argument {name} can be given by its place alone: {_ADVICE}")
        found[name] = is_true
    return found


def of_fields(model: Any) -> Modes:
    """A model's own fields that choose and are True or False."""
    flags = [name for name, x in vars(model).items() if isinstance(x, bool)]
    return {name: _IN_TRAINING[_plain(name)] for name in flags if _plain(name) in _IN_TRAINING}


def placed(call: Callable[..., Any], settings: Mapping[str, bool]) -> tuple[list[bool], dict[str, Any]]:
    """A call's settings as (by place, by name): those right behind the inputs by place.

    `nn.remat(Net, static_argnums=…)` counts places: an argument by name would be traced.
    """
    names = list(inspect.signature(call).parameters)[2:]  # behind self and the inputs
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD

    def is_placed(name: Any) -> bool:
        return name in settings and inspect.signature(call).parameters[name].kind is kind

    first = list(itertools.takewhile(is_placed, names))
    return [settings[name] for name in first], {name: x for name, x in settings.items() if name not in first}


def at(modes: Modes, train: bool) -> dict[str, bool]:
    """Their values in training, or not."""
    return {name: is_true if train else not is_true for name, is_true in modes.items()}


@contextlib.contextmanager
def watched(train: bool, is_chosen: bool) -> Iterator[None]:
    """Refuses layers of a Linen model that act as in the other mode, where the model has none to choose.

    Raises:
        TypeError: it names the module.
    """
    if is_chosen:
        yield
        return

    def look(call: Callable[..., Any], arguments: Any, keywords: Any, context: Any) -> Any:
        if context.method_name == "__call__":
            where = "/".join(context.module.path) or type(context.module).__name__
            _refuse(context.module, where, train, arguments, keywords)
        return call(*arguments, **keywords)

    with nn.intercept_methods(look):
        yield


@contextlib.contextmanager
def watched_nnx(model: nnx.Module, train: bool, is_chosen: bool) -> Iterator[None]:
    """The same for the layers inside an NNX model, by the arguments of their calls: attributes are set.

    NNX has no way to look at calls, so that the layers' classes are changed for as long as they are traced, in this
    thread alone; other threads wait, or pass through.

    Raises:
        TypeError: it names the layer's class.
    """
    layers = [] if is_chosen else [module for _, module in nnx.iter_modules(model) if module is not model]
    kinds: list[Any] = list(dict.fromkeys(filter(None, map(_giver_of_call, map(type, layers)))))
    with _CHANGING, contextlib.ExitStack() as stack:
        for kind in kinds:
            stack.callback(setattr, kind, "__call__", vars(kind)["__call__"])
            kind.__call__ = _looking(vars(kind)["__call__"], train, threading.get_ident())
        yield


_CHANGING = threading.RLock()


def _giver_of_call(kind: type) -> type | None:
    """The class that a module's call comes from, if an argument of it chooses a mode."""
    owner = next((base for base in kind.__mro__ if "__call__" in vars(base)), None)
    try:
        return owner if owner is not None and of_call(vars(owner)["__call__"]) else None
    except (TypeError, ValueError):  # not of the kind that can be set, or nothing that has a signature
        return None


def _looking(call: Any, train: bool, thread: int) -> Callable[..., Any]:
    @functools.wraps(call)
    def looking(module: Any, *arguments: Any, **keywords: Any) -> Any:
        if threading.get_ident() == thread:
            _refuse(module, type(module).__name__, train, arguments, keywords, call)
        return call.__get__(module, type(module))(*arguments, **keywords)

    return looking


_ADVICE = "say def __call__(self, x, *, train), and pass it on to what needs it"


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _refuse(module: Any, where: str, train: bool, arguments: Any, keywords: Any, call: Any = None) -> None:
    """Refuses a layer that acts as in the other mode, if that makes a difference.

    In evaluation that is what draws noise; running statistics can't be updated there.
    """
    if 0 in (getattr(module, "rate", None), getattr(module, "dropout_rate", None)):
        return
    call = call or type(module).__call__
    try:
        modes = of_call(call)
        bound = inspect.signature(call).bind(module, *arguments, **keywords)
    except TypeError:
        return
    bound.apply_defaults()
    given = {name: bound.arguments[name] for name in modes}
    for name, is_true in {**of_fields(module), **modes}.items():
        value = given.get(name, getattr(module, name, None))
        value = getattr(module, name, None) if value is None else value
        is_other = isinstance(value, bool) and value is not (is_true if train else not is_true)
        if is_other and (train or name == "deterministic"):
            raise TypeError(
                f"in {'training' if train else 'evaluation'} {where} has {name}={value}, and the model's own call has "
                f"no argument that would choose the mode: {_ADVICE}"
            )


def set_all(model: nnx.Module, train: bool) -> None:
    """Sets an NNX module and all inside it to a mode: what Flax's `train()` and `eval()` set, and its other names."""
    (nnx.Module.train if train else nnx.Module.eval)(model)
    for _, module in nnx.iter_modules(model):
        for name, value in at(of_fields(module), train).items():
            setattr(module, name, value)
