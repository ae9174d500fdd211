"""Model card of an exported model for the Hugging Face Hub, and its machine-readable form."""

import math
from pathlib import Path
from typing import Any

import msgspec
from huggingface_hub import EvalResult, ModelCard, ModelCardData

import partialfc
from partialfc.config.provenance import Provenance
from partialfc.evaluation.metrics import format_scores, scores_with_interval
from partialfc.evaluation.sets import Scores
from partialfc.runtime.versions import git_revision

_CARD = """# {name}, {width} numbers per face

Embeds aligned faces: the similarity of two faces is the cosine of their embeddings.
Trained for {steps} steps on {images:,} images of {identities:,} identities (`{pack}`, fingerprint {fingerprint});
exported by partialfc {version} at revision {revision}.

## Use

```python
import partialfc

model = partialfc.load("FOLDER")  # with this file in it
first, second = model.embed(["a.jpg", "b.jpg"])
print(first @ second{threshold})
```

`model.onnx` takes `images`, float32 [batch, 3, {size}, {size}]: RGB, (x - 127.5) / 127.5; it gives `embeddings`, float32
[batch, {width}], to be normalised, best as the sum over an image and its mirror image. It gives the embeddings of
`model.safetensors`: least cosine {cosine:.7f} on {checked} faces.

## Intended use and limits

For faces that are cut out and aligned as those it was trained on (112 x 112 by the five-point template in most of the
field): whether two of them show one person, and which of a gallery are most alike. It does not find or align faces, and
says nothing of who is alive, consents, or is who they say. A threshold stands for a rate of errors on one set of people
and pictures; on others the rate differs, and it differs between groups of people: measure it on your own before a
decision hangs on it. Scores by group of people were not measured. The licence of the training images, which this package does not know, may limit its use.

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
        "input": {"size": settings.input_size, "channels": "RGB", "mean": 127.5, "std": 127.5},
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
