"""A grid: three optimizers × three learning rates × three seeds, ResNet-20 on CIFAR-10.

Every point of the grid is trained with a seed of its own in each of three studies, and the best one afresh for the test
split: curves, sensitivity and the verdict stand in report.html. All studies have the same grid, so they differ in their
seeds alone. 36 runs of 4,000 steps (11 epochs) need an accelerator, and have not been run here. On two
busy CPU cores 60 steps take 90 s: `steps=60 schedule.warmup=5 studies=1` is a try of about 20 minutes.
Files: data.path=FOLDER with cifar-10-batches-bin in it, or a download.
"""

from optlab.compare import Comparison, choice
from optlab.config import Config, Target, component


def get_config() -> Comparison:
    return Comparison(
        baseline=Config(
            data=component("cifar10"),
            model=component("resnet20"),
            metrics=("accuracy",),
            optimizer=component("sgd", momentum=0.9),
            schedule=component("warmup_cosine", warmup=50),
            steps=4_000,
            batch_size=128,
            target=Target(metric="validation/accuracy", mode="max", value=0.8),
        ),
        contenders={
            "adamw": component("adamw", weight_decay=0.1),
            "muon": component("muon", weight_decay=0.1),
        },
        spaces={
            "sgd": {"learning_rate": choice(0.03, 0.1, 0.3)},
            "adamw": {"learning_rate": choice(0.001, 0.003, 0.01)},
            "muon": {"learning_rate": choice(0.003, 0.01, 0.03)},
        },
        design="grid",
        studies=3,
    )
