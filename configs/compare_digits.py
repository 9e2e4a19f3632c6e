"""sgd, adam, lion and muon beside adamw on scikit-learn's 8×8 digits: each tuned anew in three studies of 8 trials.

A small MLP, 300 steps a run; the learning rate is searched, with a warm-up and a cosine for all. The 135 runs and the
report take 70 s on two CPU cores, compilation included.
"""

from optlab.compare import Comparison
from optlab.config import Config, Target, component


def get_config() -> Comparison:
    return Comparison(
        baseline=Config(
            data=component("digits"),
            model=component("mlp", widths=[64, 64]),
            metrics=("accuracy",),
            optimizer=component("adamw", weight_decay=0.1),
            schedule=component("warmup_cosine", warmup=20),
            steps=300,
            batch_size=128,
            target=Target(metric="validation/accuracy", mode="max", value=0.95),
        ),
        contenders={
            "sgd": component("sgd", momentum=0.9),
            "adam": component("adam"),
            "lion": component("lion", weight_decay=1.0),
            "muon": component("muon"),
        },
        trials=8,
        studies=3,
    )
