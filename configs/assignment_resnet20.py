"""The assignment: ResNet-20 on CIFAR-10 by SGD with momentum, Adam and AdamW, at η = 0.001, 0.01 and 0.1.

Nine runs of 30 epochs in bfloat16, with warm-up and cosine, and the best of each optimizer trained afresh for the test
split. report.html has the validation accuracy over the steps, the sensitivity to η and the verdict. `studies=3` repeats
the grid with three seeds, without which no difference has an interval. Twelve runs of 10,547 steps (30 epochs of 45,000
images) need an accelerator, and have not been run here: there the images stay on the device, which picks, shifts and
mirrors them itself. On two busy CPU cores 60 steps take 90 s: `steps=60 studies=1` is a try of about 20 minutes.
Files: data.path=FOLDER with cifar-10-batches-bin in it, or a download.
"""

from optlab.compare import Comparison, choice
from optlab.config import Config, Target, component

RATES = choice(0.001, 0.01, 0.1)


def get_config() -> Comparison:
    return Comparison(
        baseline=Config(
            data=component("cifar10"),
            model=component("resnet20", dtype="bfloat16"),
            metrics=("accuracy",),
            optimizer=component("sgd", momentum=0.9),
            schedule=component("warmup_cosine"),
            steps=10_547,
            batch_size=128,
            target=Target(metric="validation/accuracy", mode="max", value=0.9),
        ),
        contenders={
            "adam": component("adam"),
            "adamw": component("adamw", weight_decay=0.1),
        },
        spaces={"sgd": {"learning_rate": RATES}, "adam": {"learning_rate": RATES}, "adamw": {"learning_rate": RATES}},
        design="grid",
        studies=1,
    )
