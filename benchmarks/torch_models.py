"""The models of `networks.py` that are a few lines in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

Shape = tuple[int, ...]


class Perceptron(nn.Sequential):
    """Connected layers, each with batch normalization and a rectifier."""

    def __init__(self, width: int, layers: int = 3) -> None:
        hidden = [
            layer
            for _ in range(layers)
            for layer in (nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU())
        ]
        super().__init__(*hidden, nn.Linear(width, 10))


class Transformer(nn.Module):
    """Layers of causal attention and two connected layers, normalized before each."""

    def __init__(self, width: int, layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                width // 64,
                4 * width,
                dropout=0.0,
                activation=partial(F.gelu, approximate="tanh"),
                batch_first=True,
                norm_first=True,
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        for layer in self.layers:
            x = layer(x, src_mask=causal, is_causal=True)
        return self.norm(x)


class ConvNeXtBlocks(nn.Module):
    """Blocks of one stage of a ConvNeXt, of images that are channels last in memory."""

    def __init__(self, width: int, blocks: int = 3) -> None:
        super().__init__()
        self.by_channel = nn.ModuleList(
            nn.Conv2d(width, width, 7, padding=3, groups=width) for _ in range(blocks)
        )
        self.connected = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 4 * width),
                nn.GELU("tanh"),
                nn.Linear(4 * width, width),
            )
            for _ in range(blocks)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for by_channel, connected in zip(self.by_channel, self.connected, strict=True):
            x = x + connected(by_channel(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return x


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "transformer, LayerNorm": Transformer,
    "ConvNeXt blocks, LayerNorm": ConvNeXtBlocks,
    "perceptron, BatchNorm": Perceptron,
}


def call(name: str, shape: Shape, dtype: str, train: bool) -> Callable[[], Any]:
    """Return the training step or the inference of a model; bfloat16 by PyTorch's autocast."""
    model = MODELS[name](shape[-1]).train(train)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(shape, np.float32))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    narrow = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        with narrow:
            y = model(x)
        loss = y.float().square().mean()
        loss.backward()
        optimizer.step()
        return loss

    def inference() -> torch.Tensor:
        with torch.no_grad(), narrow:
            return model(x)

    return step if train else inference
