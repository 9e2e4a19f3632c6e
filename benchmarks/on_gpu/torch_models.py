"""The models of sections 3 and 4 as one would write them in torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from on_gpu.floors import GPT


class Block(nn.Module):
    """Pre-norm: attention, then a feed-forward layer of four times the width; one product gives q, k and v."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, D = x.shape
        q, k, v = self.qkv(self.norm_attention(x)).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(B, T, D))
        return x + self.down(functional.gelu(self.up(self.norm_feed_forward(x)), approximate="tanh"))


class LanguageModel(nn.Module):
    """GPT-2 with its loss, so that both are compiled together; the embedding is the head."""

    def __init__(self, gpt: GPT):
        super().__init__()
        self.embedding, self.position = nn.Embedding(gpt.vocabulary, gpt.width), nn.Embedding(gpt.length, gpt.width)
        self.blocks = nn.ModuleList(Block(gpt.width, gpt.heads) for _ in range(gpt.layers))
        self.norm = nn.LayerNorm(gpt.width)
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = functional.linear(self.norm(x), self.embedding.weight)
        return functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())


def language_model(gpt: GPT) -> Any:
    """In training mode, its parameters in float32."""
    return LanguageModel(gpt).train()


class Residual(nn.Module):
    """Two 3×3 convolutions with BatchNorm, and a 1×1 convolution on the shortcut where the shape changes."""

    def __init__(self, inputs: int, channels: int, stride: int):
        super().__init__()
        conv = lambda i, o, side, step: nn.Conv2d(i, o, side, step, side // 2, bias=False)
        self.body = nn.Sequential(
            conv(inputs, channels, 3, stride),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            conv(channels, channels, 3, 1),
            nn.BatchNorm2d(channels),
        )
        same = stride == 1 and inputs == channels
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(conv(inputs, channels, 1, stride), nn.BatchNorm2d(channels))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.body(x) + self.shortcut(x))


def resnet(stages: tuple[int, ...]) -> Any:
    """With so many blocks in each stage, for 32×32 images and ten classes, channels last."""
    plan, inputs = [], 16
    for stage, blocks in enumerate(stages):
        for block in range(blocks):
            plan.append((inputs, 16 * 2**stage, 2 if stage > 0 and block == 0 else 1))
            inputs = 16 * 2**stage
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *[Residual(*block) for block in plan],
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    return model.to(memory_format=torch.channels_last).train()
