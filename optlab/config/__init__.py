"""What a run is: frozen dataclasses, named components, and the overrides of the command line.

Only the standard library is imported here, so that a misspelt key is refused before JAX starts; names become objects
when a config is resolved (`resolve`) and built (`build`).
"""

from optlab.config._components import Experiment, build, explain, resolve
from optlab.config._files import load, slug, to_json
from optlab.config._overrides import override
from optlab.config._schema import Checkpoint, Component, Config, Log, Stop, Target, check, component, flatten
from optlab.config._values import ConfigError

__all__ = [
    "Checkpoint",
    "Component",
    "Config",
    "ConfigError",
    "Experiment",
    "Log",
    "Stop",
    "Target",
    "build",
    "check",
    "component",
    "explain",
    "flatten",
    "load",
    "override",
    "resolve",
    "slug",
    "to_json",
]
