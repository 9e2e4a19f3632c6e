"""Fair comparisons of optimizers: each tuned anew several times under one budget, and a verdict with its uncertainty.

>>> verdict = optlab.compare({"adamw": optlab.adamw, "mine": mine}, Workload.digits(), steps=300, folder="studies/mine")
>>> print(verdict)

The package can be called, as `optlab.compare(…)`: see `optlab.compare.compare`.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

from optlab._extras import need
from optlab.compare._errors import StudyError
from optlab.compare.points import choice, log_uniform, uniform
from optlab.compare.settings import Comparison

if TYPE_CHECKING:
    from optlab.compare._face import compare as compare
    from optlab.compare._face import conclude as conclude
    from optlab.compare.driver import run_study as run_study
    from optlab.compare.plan import Plan as Plan
    from optlab.compare.plan import make_plan as make_plan
    from optlab.compare.study import Study as Study
    from optlab.compare.study import make_study as make_study
    from optlab.compare.trials import Result as Result
    from optlab.compare.trials import Trial as Trial
    from optlab.compare.verdict import Verdict as Verdict
    from optlab.compare.verdict import judge as judge

# What needs more than the standard library is imported when it is first used: spaces stand in configs.
_NAMES = {
    "_face": ("compare", "conclude"),
    "plan": ("Plan", "make_plan"),
    "driver": ("run_study",),
    "study": ("Study", "make_study"),
    "trials": ("Result", "Trial"),
    "verdict": ("Verdict", "judge"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = ["Comparison", "StudyError", "choice", "log_uniform", "uniform", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'optlab.compare' has no attribute {name!r}")
    need(f"optlab.compare.{name}", "scipy", extra="compare")
    value = getattr(importlib.import_module(f"optlab.compare.{_HOME[name]}"), name)
    globals()[name] = value  # so that it is looked up once
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Callable(types.ModuleType):
    """The package's class: `optlab.compare` is a package and the function of its name."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.compare(*arguments, **keywords)


sys.modules[__name__].__class__ = _Callable
