"""A small config that the tests change."""

from optlab.config import Config, component


def config(**changes):
    base = {
        "data": component("digits"),
        "model": component("mlp", widths=[32]),
        "metrics": ("accuracy",),
        "optimizer": component("muon", learning_rate=3e-3, weight_decay=0.1),
        "schedule": component("warmup_cosine", warmup=5),
        "steps": 20,
    }
    return Config(**{**base, **changes})
