"""MobileFaceNet (arXiv 1804.07573), as the field's toolkits train it: twice the published channels.

Names and shapes of its state_dict are those of the checkpoints in common use, so that their weights load.
"""

from torch import Tensor, nn

from partialfc.backbones.projection import Projection

_OUT = 512
# Of each stage but the first: channels of its blocks in those of the first, channels inside them, and inside the one that
# halves the image.
_STAGES = ((1, 128, 128), (2, 256, 256), (2, 256, 512))


class MobileFaceNet(nn.Module):
    """float images [b, 3, H, W] in [-1, 1] -> float32 embeddings [b, D], not normalised.

    width: channels of the first stage. depths: blocks of each stage; 1 in the first: a convolution in its place.
    """

    def __init__(
        self,
        *,
        input_size: int,
        embedding: int,
        dropout: float,
        width: int = 128,
        depths: tuple[int, int, int, int] = (1, 4, 6, 2),
    ) -> None:
        super().__init__()
        self.input_size = input_size
        layers: list[nn.Module] = [
            _Layers(*_convolution(3, width, 3, stride=2), nn.PReLU(width)),
            _Layers(*_convolution(width, width, 3, groups=64), nn.PReLU(width))
            if depths[0] == 1
            else _residuals(width, 128, depths[0]),
        ]
        channels = width
        for depth, (times, inner, first_inner) in zip(depths[1:], _STAGES, strict=True):
            layers.append(_Layers(*_bottleneck(channels, times * width, first_inner, stride=2)))
            channels = times * width
            layers.append(_residuals(channels, inner, depth))
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


def _residuals(channels: int, inner: int, depth: int) -> nn.Module:
    return _Layers(*(_Residual(*_bottleneck(channels, channels, inner)) for _ in range(depth)))


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
