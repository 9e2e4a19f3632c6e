"""CIFAR-10, ResNet-20 by SGD with momentum.

Reaches … % validation accuracy after 500 steps, in … minutes on two CPU cores; He et al. 2015 (arXiv 1512.03385,
section 4.2) train 64,000 steps of 128 to 91.25 %. Files: data.path=FOLDER with cifar-10-batches-bin, or a download.
"""

from optlab.config import Config, Target, component


def get_config() -> Config:
    return Config(
        data=component("cifar10"),
        model=component("resnet20"),
        metrics=("accuracy",),
        optimizer=component("sgd", learning_rate=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=component("warmup_cosine", warmup=50),
        steps=64_000,
        batch_size=128,
        evaluate_every=1000,
        target=Target(metric="validation/accuracy", mode="max", value=0.91),
    )
