"""CIFAR-10, ResNet-20 by SGD with momentum.

With steps=500 it reaches 59.5 % validation accuracy in 17 minutes on two busy CPU cores. The 64,000 steps of He et al.
2015 (arXiv 1512.03385, section 4.2: 91.25 % on the test set) have not been run here, and need an accelerator.
Files: data.path=FOLDER with cifar-10-batches-bin in it, or a download.
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
        target=Target(metric="validation/accuracy", mode="max", value=0.91),
    )
