"""A trained network and what is known of it: from a run, a checkpoint, or weights; and embeddings of faces by it."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from partialfc import recipe
from partialfc.backbones import Backbone, build_backbone, for_inference, move_to_device
from partialfc.config import AnyBackbone, Config
from partialfc.config.provenance import Provenance, provenance_of
from partialfc.data.images import Pixels
from partialfc.errors import InputError
from partialfc.evaluation.verify import mirror_sum
from partialfc.inference.onnx import OnnxNetwork
from partialfc.inference.weights import load_weights, newest, read_weights
from partialfc.runtime import checkpoint
from partialfc.runtime.precision import autocast, uses_cuda

SETTINGS = "backbone"  # the key of a safetensors file's metadata under which export keeps them


@dataclass
class Recognizer:
    """A network in evaluation mode."""

    network: Backbone | OnnxNetwork
    device: torch.device
    provenance: Provenance | None = None  # where it comes from a run

    @property
    def config(self) -> Config | None:
        """The run's, where it comes from one."""
        return self.provenance.config if self.provenance else None

    @property
    def batch(self) -> int:
        """Images that go through at once."""
        return self.config.evaluation.batch if self.config else 64

    def autocast(self) -> AbstractContextManager[object]:
        """Around the network: computes in the precision that the run verifies in."""
        return autocast(self.config.optim.precision if self.config else "fp32", self.device)

    def embed(self, images: Sequence[Pixels]) -> NDArray[np.float32]:
        """Unit embeddings [n, D] of uint8 RGB images of the network's size: each the sum over the image and its mirror
        image, as in verification.
        """
        pixels = torch.from_numpy(np.stack(images)).to(self.device)
        with torch.no_grad(), self.autocast():
            both = mirror_sum(self.network, pixels)
        return normalize(both.float()).cpu().numpy()


def load(path: Path, *, backbone: str | None = None, device: str = "auto") -> Recognizer:
    """path: a run's folder, a checkpoint of a run, .pth, .pt, .safetensors or .onnx. backbone: the name of the network,
    with its usual settings, of weights that do not say. InputError where something is missing or does not fit.
    """
    where = torch.device("cuda" if uses_cuda(device) else "cpu")
    if path.suffix == ".onnx":
        return Recognizer(OnnxNetwork(path), torch.device("cpu"))
    provenance = None if path.is_file() or backbone else _provenance(path)
    settings = provenance.config.backbone if provenance else _settings(path, backbone)
    network = build_backbone(for_inference(settings))
    load_weights(network, read_weights(path), path)
    network.eval()
    move_to_device(network, where, channels_last=settings.channels_last)
    return Recognizer(network, where, provenance)


def _provenance(path: Path) -> Provenance:
    """What a checkpoint, or the newest one of a run, says of itself; the file `recipe.yaml` may be of a later start."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no run or weights; wanted a run's folder, a checkpoint of it, or a file of weights"
        )
    made = newest(path)
    return provenance_of(checkpoint.read_manifest(made).about, f"checkpoint {made}")


def _settings(path: Path, name: str | None) -> AnyBackbone:
    known = {"name": name} if name else _described(path)
    if known is None:
        raise InputError(f"{path}: does not say of which network; wanted --backbone, such as iresnet100")
    settings: AnyBackbone = recipe.converted(known, AnyBackbone, f"{path}: backbone")
    return settings


def _described(path: Path) -> dict[str, Any] | None:
    """What export wrote of the network."""
    if path.suffix != ".safetensors":
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(SETTINGS)
        return json.loads(text) if text else None
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not safetensors of ours: {error}") from None
