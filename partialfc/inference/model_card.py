"""Model card of an exported model for the Hugging Face Hub, and its machine-readable form."""

import math
from pathlib import Path
from typing import Any

import msgspec
from huggingface_hub import EvalResult, ModelCard, ModelCardData

import partialfc
from partialfc.config.provenance import Provenance
from partialfc.data.alignment import TEMPLATE
from partialfc.evaluation.metrics import format_scores, scores_with_interval
from partialfc.evaluation.sets import Scores
from partialfc.runtime.versions import git_revision

_CARD = """# {name}, {width}-dimensional face embeddings

Embeds aligned faces. The similarity of two faces is the cosine of their embeddings.
Trained for {steps} steps on {images:,} images of {identities:,} identities (`{pack}`, fingerprint {fingerprint});
exported by partialfc {version} at revision {revision}.

## Use

```python
import partialfc

model = partialfc.load("FOLDER")  # folder of this file
first, second = model.embed(["a.jpg", "b.jpg"])
print(first @ second{threshold})
```

Without partialfc, the same embeddings need onnxruntime, OpenCV and numpy:

```python
import cv2
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")


def read(path, size={size}):
    image = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)  # imread applies the orientation in EXIF
    if image.shape[:2] == (size, size):
        return image
    method = cv2.INTER_AREA if size < min(image.shape[:2]) else cv2.INTER_LINEAR
    return cv2.resize(image, (size, size), interpolation=method)


def embed(paths):
    images = (np.stack([read(path) for path in paths]).astype(np.float32) - 127.5) / 127.5
    images = images.transpose(0, 3, 1, 2)  # [batch, 3, {size}, {size}]
    mirrored = np.ascontiguousarray(images[..., ::-1])
    embeddings = session.run(None, {{"images": images}})[0] + session.run(None, {{"images": mirrored}})[0]
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
```

- Color: RGB; values: float32, (x - 127.5) / 127.5.
- Size: {size} x {size}; larger images shrink by averaging over areas (INTER_AREA), smaller ones grow linearly. Other
  interpolations give other embeddings.
- Mirroring: the sum of the unnormalized embeddings, float32 [batch, {width}], of an image and its mirror image, then L2-normalized.
- Alignment: a similarity transform that maps eyes, nose and corners of the mouth to these (x, y) of 112 x 112 pixels, unless
  the training set was aligned otherwise: {points}.

The embeddings of `model.onnx` match those of `model.safetensors`: minimum cosine {cosine:.7f} on {checked} faces.

## Intended use and limits

The model verifies whether two faces show the same person, and finds the most similar faces in a gallery. Faces must be aligned
like those of the training set (usually 112 x 112 by the five-point template). The model does not detect or align faces, and
does not detect spoofing. A threshold corresponds to an error rate on one set of people and images. The rate differs on
other sets and between demographic groups: measure it on your own data before you base decisions on it. Scores by demographic
group were not measured. The license of the training images, which is unknown to this package, may limit the use of the model.

## Scores

{scores}

## Recipe

```yaml
{recipe}
```
"""


def build_model_card(
    provenance: Provenance, steps: int, scores: dict[str, Scores], cosine: float, checked: int
) -> ModelCard:
    """Return a model card whose front matter contains the scores as a model index.

    `cosine` is the minimum between ONNX and torch.
    """
    config = provenance.config
    settings = config.backbone
    name = str(msgspec.to_builtins(settings)["name"])
    pack = Path(config.data.path).name
    data = ModelCardData(
        library_name="partialfc",
        pipeline_tag="image-feature-extraction",
        tags=[
            "face-recognition",
            "face-verification",
            "onnx",
            name,
            msgspec.to_builtins(config.loss)["name"],
        ],
        metrics=["accuracy"],
        model_name=f"{name}-{pack}",
        eval_results=_eval_results(scores) or None,
    )
    threshold = next(iter(scores.values()), {}).get("threshold", math.nan)
    text = _CARD.format(
        name=name,
        width=settings.embedding_size,
        size=settings.input_size,
        steps=steps,
        images=provenance.num_samples,
        identities=provenance.num_classes,
        pack=pack,
        fingerprint=provenance.pack,
        version=partialfc.__version__,
        revision=git_revision(),
        threshold="" if math.isnan(threshold) else f" > {threshold:.3f}",
        cosine=cosine,
        points=", ".join(f"({it.real}, {it.imag})" for it in TEMPLATE),
        checked=checked,
        scores=_scores_table(scores),
        recipe=provenance.to_yaml().rstrip(),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def build_export_config(provenance: Provenance, steps: int, scores: dict[str, Scores]) -> dict[str, Any]:
    """Return the machine-readable description: inputs, outputs, origin, scores."""
    settings = provenance.config.backbone
    return {
        "library_name": "partialfc",
        "version": partialfc.__version__,
        "revision": git_revision(),
        "backbone": msgspec.to_builtins(settings),
        "input": {
            "size": settings.input_size,
            "channels": "RGB",
            "mean": 127.5,
            "std": 127.5,
            "resize": "area if it shrinks, else linear",
            "mirror": "sum with the mirror image, then L2-normalized",
        },
        "embedding": settings.embedding_size,
        "trained": {
            "steps": steps,
            "images": provenance.num_samples,
            "identities": provenance.num_classes,
            "pack": Path(provenance.config.data.path).name,
            "fingerprint": provenance.pack,
        },
        "verification": scores,
    }


def _eval_results(scores: dict[str, Scores]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="face-verification",
            dataset_type=name,
            dataset_name=name,
            metric_type=metric,
            metric_value=round(values[metric], 6),
            metric_name=metric,
        )
        for name, values in scores.items()
        for metric in scores_with_interval(values)
        if not math.isnan(values[metric])
    ]


def _scores_table(scores: dict[str, Scores]) -> str:
    if not scores:
        return "None: no verification set was evaluated at this step."
    names = list(dict.fromkeys(it for values in scores.values() for it in format_scores(values)))
    rows = [
        f"| {name} | " + " | ".join(format_scores(values).get(it, "") for it in names) + " |"
        for name, values in scores.items()
    ]
    said = "In brackets: 95 % bootstrap confidence interval over pairs."
    return "\n".join(
        ["| set | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|", *rows, "", said]
    )
