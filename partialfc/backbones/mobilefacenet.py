"""MobileFaceNet (arXiv:1804.07573) as in current toolkits: twice the published number of channels.

Names and shapes of its state_dict match the widely used checkpoints, so that their weights load.
"""

from torch import Tensor, nn

from partialfc.backbones.projection import Projection

_OUT_CHANNELS = 512
# Factors of all stages except the first, relative to its width: channels, hidden channels, and hidden
# channels of the downsampling block.
_STAGES = ((1, 128, 128), (2, 256, 256), (2, 256, 512))


class MobileFaceNet(nn.Module):
    """MobileFaceNet: float images `[b, 3, H, W]` in [-1, 1] -> float32 embeddings `[b, D]`, not normalized.

    Args:
        input_size: H = W.
        embedding_size: D.
        dropout: Dropout rate before the embedding layer.
        width: Channels of the first stage.
        depths: Blocks per stage; 1 in the first stage: a single convolution.
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
        """Units of gradient checkpointing."""
        return list(self.layers)

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings `[b, D]` of images `[b, 3, H, W]`."""
        for layer in self.layers:
            images = layer(images)
        embeddings: Tensor = self.features(self.conv_sep(images))
        return embeddings


class _NamedSequential(nn.Module):
    """Sequential layers under the names of the common checkpoints."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.layers(images)
        return out


class _Residual(_NamedSequential):
    """Residual connection."""

    def forward(self, images: Tensor) -> Tensor:
        return images + super().forward(images)


def _build_residual_stage(channels: int, hidden_channels: int, num_blocks: int) -> nn.Module:
    return _NamedSequential(
        *(_Residual(*_bottleneck_layers(channels, channels, hidden_channels)) for _ in range(num_blocks))
    )


def _bottleneck_layers(
    channels: int, out: int, hidden_channels: int, stride: int = 1
) -> tuple[nn.Module, ...]:
    """Return the layers of a bottleneck: expansion to `hidden_channels`, depthwise convolution, projection."""
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
