"""Improved residual network of ArcFace (arXiv:1801.07698, section 3.1).

Names and shapes of its state_dict match the widely used checkpoints, so that their weights load.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from partialfc.backbones.projection import Projection

_MIN_CHANNELS_ONEDNN = 16  # largest channel block of oneDNN


class IResNet(nn.Sequential):
    """IResNet: float images `[b, 3, H, W]` in [-1, 1] -> float32 embeddings `[b, D]`, not normalized.

    Stage i has `depths[i]` blocks of `width` * 2**i channels and halves height and width, rounding up.
    """

    def __init__(
        self, depths: Sequence[int], *, width: int, input_size: int, embedding_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.add_module("conv1", nn.Conv2d(3, width, 3, padding=1, bias=False))
        self.add_module("bn1", nn.BatchNorm2d(width))
        self.add_module("prelu", nn.PReLU(width))
        channels = width
        for stage, depth in enumerate(depths):
            self.add_module(f"layer{stage + 1}", _build_stage(channels, width << stage, depth))
            channels = width << stage
        side = -(-input_size >> len(depths))
        self.add_module("bn2", nn.BatchNorm2d(channels))
        self.add_module("flatten", nn.Flatten())
        self.add_module("dropout", nn.Dropout(dropout))
        self.add_module("fc", Projection(channels * side * side, embedding_size))
        self.add_module("features", _batchnorm_without_scale(embedding_size))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.1)

    @property
    def blocks(self) -> list[nn.Module]:
        """Units of gradient checkpointing."""
        stages = [module for name, module in self.named_children() if name.startswith("layer")]
        return [block for stage in stages for block in stage.children()]


class _IResNetBlock(nn.Module):
    """Two 3 x 3 convolutions with three BatchNorms, added to the input or to its projection."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.prelu = nn.PReLU(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = nn.Identity() if stride == 1 else _build_downsample(channels, out_channels, stride)

    def forward(self, images: Tensor) -> Tensor:
        inner = self.prelu(self.bn2(self.conv1(self.bn1(images))))
        return self.bn3(self.conv2(inner)) + self.downsample(images)


def _build_downsample(channels: int, out_channels: int, stride: int) -> nn.Sequential:
    kind = nn.Conv2d if channels >= _MIN_CHANNELS_ONEDNN else _NarrowDownsample
    return nn.Sequential(kind(channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class _NarrowDownsample(nn.Conv2d):
    """Strided 1 x 1 convolution as slicing and a convolution, for few channels.

    With channels last in memory, oneDNN's backward of the strided convolution writes out of bounds
    (uxlfoundation/oneDNN, issue 6035).
    """

    def forward(self, input: Tensor) -> Tensor:
        rows, columns = self.stride
        return nn.functional.conv2d(input[:, :, ::rows, ::columns], self.weight)


def _build_stage(channels: int, out_channels: int, depth: int) -> nn.Sequential:
    rest = (_IResNetBlock(out_channels, out_channels, stride=1) for _ in range(depth - 1))
    return nn.Sequential(_IResNetBlock(channels, out_channels, stride=2), *rest)


def _batchnorm_without_scale(channels: int) -> nn.BatchNorm1d:
    """Return a BatchNorm whose weight is fixed at 1, since the loss normalizes the embedding."""
    norm = nn.BatchNorm1d(channels)
    norm.weight.requires_grad_(False)
    return norm
