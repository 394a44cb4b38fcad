"""The networks of the benchmarks of cost and scale, as factories that `fsdtool summarize --model` takes."""

from __future__ import annotations

from torch import nn


def digits_mlp() -> nn.Module:
    """784-256-128-10."""
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))


def photo_convnet() -> nn.Module:
    """Six 3 x 3 convolutions with batch norm, 32-32-64-64-128-128, pooled twice, averaged."""
    layers: list[nn.Module] = []
    before = 3
    for block, after in enumerate((32, 32, 64, 64, 128, 128)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if block in (1, 3) else []
        before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))
