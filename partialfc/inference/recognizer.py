"""Trained model with its metadata, from a run, a checkpoint or weights; computes embeddings of faces."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from torch import Tensor

from partialfc.backbones import Backbone, build_backbone, inference_config, move_to_device
from partialfc.config import AnyBackbone, Config, CustomBackbone
from partialfc.config.optimizers import Precision
from partialfc.config.provenance import Provenance, parse_provenance
from partialfc.conversion import convert
from partialfc.data import images
from partialfc.data.images import ImageArray
from partialfc.errors import InputError
from partialfc.evaluation.embed import embed_images
from partialfc.inference.onnx import OnnxNetwork
from partialfc.inference.weights import check_weights, load_weights, read_weights, resolve_checkpoint
from partialfc.input_files import require_file
from partialfc.runtime import checkpoint
from partialfc.runtime.devices import uses_cuda
from partialfc.runtime.error_messages import format_error
from partialfc.runtime.files import decode_json, file_fingerprint
from partialfc.runtime.precision import autocast

WEIGHTS_FILE = "model.safetensors"  # weights in an exported folder
METADATA_KEY = "backbone"  # key of a safetensors file's metadata, written by export


@dataclass
class Recognizer:
    """Model in evaluation mode."""

    network: Backbone | OnnxNetwork
    device: torch.device
    provenance: Provenance | None = None  # of the run, if known
    precision: Precision | None = None  # compute dtype; None: as in the run, else float32
    batch_size_override: int | None = None  # None: as in the run's evaluation, else 64

    @property
    def config(self) -> Config | None:
        """Config of the run, if known."""
        return self.provenance.config if self.provenance else None

    @property
    def batch_size(self) -> int:
        """Images per forward pass."""
        return self.batch_size_override or (self.config.evaluation.batch_size if self.config else 64)

    def autocast(self) -> AbstractContextManager[object]:
        """Run the network in its compute dtype."""
        usual = self.config.optim.precision if self.config else "float32"
        return autocast(self.precision or usual, self.device)

    def fingerprint(self, weights: Path) -> str:
        """Return a string that identifies embeddings: it changes with the weights in `path` and the precision."""
        return " ".join(
            [file_fingerprint(resolve_checkpoint(weights)), *([self.precision] if self.precision else [])]
        )

    def embed(self, images: Sequence[ImageArray | Path | str] | ImageArray) -> NDArray[np.float32]:
        """Return L2-normalized embeddings `[n, D]` of aligned faces.

        Images are files, or uint8 RGB arrays `[H, W, 3]` of any size, resized as in training. An embedding is
        the sum over the image and its mirror image, as in verification. The dot product of two embeddings is
        their cosine similarity.

        Raises:
            InputError: If an image is invalid or cannot be read.
        """
        if isinstance(images, str | Path):
            raise InputError(f"{images}: expected a list of images or paths, got one path")
        size = self.network.input_size
        pixels = [_load_image(face, place, size) for place, face in enumerate(images)]
        if not pixels:
            raise InputError("expected at least one image, got none")
        found = self.embed_unchecked(pixels)
        check_finite(found)
        return found

    def embed_unchecked(self, pixels: Sequence[ImageArray]) -> NDArray[np.float32]:
        """Return embeddings of images of the network's size, which may not be finite."""
        return embed_images(
            self.network, pixels, self.device, batch_size=self.batch_size, autocast=self.autocast()
        )


def check_finite(embeddings: NDArray[np.float32], first: int = 0) -> None:
    """Raise InputError if embeddings of images, numbered from `first` on, are not finite."""
    wrong = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(wrong):
        raise InputError(
            f"expected finite embeddings, got {len(wrong)} of {len(embeddings)} that are not, the first of image "
            f"{first + wrong[0]}; the network has diverged, or its weights are damaged"
        )


def _load_image(image: ImageArray | Path | str, index: int, size: int) -> ImageArray:
    """Return uint8 RGB `[size, size, 3]`; `index` is for messages."""
    if isinstance(image, str | Path):
        return images.read(Path(image), size)
    found = np.asarray(image)
    if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3 or not found.size:
        raise InputError(
            f"image {index}: {found.dtype} of shape {found.shape}; expected uint8 RGB [H, W, 3], or the path of a file"
        )
    return images.resize(found, size)


def load(
    path: Path | str,
    *,
    backbone: str | None = None,
    backbone_target: str | None = None,
    trust_code: bool = False,
    device: str = "auto",
    precision: Precision | None = None,
    batch_size: int | None = None,
) -> Recognizer:
    """Load a trained model to embed faces with.

    A file may specify a built-in network and its sizes, which are compared with its tensors before a network
    is allocated. Code that a file refers to is imported only if the caller allows it.

    Args:
        path: Folder of a run, a checkpoint, a folder written by `partialfc export`, `.pth`, `.pt`,
            `.safetensors` or `.onnx`.
        backbone: Name of the network, with its default settings, for weights without a description.
        backbone_target: `module:Class` to construct if the file describes a user-defined network.
        trust_code: Import the `module:Class` that the file itself names.
        device: `auto`, `cpu` or `cuda`.
        precision: `float32`, `bfloat16` or `float16`; None: as in the run, else `float32`.
        batch_size: Images per forward pass; None: as in the run's evaluation, else 64.

    Returns:
        Model in evaluation mode.

    Raises:
        InputError: If something is missing or inconsistent, or would run code from the file.
    """
    path = Path(path)
    if (path / WEIGHTS_FILE).is_file():
        path = path / WEIGHTS_FILE
    where = torch.device("cuda" if uses_cuda(device) else "cpu")
    if path.suffix == ".onnx":
        if precision is not None:
            raise InputError(
                f"{path}: its precision was fixed by the export; --precision is for other weights"
            )
        return Recognizer(OnnxNetwork(path), torch.device("cpu"), batch_size_override=batch_size)
    provenance = None if path.is_file() or backbone else _read_provenance(path)
    settings = provenance.config.backbone if provenance else _backbone_config(path, backbone)
    settings = inference_config(_trusted(settings, path, backbone_target, trust_code))
    weights = read_weights(path)
    _check_sizes(settings, weights, path)
    network = build_backbone(settings)
    load_weights(network, weights, path)
    network.eval()
    move_to_device(network, where, channels_last=settings.channels_last)
    return Recognizer(network, where, provenance, precision, batch_size)


def _trusted(config: AnyBackbone, path: Path, target: str | None, trust_code: bool) -> AnyBackbone:
    """Return the config with the caller's class in place of the one that a file names."""
    if not isinstance(config, CustomBackbone):
        if target is not None:
            raise InputError(
                f"{path}: a built-in network; --backbone-target {target} is for user-defined networks"
            )
        return config
    if target is not None:
        changed = msgspec.to_builtins(config) | {"target": target}
        trusted: AnyBackbone = convert(changed, AnyBackbone, "--backbone-target")
        return trusted
    if not trust_code:
        raise InputError(
            f"{path}: refers to code, {config.target}, which was not imported; pass --backbone-target "
            f"{config.target} or --trust-code (backbone_target=, trust_code=True) to run it"
        )
    return config


def _check_sizes(config: AnyBackbone, weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise InputError if the described network does not match the weights, before it is allocated."""
    if isinstance(config, CustomBackbone):  # trusted code may not support the meta device
        return
    with torch.device("meta"):
        check_weights(build_backbone(config), weights, path)


def _read_provenance(path: Path) -> Provenance:
    """Return the provenance of a checkpoint, or of the latest one of a run; `recipe.yaml` may be of a later start."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: expected a run's folder, a checkpoint of it, an exported folder, or a file of weights"
        )
    made = resolve_checkpoint(path)
    return parse_provenance(checkpoint.read_manifest(made).about, f"checkpoint {made}")


def _backbone_config(path: Path, name: str | None) -> AnyBackbone:
    known = {"name": name} if name else _exported_backbone(path)
    if known is None:
        raise InputError(f"{path}: the network is not specified; pass --backbone, such as iresnet100")
    settings: AnyBackbone = convert(known, AnyBackbone, f"{path}: backbone")
    return settings


def _exported_backbone(path: Path) -> dict[str, Any] | None:
    """Return the description of the network in the metadata of an exported file."""
    if path.suffix != ".safetensors":
        return None
    require_file(path)
    try:
        with safetensors.safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: expected safetensors of an export: {format_error(error)[:100]}") from None
    return decode_json(text, dict[str, Any], f"{path}: {METADATA_KEY}: not JSON") if text else None
