"""`backbone:` of a recipe, a variant for each `name`."""

from typing import Annotated

from msgspec import Meta, field

from partialfc.config.types import Pixels, Probability, Settings
from partialfc.errors import InputError

# Arguments of timm's create_model, not of a model: set here, or the place of a file that would be loaded.
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


class Backbone(Settings, frozen=True):
    input_size: Annotated[Pixels, Meta(ge=16, le=512)] = 112
    """Height and width of what goes in; images of another size are resized."""
    embedding: _Embedding = 512
    """Components of the embedding."""
    dropout: Probability = 0.0
    """Share that is dropped before the embedding."""
    checkpointing: bool = False
    """A block's activations are computed again in the backward, not kept."""
    channels_last: bool = True
    """How activations lie in memory."""
    compile: bool = False
    """torch.compile, which wants a C++ compiler."""
    cuda_graphs: bool = False
    """On a GPU, forward and backward are recorded once and then launched as one each: the same bits, sooner where the host
    launches kernels more slowly than the GPU takes them. Not with checkpointing, compile or micro-batches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("checkpointing", "compile"):
            if self.cuda_graphs and getattr(self, name):
                raise InputError(f"backbone.cuda_graphs: not with backbone.{name}: true")


class IResNetTiny(Backbone, frozen=True, tag="iresnet_tiny", tag_field="name"):
    """For CPUs: the iresnet block, `width` channels in the first stage and twice as many in each later one."""

    width: Annotated[int, Meta(ge=4, le=4096)] = 16
    """Channels of the first stage."""
    depths: Annotated[tuple[_Depth, ...], Meta(min_length=2, max_length=5)] = (1, 1, 1, 1)
    """Blocks of each stage."""
    input_size: Annotated[Pixels, Meta(ge=16, le=512)] = 48
    embedding: _Embedding = 128


class IResNet(Backbone, frozen=True):
    """The field's networks: 64 channels in the first stage, and blocks as their number of layers says."""


class IResNet18(IResNet, frozen=True, tag="iresnet18", tag_field="name"):
    """iresnet18 of the ArcFace and ElasticFace checkpoints."""


class IResNet34(IResNet, frozen=True, tag="iresnet34", tag_field="name"):
    """iresnet34 of the ArcFace and ElasticFace checkpoints."""


class IResNet50(IResNet, frozen=True, tag="iresnet50", tag_field="name"):
    """iresnet50 of the ArcFace and ElasticFace checkpoints."""


class IResNet100(IResNet, frozen=True, tag="iresnet100", tag_field="name"):
    """iresnet100 of the ArcFace and ElasticFace checkpoints."""


class IResNet200(IResNet, frozen=True, tag="iresnet200", tag_field="name"):
    """iresnet200 of the ArcFace and ElasticFace checkpoints."""


class IResNet2060(IResNet, frozen=True, tag="iresnet2060", tag_field="name"):
    """iresnet2060 of the ArcFace checkpoints; wants checkpointing."""


class MobileFaceNet(Backbone, frozen=True, tag="mobilefacenet", tag_field="name"):
    """MobileFaceNet, arXiv 1804.07573, as insightface builds it."""


class MobileFaceNetLarge(Backbone, frozen=True, tag="mobilefacenet_large", tag_field="name"):
    """insightface's mbf_large: twice the channels and blocks of their mbf."""


class ViT(Backbone, frozen=True):
    """As insightface and LVFace train them."""

    patch: Annotated[Pixels, Meta(ge=4, le=16)] = 9
    """Side of a patch."""
    drop_path: Probability = 0.1
    """Probability that the last block is left out; of the first it is 0, in between it grows."""
    mask: Probability = 0.1
    """Share of the patches that training leaves out."""


class ViTTiny(ViT, frozen=True, tag="vit_t", tag_field="name"):
    """ViT-T, as insightface and LVFace train it."""


class ViTSmall(ViT, frozen=True, tag="vit_s", tag_field="name"):
    """ViT-S, as insightface and LVFace train it."""


class ViTBase(ViT, frozen=True, tag="vit_b", tag_field="name"):
    """ViT-B, as insightface and LVFace train it."""


class ViTLarge(ViT, frozen=True, tag="vit_l", tag_field="name"):
    """ViT-L, as insightface and LVFace train it."""


class Python(Backbone, frozen=True, kw_only=True, tag="python", tag_field="name"):
    """A network of one's own: images [b, 3, H, H] in [-1, 1] to embeddings [b, D]. dropout and checkpointing are its own
    affair.
    """

    target: _Target
    """module:Class, a torch.nn.Module that can be imported from the current folder or the environment."""
    arguments: dict[str, bool | int | float | str | list[int]] = field(default_factory=dict)
    """What it is made with, by name."""


class Timm(Backbone, frozen=True, kw_only=True, tag="timm", tag_field="name"):
    """Any model of timm, where that is installed, with an embedding layer: dropout, projection, BatchNorm."""

    model: str
    """Its name, such as convnext_tiny."""
    pretrained: bool = False
    """Whether it begins with timm's weights, which it downloads."""
    arguments: dict[str, bool | _Size | float | str | list[_Size]] = field(default_factory=dict)
    """Arguments of the model, by name, such as `drop_path_rate`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if taken := sorted(_OF_TIMM & self.arguments.keys()):
            raise InputError(f"backbone.arguments: expected arguments of the model, got {', '.join(taken)}")


AnyBackbone = (
    IResNetTiny
    | IResNet18
    | IResNet34
    | IResNet50
    | IResNet100
    | IResNet200
    | IResNet2060
    | MobileFaceNet
    | MobileFaceNetLarge
    | ViTTiny
    | ViTSmall
    | ViTBase
    | ViTLarge
    | Python
    | Timm
)
