"""Export of a run's model: ONNX, safetensors, and a model card."""

import json
import logging
import warnings
from pathlib import Path

import msgspec
import safetensors.torch
import torch

from partialfc.config import Config
from partialfc.data import RecordDataset
from partialfc.data.images import ImageArray
from partialfc.errors import InputError
from partialfc.evaluation.pairs import load_pairs
from partialfc.inference.model_card import build_export_config, build_model_card
from partialfc.inference.onnx import OnnxNetwork
from partialfc.inference.recognizer import METADATA_KEY, WEIGHTS_FILE, Recognizer, load
from partialfc.inference.stored_scores import CONFIG_FILE, load_scores
from partialfc.inference.weights import resolve_checkpoint
from partialfc.runtime import checkpoint
from partialfc.runtime.files import atomic_write

MIN_COSINE = 0.9999  # between embeddings by onnxruntime and by torch
_NUM_CHECK_IMAGES = 64


def export_run(
    run: Path, out: Path, *, backbone_target: str | None = None, trust_code: bool = False
) -> float:
    """Write model.onnx, model.safetensors, config.json and README.md to `out`, in the layout of the Hugging Face Hub.

    Args:
        run: Folder of a run, or a checkpoint.
        out: Folder to write to.
        backbone_target: `module:Class` of a user-defined backbone.
        trust_code: Import the class that the checkpoint names.

    Returns:
        Minimum cosine between the embeddings of both models, on real faces.

    Raises:
        InputError: If the run, or faces to check with, are missing.
        RuntimeError: If the cosine is below MIN_COSINE.
    """
    recognizer = load(run, backbone_target=backbone_target, trust_code=trust_code, device="cpu")
    if recognizer.provenance is None:
        raise InputError(f"{run}: contains only weights; expected a run, or a checkpoint of one")
    config = recognizer.provenance.config
    faces = _check_images(config, recognizer.network.input_size)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "model.onnx") as temporary:
        _write_onnx(recognizer, temporary)
        cosine = _min_cosine(recognizer, temporary, faces)
        if cosine < MIN_COSINE:
            raise RuntimeError(f"{run}: a cosine of {cosine} between ONNX and torch, expected {MIN_COSINE}")
    provenance, scores = recognizer.provenance, load_scores(run)
    steps = checkpoint.read_manifest(resolve_checkpoint(run)).step
    with atomic_write(out / WEIGHTS_FILE) as temporary:
        tensors = {name: tensor.contiguous() for name, tensor in recognizer.network.state_dict().items()}
        settings = json.dumps(msgspec.to_builtins(config.backbone))
        # copied as bytes: safetensors creates files that only their owner can read
        temporary.write_bytes(safetensors.torch.save(tensors, {METADATA_KEY: settings}))
    with atomic_write(out / CONFIG_FILE) as temporary:
        described = msgspec.json.encode(build_export_config(provenance, steps, scores))
        temporary.write_bytes(msgspec.json.format(described, indent=2))
    with atomic_write(out / "README.md") as temporary:
        card = build_model_card(provenance, steps, scores, cosine, _NUM_CHECK_IMAGES)
        temporary.write_text(str(card), encoding="utf-8")
    return cosine


def _write_onnx(recognizer: Recognizer, path: Path) -> None:
    """Write a model: images `[batch, 3, H, W]` in [-1, 1] to unnormalized embeddings `[batch, D]`."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # optional packages that it works without
    size = recognizer.network.input_size
    with warnings.catch_warnings(action="ignore"):  # torch's own
        program = torch.onnx.export(
            recognizer.network,
            (torch.zeros(2, 3, size, size),),
            input_names=["images"],
            output_names=["embeddings"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(str(path))


def _min_cosine(recognizer: Recognizer, path: Path, images: list[ImageArray]) -> float:
    exported = Recognizer(OnnxNetwork(path), recognizer.device)
    return float(
        (exported.embed(images) * Recognizer(recognizer.network, recognizer.device).embed(images))
        .sum(1)
        .min()
    )


def _check_images(config: Config, size: int) -> list[ImageArray]:
    """Return real faces: of the first verification set, else of the pack."""
    folder = Path(config.data.path)
    for path in sorted(folder.glob("*.bin")):
        pairs = load_pairs(path)
        return [pairs.pixels(place, size) for place in range(min(_NUM_CHECK_IMAGES, len(pairs.images)))]
    dataset = RecordDataset(folder, image_size=size)
    return [dataset[sample][0] for sample in range(min(_NUM_CHECK_IMAGES, len(dataset)))]
