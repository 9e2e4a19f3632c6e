"""optlab: research on optimizers in JAX. Blocks, optimizers, schedules and roles are here; the rest in its submodules.

Everything is imported when it is first used, so that `optlab --help` doesn't wait for JAX, and `import optlab` needs
no more than jax and optax. A public name is typed once: blocks and optimizers are those of the `__all__` of
`optlab.transforms` and `optlab.optimizers`.
"""

import functools
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optlab import commands as commands
    from optlab import config as config
    from optlab import data as data
    from optlab import diagnosis as diagnosis
    from optlab import experiment as experiment
    from optlab import models as models
    from optlab import optimizers as optimizers
    from optlab import roles as roles
    from optlab import runs as runs
    from optlab import schedules as schedules
    from optlab import testing as testing
    from optlab import theory as theory
    from optlab import training as training
    from optlab import transforms as transforms
    from optlab import tuning as tuning
    from optlab._explanation import explain as explain
    from optlab._minimization import minimize as minimize
    from optlab._probe_state import read_probes as read_probes
    from optlab.compare import compare as compare
    from optlab.examination import diagnose as diagnose
    from optlab.experiment import load_run as load_run
    from optlab.optimizers import *  # noqa: F403
    from optlab.roles import by_role as by_role
    from optlab.roles import freeze as freeze
    from optlab.transforms import *  # noqa: F403
    from optlab.tuning import batch_range as batch_range
    from optlab.tuning import lr_range as lr_range

__version__ = "0.2.0"

_SUBMODULES = (
    "commands",
    "compare",  # a package that can be called
    "config",
    "data",
    "diagnosis",
    "experiment",
    "models",
    "optimizers",
    "roles",
    "runs",
    "schedules",
    "testing",
    "theory",
    "training",
    "transforms",
    "tuning",
)
_FACES = ("optimizers", "transforms")  # their public names are optlab's, too
_NAMES = {
    "batch_range": "tuning",
    "by_role": "roles",
    "diagnose": "examination",
    "explain": "_explanation",
    "freeze": "roles",
    "load_run": "experiment",
    "lr_range": "tuning",
    "minimize": "_minimization",
    "read_probes": "_probe_state",
}


@functools.cache
def _homes() -> dict[str, str]:
    """Maps each public name to its module. Lists are read from the sources, since an import of one imports JAX."""
    import ast
    import pkgutil

    found = dict(_NAMES)
    for face in _FACES:
        tree = ast.parse(pkgutil.get_data("optlab", f"{face}/__init__.py") or b"")
        (names,) = (
            node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        )
        found |= dict.fromkeys(ast.literal_eval(names), face)
    return found


def __getattr__(name: str) -> Any:
    if name == "__all__":
        value: Any = ["__version__", *_SUBMODULES, *_homes()]
    elif name in _SUBMODULES:
        value = importlib.import_module(f"optlab.{name}")
    elif not name.startswith("_") and name in _homes():
        value = getattr(importlib.import_module(f"optlab.{_homes()[name]}"), name)
    else:
        raise AttributeError(f"module 'optlab' has no attribute {name!r}")
    globals()[name] = value  # so that it is looked up once
    return value


def __dir__() -> list[str]:
    return sorted(__getattr__("__all__"))
