"""A run's network for others: ONNX, safetensors, and a model card that says where it comes from."""

import json
import logging
import subprocess
import warnings
from pathlib import Path

import msgspec
import numpy as np
import safetensors.torch
import torch

from partialfc.config import Config
from partialfc.config.provenance import Provenance
from partialfc.data import RecordDataset
from partialfc.data.images import Pixels
from partialfc.errors import InputError
from partialfc.evaluation.pairs import load_pairs
from partialfc.inference.onnx import OnnxNetwork
from partialfc.inference.recognizer import SETTINGS, Recognizer, load
from partialfc.inference.weights import newest
from partialfc.runtime import checkpoint
from partialfc.runtime.files import atomic_write, read_metrics

LEAST_COSINE = 0.9999  # of embeddings of a face by onnxruntime and by torch
_CHECKED = 64  # faces


def export(run: Path, out: Path) -> float:
    """Write model.onnx, model.safetensors and README.md to the folder `out`. run: a run's folder or a checkpoint of it.

    Returns the least cosine of the two networks' embeddings of real faces. InputError where the run or faces to check
    with are missing, RuntimeError where the networks differ by more than LEAST_COSINE allows.
    """
    recognizer = load(run, device="cpu")
    if recognizer.provenance is None:
        raise InputError(f"{run}: weights alone; wanted a run, or a checkpoint of one")
    config = recognizer.provenance.config
    faces = _faces(config, recognizer.network.input_size)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "model.onnx") as temporary:
        _write_onnx(recognizer, temporary)
        cosine = _least_cosine(recognizer, temporary, faces)
        if cosine < LEAST_COSINE:
            raise RuntimeError(f"{run}: a cosine of {cosine} between ONNX and torch, wanted {LEAST_COSINE}")
    settings = msgspec.to_builtins(config.backbone)
    with atomic_write(out / "model.safetensors") as temporary:
        tensors = {name: tensor.contiguous() for name, tensor in recognizer.network.state_dict().items()}
        safetensors.torch.save_file(tensors, temporary, {SETTINGS: json.dumps(settings)})
    with atomic_write(out / "README.md") as temporary:
        temporary.write_text(_card(run, recognizer.provenance, cosine), encoding="utf-8")
    return cosine


def _write_onnx(recognizer: Recognizer, path: Path) -> None:
    """Takes float images [batch, 3, H, W] in [-1, 1], of any batch, gives embeddings [batch, D], not normalised."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # what it does without
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


def _least_cosine(recognizer: Recognizer, path: Path, faces: list[Pixels]) -> float:
    exported = Recognizer(OnnxNetwork(path), recognizer.device)
    return float(
        (exported.embed(faces) * Recognizer(recognizer.network, recognizer.device).embed(faces)).sum(1).min()
    )


def _faces(config: Config, size: int) -> list[Pixels]:
    """Real ones: of the first verification set, else of the pack."""
    folder = Path(config.data.path)
    for path in sorted(folder.glob("*.bin")):
        pairs = load_pairs(path)
        return [pairs.pixels(place, size) for place in range(min(_CHECKED, len(pairs.images)))]
    dataset = RecordDataset(folder, image_size=size)
    return [dataset[sample][0] for sample in range(min(_CHECKED, len(dataset)))]


def _revision() -> str:
    """The revision of this code."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _card(run: Path, provenance: Provenance, cosine: float) -> str:
    step, config = checkpoint.read_manifest(newest(run)).step, provenance.config
    settings, folder = config.backbone, Path(config.data.path)
    size = settings.input_size
    name = msgspec.to_builtins(settings)["name"]
    lines = [
        f"# {name}, {settings.embedding} numbers a face",
        "",
        f"Trained for {step} steps on {provenance.num_samples:,} images of {provenance.num_classes:,} identities "
        f"(`{folder.name}`, fingerprint {provenance.pack}); exported by partialfc at revision {_revision()}.",
        "",
        f"Input `images`: float32 [batch, 3, {size}, {size}], aligned faces, RGB, (x - 127.5) / 127.5. "
        f"Output `embeddings`: float32 [batch, {settings.embedding}], to be normalised; two faces are as alike as "
        "the cosine of their embeddings, best each the sum over the image and its mirror image.",
        "",
        f"`model.onnx` gives the embeddings of `model.safetensors`: least cosine {np.float32(cosine)} on {_CHECKED} "
        "faces.",
        "",
        *_scores(run, step),
        "## Recipe",
        "",
        "```yaml",
        provenance.in_words().rstrip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def _scores(run: Path, step: int) -> list[str]:
    """A table of what the run's log says of this step."""
    folder = newest(run).resolve().parents[1]
    found = read_metrics(folder / "metrics.jsonl")
    scores = [line["verification"] for line in found if line["step"] == step and "verification" in line]
    if not scores or not scores[-1]:
        return []
    names = list(dict.fromkeys(name for values in scores[-1].values() for name in values))
    rows = [
        f"| {name} | " + " | ".join(f"{values[it]:.6g}" if it in values else "" for it in names) + " |"
        for name, values in scores[-1].items()
    ]
    return ["| verification set | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|", *rows, ""]
