"""The localisation networks of Table 1 (paper, appendix A.4): images (B, C, H, W) to features (B, features)."""

from itertools import pairwise

import torch
from torch import nn


def convolutional(canvas: int, filters: int, features: int, channels: int = 1) -> nn.Sequential:
    """Of the ST-CNNs: downsample by 2, two 5x5 convolutions, a fully connected layer.

    Args:
        canvas: side of the square input in pixels.
        filters: of each convolution (paper: 20).
        features: units of the last layer (paper: 20).
    """
    body = nn.Sequential(
        # Paper: "downsampled by 2", no word how. We: average pooling, because it aliases least.
        nn.AvgPool2d(2),
        nn.Conv2d(channels, filters, 5),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
        # Paper: a second convolution; whether it is pooled is open. We: no, 28 pixels leave a single position here.
        nn.Conv2d(filters, filters, 5),
        nn.ReLU(inplace=True),
        nn.Flatten(),
    )
    return nn.Sequential(*body, nn.Linear(_flat(body, channels, canvas), features), nn.ReLU(inplace=True))


def fully_connected(canvas: int, hidden: int, layers: int, channels: int = 1) -> nn.Sequential:
    """Of the ST-FCNs: fully connected layers of `hidden` units (paper: 32).

    Paper: "three fully connected layers"; whether the regression layer is one of them is open. We: three before it.
    """
    widths = [channels * canvas**2] + [hidden] * layers
    body = [
        part for fan_in, fan_out in pairwise(widths) for part in (nn.Linear(fan_in, fan_out), nn.ReLU(inplace=True))
    ]
    return nn.Sequential(nn.Flatten(), *body)


def _flat(body: nn.Module, channels: int, canvas: int) -> int:
    """Length of what `body` makes of one image; found by running it, so it can never disagree with the layers."""
    with torch.no_grad():
        return body(torch.zeros(1, channels, canvas, canvas)).shape[1]
