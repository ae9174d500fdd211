"""`backbone:` of a recipe, a variant for each `name`."""

from typing import Annotated

from msgspec import Meta

from partialfc.config.types import Count, Probability, Settings


class Backbone(Settings, frozen=True):
    input_size: Annotated[int, Meta(ge=16, le=512)] = 112  # pixels; images of another size are resized
    embedding: Count = 512  # width of the embedding
    dropout: Probability = 0.0
    checkpointing: bool = False  # a block's activations are computed again in the backward, not kept
    channels_last: bool = True  # in memory
    compile: bool = False  # torch.compile: wants a C++ compiler


class IResNetTiny(Backbone, frozen=True, tag="iresnet_tiny", tag_field="name"):
    """For CPUs: the iresnet block, `width` channels in the first stage and twice as many in each later one."""

    width: Annotated[int, Meta(ge=4)] = 16
    depths: Annotated[tuple[Count, ...], Meta(min_length=2, max_length=5)] = (1, 1, 1, 1)  # blocks a stage
    input_size: Annotated[int, Meta(ge=16, le=512)] = 48
    embedding: Count = 128


class IResNet(Backbone, frozen=True):
    """The field's networks: 64 channels in the first stage, and blocks as their number of layers says."""


class IResNet18(IResNet, frozen=True, tag="iresnet18", tag_field="name"):
    pass


class IResNet34(IResNet, frozen=True, tag="iresnet34", tag_field="name"):
    pass


class IResNet50(IResNet, frozen=True, tag="iresnet50", tag_field="name"):
    pass


class IResNet100(IResNet, frozen=True, tag="iresnet100", tag_field="name"):
    pass


class IResNet200(IResNet, frozen=True, tag="iresnet200", tag_field="name"):
    pass


class MobileFaceNet(Backbone, frozen=True, tag="mobilefacenet", tag_field="name"):
    pass


class ViT(Backbone, frozen=True):
    """As insightface and LVFace train them."""

    patch: Annotated[int, Meta(ge=4, le=16)] = 9  # pixels
    drop_path: Probability = 0.1  # of the last block; 0 of the first
    mask: Probability = 0.1  # share of the patches that training leaves out


class ViTTiny(ViT, frozen=True, tag="vit_t", tag_field="name"):
    pass


class ViTSmall(ViT, frozen=True, tag="vit_s", tag_field="name"):
    pass


class ViTBase(ViT, frozen=True, tag="vit_b", tag_field="name"):
    pass


class ViTLarge(ViT, frozen=True, tag="vit_l", tag_field="name"):
    pass


AnyBackbone = (
    IResNetTiny
    | IResNet18
    | IResNet34
    | IResNet50
    | IResNet100
    | IResNet200
    | MobileFaceNet
    | ViTTiny
    | ViTSmall
    | ViTBase
    | ViTLarge
)
