"""The localisation networks of Table 1 (paper, appendix A.4): images (B, C, H, W) to features (B, features)."""

from importlib.util import find_spec
from itertools import pairwise

import torch
from torch import Tensor, nn

TRITON = find_spec("triton") is not None  # comes with torch on platforms that Triton supports


def convolutional(canvas: int, filters: int, features: int, channels: int = 1) -> nn.Sequential:
    """The network of the ST-CNNs: downsampling by 2, two 5x5 convolutions, a fully connected layer.

    Args:
        canvas: side of the square input in pixels.
        filters: of each convolution (paper: 20).
        features: units of the last layer (paper: 20).
    """
    body = Layers(
        # Paper: "downsampled by 2", no word how. We: average pooling, because it aliases least.
        nn.AvgPool2d(2),
        FirstConvolution(filters, 5, channels),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
        # Paper: a second convolution; whether it is pooled is open. We: no, 28 pixels leave a single position here.
        nn.Conv2d(filters, filters, 5),
        nn.ReLU(inplace=True),
        nn.Flatten(),
    )
    return Layers(*body, nn.Linear(_flat(body, channels, canvas), features), nn.ReLU(inplace=True))


def fully_connected(canvas: int, hidden: int, layers: int, channels: int = 1) -> nn.Sequential:
    """The network of the ST-FCNs: fully connected layers of `hidden` units (paper: 32).

    Paper: "three fully connected layers"; whether the regression layer is one of them is open. We: three before it.
    """
    widths = [channels * canvas**2] + [hidden] * layers
    body = [
        part for fan_in, fan_out in pairwise(widths) for part in (nn.Linear(fan_in, fan_out), nn.ReLU(inplace=True))
    ]
    return nn.Sequential(nn.Flatten(), *body)


class Layers(nn.Sequential):
    """`nn.Sequential`. On a GPU its convolutions run as the kernels of `stn.nn.convolutions`, with the same result."""

    def forward(self, images: Tensor) -> Tensor:
        # Not for a fake tensor, which has no values: asked in its mode, `usable` would answer no, and keep that answer.
        plain = type(images) is Tensor and not torch.compiler.is_exporting()
        if TRITON and plain and images.is_cuda and images.dtype == torch.float32:
            from stn.nn import convolutions

            if convolutions.usable(images.device):
                return convolutions.run(self, images)
        return super().forward(images)  # type: ignore[no-any-return, no-untyped-call]


class FirstConvolution(nn.Conv2d):
    """`nn.Conv2d(channels, filters, kernel)` of images, computed with each row's windows as channels.

    The sums are the same. Convolutions on a CPU are blocked over channels; with a single channel there is nothing to
    block over, and later layers read the layout of the result slowly. The CNN of Table 1 trains 1.3 to 2.2 times as
    fast this way.
    """

    def __init__(self, filters: int, kernel: int, channels: int = 1):
        super().__init__(channels, filters, kernel)

    def forward(self, images: Tensor) -> Tensor:
        if images.device.type != "cpu" or torch.compiler.is_exporting():
            return super().forward(images)
        windows = images.unfold(3, self.kernel_size[1], 1).permute(0, 4, 1, 2, 3).flatten(1, 2)
        windows = windows.contiguous(memory_format=torch.channels_last)
        weight = self.weight.permute(0, 3, 1, 2).flatten(1, 2)[..., None]
        weight = weight.contiguous()  # without oneDNN, as in float64, gradients need it so
        return nn.functional.conv2d(windows, weight, self.bias)


def _flat(body: nn.Module, channels: int, canvas: int) -> int:
    """Length of what `body` makes of one image; found by running it, so it can never disagree with the layers."""
    with torch.no_grad():
        return body(torch.zeros(1, channels, canvas, canvas)).shape[1]  # type: ignore[no-any-return]
