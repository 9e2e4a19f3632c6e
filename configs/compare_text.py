"""muon beside adamw on text: a byte-level Transformer, each tuned anew in five studies of 4 trials.

50 runs of 200 steps, 140 s of processor time: benchmarks/results/compare_text.md. Give
data.path=tinyshakespeare.txt; without a path it reads the Python standard library's own sources.
"""

from optlab.compare import Comparison
from optlab.config import Config, Target, component


def get_config() -> Comparison:
    return Comparison(
        baseline=Config(
            data=component("text", length=32, validation=0.02, test=0.05),
            model=component("transformer", width=32, depth=2, heads=2),
            optimizer=component("adamw", weight_decay=0.1),
            schedule=component("warmup_cosine", warmup=20),
            steps=200,
            batch_size=16,
            clip_norm=1.0,
            evaluate_every=50,
            target=Target(metric="validation/loss", mode="min", value=2.8),
        ),
        contenders={"muon": component("muon", weight_decay=0.1)},
        trials=4,
        studies=5,
    )
