"""From aligned faces to embeddings."""

from partialfc import config
from partialfc.backbones.iresnet import IResNet

__all__ = ["IResNet", "build_backbone"]

_WIDTH = 64
_DEPTHS: dict[type[config.IResNet], tuple[int, ...]] = {  # blocks a stage
    config.IResNet18: (2, 2, 2, 2),
    config.IResNet34: (3, 4, 6, 3),
    config.IResNet50: (3, 4, 14, 3),
    config.IResNet100: (3, 13, 30, 3),
    config.IResNet200: (6, 26, 60, 6),
}


def build_backbone(settings: config.AnyBackbone) -> IResNet:
    """A freshly initialised network: float images [b, 3, H, W] in [-1, 1] -> float32 embeddings [b, D], not
    normalised. Its `input_size` is the H = W it takes.
    """
    if isinstance(settings, config.IResNetTiny):
        depths, width = settings.depths, settings.width
    else:
        depths, width = _DEPTHS[type(settings)], _WIDTH
    return IResNet(
        depths,
        width=width,
        input_size=settings.input_size,
        embedding=settings.embedding,
        dropout=settings.dropout,
    )
