"""optlab: research on optimizers in JAX. Blocks, optimizers, schedules and roles are here; the rest in its submodules.

Everything is imported when it is first used, so that `optlab --help` doesn't wait for JAX, and `import optlab` needs
no more than jax and optax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optlab import config as config
    from optlab import data as data
    from optlab import models as models
    from optlab import optimizers as optimizers
    from optlab import roles as roles
    from optlab import runs as runs
    from optlab import schedules as schedules
    from optlab import testing as testing
    from optlab import theory as theory
    from optlab import training as training
    from optlab import transforms as transforms
    from optlab._probe_state import read_probes as read_probes
    from optlab.explanation import explain as explain
    from optlab.minimization import minimize as minimize
    from optlab.optimizers import adagrad as adagrad
    from optlab.optimizers import adam as adam
    from optlab.optimizers import adam_l2 as adam_l2
    from optlab.optimizers import adamuon as adamuon
    from optlab.optimizers import adamw as adamw
    from optlab.optimizers import lion as lion
    from optlab.optimizers import muon as muon
    from optlab.optimizers import muonh as muonh
    from optlab.optimizers import nadam as nadam
    from optlab.optimizers import normuon as normuon
    from optlab.optimizers import rmsprop as rmsprop
    from optlab.optimizers import sgd as sgd
    from optlab.optimizers import shampoo as shampoo
    from optlab.optimizers import signsgd as signsgd
    from optlab.optimizers import signum as signum
    from optlab.optimizers import soap as soap
    from optlab.optimizers import softsign_sgd as softsign_sgd
    from optlab.roles import by_role as by_role
    from optlab.transforms import cautious as cautious
    from optlab.transforms import decay_after_step as decay_after_step
    from optlab.transforms import decay_weights as decay_weights
    from optlab.transforms import keep_weight_norm as keep_weight_norm
    from optlab.transforms import momentum as momentum
    from optlab.transforms import normalize as normalize
    from optlab.transforms import orthogonalize as orthogonalize
    from optlab.transforms import probe as probe
    from optlab.transforms import scale_by_adagrad as scale_by_adagrad
    from optlab.transforms import scale_by_adam as scale_by_adam
    from optlab.transforms import scale_by_matrix_shape as scale_by_matrix_shape
    from optlab.transforms import scale_by_neuron_rms as scale_by_neuron_rms
    from optlab.transforms import scale_by_rms as scale_by_rms
    from optlab.transforms import scale_by_shampoo as scale_by_shampoo
    from optlab.transforms import scale_by_sign as scale_by_sign
    from optlab.transforms import scale_by_soap as scale_by_soap
    from optlab.transforms import scale_by_softsign as scale_by_softsign
    from optlab.transforms import scale_to_rms as scale_to_rms
    from optlab.transforms import scale_to_weight_norm as scale_to_weight_norm

__version__ = "0.1.0"

_SUBMODULES = (
    "config",
    "data",
    "models",
    "optimizers",
    "roles",
    "runs",
    "schedules",
    "testing",
    "theory",
    "training",
    "transforms",
)
_NAMES = {
    "_probe_state": "read_probes",
    "explanation": "explain",
    "minimization": "minimize",
    "optimizers": "adagrad adam adam_l2 adamuon adamw lion muon muonh nadam normuon rmsprop sgd shampoo signsgd "
    "signum soap softsign_sgd",
    "roles": "by_role",
    "transforms": "cautious decay_after_step decay_weights keep_weight_norm momentum normalize orthogonalize probe "
    "scale_by_adagrad scale_by_adam scale_by_matrix_shape scale_by_neuron_rms scale_by_rms scale_by_shampoo "
    "scale_by_sign scale_by_soap "
    "scale_by_softsign scale_to_rms scale_to_weight_norm",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = ["__version__", *_SUBMODULES, *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"optlab.{_HOME[name]}"), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f"optlab.{name}")
    else:
        raise AttributeError(f"module 'optlab' has no attribute {name!r}")
    globals()[name] = value  # so that it is looked up once
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
