"""MobileFaceNet (arXiv 1804.07573), as the field's toolkits train it: twice the published channels.

Names and shapes of its state_dict are those of the checkpoints in common use, so that their weights load.
"""

from torch import Tensor, nn

from partialfc.backbones.projection import Projection

_OUT_CHANNELS = 512
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
        embedding_size: int,
        dropout: float,
        width: int = 128,
        depths: tuple[int, int, int, int] = (1, 4, 6, 2),
    ) -> None:
        super().__init__()
        self.input_size = input_size
        layers: list[nn.Module] = [
            _NamedSequential(*_conv_bn(3, width, 3, stride=2), nn.PReLU(width)),
            _NamedSequential(*_conv_bn(width, width, 3, groups=64), nn.PReLU(width))
            if depths[0] == 1
            else _build_residual_stage(width, 128, depths[0]),
        ]
        channels = width
        for depth, (times, inner, first_inner) in zip(depths[1:], _STAGES, strict=True):
            layers.append(
                _NamedSequential(*_bottleneck_layers(channels, times * width, first_inner, stride=2))
            )
            channels = times * width
            layers.append(_build_residual_stage(channels, inner, depth))
        self.layers = nn.ModuleList(layers)
        self.conv_sep = _NamedSequential(*_conv_bn(channels, _OUT_CHANNELS, 1), nn.PReLU(_OUT_CHANNELS))
        side = -(-input_size // 16)
        self.features = _NamedSequential(
            _NamedSequential(*_conv_bn(_OUT_CHANNELS, _OUT_CHANNELS, side, groups=_OUT_CHANNELS, padding=0)),
            nn.Sequential(nn.Flatten(), nn.Dropout(dropout)),
            Projection(_OUT_CHANNELS, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size),
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


class _NamedSequential(nn.Module):
    """One after the other, under the name that checkpoints have."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.layers(images)
        return out


class _Residual(_NamedSequential):
    """Added to what goes in."""

    def forward(self, images: Tensor) -> Tensor:
        return images + super().forward(images)


def _build_residual_stage(channels: int, hidden_channels: int, num_blocks: int) -> nn.Module:
    return _NamedSequential(
        *(_Residual(*_bottleneck_layers(channels, channels, hidden_channels)) for _ in range(num_blocks))
    )


def _bottleneck_layers(
    channels: int, out: int, hidden_channels: int, stride: int = 1
) -> tuple[nn.Module, ...]:
    """Widened to `hidden_channels` channels, each convolved by itself, and narrowed again."""
    return (
        _NamedSequential(*_conv_bn(channels, hidden_channels, 1), nn.PReLU(hidden_channels)),
        _NamedSequential(
            *_conv_bn(hidden_channels, hidden_channels, 3, stride=stride, groups=hidden_channels),
            nn.PReLU(hidden_channels),
        ),
        _NamedSequential(*_conv_bn(hidden_channels, out, 1)),
    )


def _conv_bn(
    channels: int, out: int, kernel_size: int, *, stride: int = 1, groups: int = 1, padding: int | None = None
) -> tuple[nn.Module, nn.Module]:
    padding = kernel_size // 2 if padding is None else padding
    return nn.Conv2d(channels, out, kernel_size, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(
        out
    )
