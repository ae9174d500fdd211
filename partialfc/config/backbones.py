"""Section `backbone:` of a recipe, one variant per `name`."""

from typing import Annotated

from msgspec import Meta, field

from partialfc.config.types import FractionBelowOne, PixelCount, Settings
from partialfc.errors import InputError

# Arguments of timm's create_model that are set here or would load a file.
_OF_TIMM = frozenset(
    ("cache_dir", "checkpoint_path", "features_only", "img_size", "num_classes", "pretrained", "pretrained_cfg",
     "pretrained_cfg_overlay", "pretrained_strict", "scriptable")
)  # fmt: skip
_Size = Annotated[int, Meta(ge=-65536, le=65536)]
_Depth = Annotated[int, Meta(ge=1, le=1000)]
_Embedding = Annotated[int, Meta(ge=1, le=65536)]
_Target = Annotated[
    str,
    Meta(
        pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*$",
        description="module:Class, such as my_networks:Net",
    ),
]


class BackboneConfig(Settings, frozen=True):
    """Settings that all backbones share."""

    input_size: Annotated[PixelCount, Meta(ge=16, le=512)] = 112
    """Height and width of the input; other images are resized."""
    embedding_size: _Embedding = 512
    """Components of an embedding."""
    dropout: FractionBelowOne = 0.0
    """Dropout rate before the embedding layer."""
    gradient_checkpointing: bool = False
    """Gradient checkpointing: the backward computes the activations of each block again."""
    channels_last: bool = True
    """Memory format of the activations."""
    compile: bool = False
    """Use torch.compile, which requires a C++ compiler."""
    cuda_graphs: bool = False
    """On a GPU, record forward and backward as CUDA graphs: same results, faster if the host limits the speed.
    Incompatible with gradient_checkpointing, compile and micro-batches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gradient_checkpointing", "compile"):
            if self.cuda_graphs and getattr(self, name):
                raise InputError(f"backbone.cuda_graphs: incompatible with backbone.{name}: true")


class IResNetTiny(BackboneConfig, frozen=True, tag="iresnet_tiny", tag_field="name"):
    """Small network of iresnet blocks for CPUs; each stage has twice the channels of the previous one."""

    width: Annotated[int, Meta(ge=4, le=4096)] = 16
    """Channels of the first stage."""
    depths: Annotated[tuple[_Depth, ...], Meta(min_length=2, max_length=5)] = (1, 1, 1, 1)
    """Blocks of each stage."""
    input_size: Annotated[PixelCount, Meta(ge=16, le=512)] = 48
    embedding_size: _Embedding = 128


class IResNetConfig(BackboneConfig, frozen=True):
    """Networks of the common checkpoints: 64 channels in the first stage."""


class IResNet18(IResNetConfig, frozen=True, tag="iresnet18", tag_field="name"):
    """iresnet18 of the ArcFace and ElasticFace checkpoints."""


class IResNet34(IResNetConfig, frozen=True, tag="iresnet34", tag_field="name"):
    """iresnet34 of the ArcFace and ElasticFace checkpoints."""


class IResNet50(IResNetConfig, frozen=True, tag="iresnet50", tag_field="name"):
    """iresnet50 of the ArcFace and ElasticFace checkpoints."""


class IResNet100(IResNetConfig, frozen=True, tag="iresnet100", tag_field="name"):
    """iresnet100 of the ArcFace and ElasticFace checkpoints."""


class IResNet200(IResNetConfig, frozen=True, tag="iresnet200", tag_field="name"):
    """iresnet200 of the ArcFace and ElasticFace checkpoints."""


class IResNet2060(IResNetConfig, frozen=True, tag="iresnet2060", tag_field="name"):
    """iresnet2060 of the ArcFace checkpoints; requires gradient_checkpointing."""


class MobileFaceNetConfig(BackboneConfig, frozen=True, tag="mobilefacenet", tag_field="name"):
    """MobileFaceNet, arXiv 1804.07573, as in insightface."""


class MobileFaceNetLarge(BackboneConfig, frozen=True, tag="mobilefacenet_large", tag_field="name"):
    """mbf_large of insightface: twice the channels and blocks of mbf."""


class ViT(BackboneConfig, frozen=True):
    """ViT as in insightface and LVFace."""

    patch_size: Annotated[PixelCount, Meta(ge=4, le=16)] = 9
    """Height and width of a patch."""
    drop_path_rate: FractionBelowOne = 0.1
    """Probability of skipping the last block; it increases linearly from 0 at the first block."""
    mask_ratio: FractionBelowOne = 0.1
    """Fraction of the patches that training drops."""


class ViTTiny(ViT, frozen=True, tag="vit_t", tag_field="name"):
    """ViT-T of insightface and LVFace."""


class ViTSmall(ViT, frozen=True, tag="vit_s", tag_field="name"):
    """ViT-S of insightface and LVFace."""


class ViTBase(ViT, frozen=True, tag="vit_b", tag_field="name"):
    """ViT-B of insightface and LVFace."""


class ViTLarge(ViT, frozen=True, tag="vit_l", tag_field="name"):
    """ViT-L of insightface and LVFace."""


class CustomBackbone(BackboneConfig, frozen=True, kw_only=True, tag="python", tag_field="name"):
    """User-defined network: images [b, 3, H, H] in [-1, 1] to embeddings [b, D].

    It handles dropout and gradient checkpointing itself.
    """

    target: _Target
    """module:Class, a torch.nn.Module in the current folder or the environment."""
    kwargs: dict[str, bool | int | float | str | list[int]] = field(default_factory=dict)
    """Keyword arguments of the class."""


class TimmBackbone(BackboneConfig, frozen=True, kw_only=True, tag="timm", tag_field="name"):
    """Any timm model, if timm is installed, with an embedding layer: dropout, projection, BatchNorm."""

    model: str
    """Model name, such as convnext_tiny."""
    pretrained: bool = False
    """Start from the weights of timm, which are downloaded."""
    kwargs: dict[str, bool | _Size | float | str | list[_Size]] = field(default_factory=dict)
    """Keyword arguments of the model, such as `drop_path_rate`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if taken := sorted(_OF_TIMM & self.kwargs.keys()):
            raise InputError(f"backbone.kwargs: expected arguments of the model, got {', '.join(taken)}")


AnyBackbone = (
    IResNetTiny
    | IResNet18
    | IResNet34
    | IResNet50
    | IResNet100
    | IResNet200
    | IResNet2060
    | MobileFaceNetConfig
    | MobileFaceNetLarge
    | ViTTiny
    | ViTSmall
    | ViTBase
    | ViTLarge
    | CustomBackbone
    | TimmBackbone
)
