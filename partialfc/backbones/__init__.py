"""From aligned faces to embeddings."""

from partialfc.backbones.iresnet import IResNet
from partialfc.config import IResNetTiny

__all__ = ["IResNet", "build_backbone"]


def build_backbone(config: IResNetTiny) -> IResNet:
    """A freshly initialised network: float images [b, 3, H, W] in [-1, 1] -> float32 embeddings [b, D], not
    normalised. Its `input_size` is the H = W it takes.
    """
    return IResNet(
        config.depths,
        width=config.width,
        input_size=config.input_size,
        embedding=config.embedding,
        dropout=config.dropout,
    )
