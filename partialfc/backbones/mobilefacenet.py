"""MobileFaceNet (arXiv 1804.07573), as the field's toolkits train it: twice the published channels.

Names and shapes of its state_dict are those of the checkpoints in common use, so that their weights load.
"""

from torch import Tensor, nn

from partialfc.backbones.projection import Projection

_WIDTH, _OUT = 128, 512
# Of each stage: blocks, channels of its blocks, channels inside them, and inside the one that halves the image.
_STAGES = ((4, 128, 128, 128), (6, 256, 256, 256), (2, 256, 256, 512))


class MobileFaceNet(nn.Module):
    """float images [b, 3, H, W] in [-1, 1] -> float32 embeddings [b, D], not normalised."""

    def __init__(self, *, input_size: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.input_size = input_size
        layers: list[nn.Module] = [
            _Layers(*_convolution(3, _WIDTH, 3, stride=2), nn.PReLU(_WIDTH)),
            _Layers(*_convolution(_WIDTH, _WIDTH, 3, groups=64), nn.PReLU(_WIDTH)),
        ]
        channels = _WIDTH
        for blocks, out, inner, first_inner in _STAGES:
            layers.append(_Layers(*_bottleneck(channels, out, first_inner, stride=2)))
            layers.append(_Layers(*(_Residual(*_bottleneck(out, out, inner)) for _ in range(blocks))))
            channels = out
        self.layers = nn.ModuleList(layers)
        self.conv_sep = _Layers(*_convolution(channels, _OUT, 1), nn.PReLU(_OUT))
        side = -(-input_size // 16)
        self.features = _Layers(
            _Layers(*_convolution(_OUT, _OUT, side, groups=_OUT, padding=0)),
            nn.Sequential(nn.Flatten(), nn.Dropout(dropout)),
            Projection(_OUT, embedding, bias=False),
            nn.BatchNorm1d(embedding),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def blocks(self) -> list[nn.Module]:
        """What a backward may compute again instead of keeping it."""
        return list(self.layers)

    def forward(self, images: Tensor) -> Tensor:
        for layer in self.layers:
            images = layer(images)
        embeddings: Tensor = self.features(self.conv_sep(images))
        return embeddings


class _Layers(nn.Module):
    """One after the other, under the name that checkpoints have."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.layers(images)
        return out


class _Residual(_Layers):
    """Added to what goes in."""

    def forward(self, images: Tensor) -> Tensor:
        return images + super().forward(images)


def _bottleneck(channels: int, out: int, inner: int, stride: int = 1) -> tuple[nn.Module, ...]:
    """Widened to `inner` channels, each convolved by itself, and narrowed again."""
    return (
        _Layers(*_convolution(channels, inner, 1), nn.PReLU(inner)),
        _Layers(*_convolution(inner, inner, 3, stride=stride, groups=inner), nn.PReLU(inner)),
        _Layers(*_convolution(inner, out, 1)),
    )


def _convolution(
    channels: int, out: int, kernel: int, *, stride: int = 1, groups: int = 1, padding: int | None = None
) -> tuple[nn.Module, nn.Module]:
    padding = kernel // 2 if padding is None else padding
    return nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(out)
