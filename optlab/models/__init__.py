"""Models in Flax Linen, and the factories that a config names.

Every model is called as `model.apply(variables, inputs, train=…)` and gives logits in float32. Its collections are
`params` and, with BatchNorm, `batch_stats`; dropout reads the key `dropout`. Parameters are named by their role
(`head`, `embedding`, `position`, `norm…`, `query`, …), so that `optlab.roles` can infer it from names alone.
"""

# ruff: noqa: E402
from optlab._extras import need

need("optlab.models", "flax")

from optlab.models.attention import MultiHeadAttention, attention_weights
from optlab.models.mlp import MLP, mlp
from optlab.models.resnet import (
    ResNet,
    resnet18,
    resnet20,
    resnet32,
    resnet34,
    resnet44,
    resnet50,
    resnet56,
    resnet101,
    resnet110,
    resnet152,
)
from optlab.models.transformer import (
    LanguageModel,
    Transformer,
    VisionTransformer,
    gpt2_small,
    transformer,
    vision_transformer,
)

__all__ = [
    "MLP",
    "LanguageModel",
    "MultiHeadAttention",
    "ResNet",
    "Transformer",
    "VisionTransformer",
    "attention_weights",
    "gpt2_small",
    "mlp",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet101",
    "resnet110",
    "resnet152",
    "transformer",
    "vision_transformer",
]
