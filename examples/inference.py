"""python examples/inference.py MODEL GALLERY FACE [FACE ...]

Identify faces in a gallery. GALLERY has a folder of aligned faces for each person. MODEL is a run, a folder of
`partialfc export`, or weights.
"""

import argparse
from pathlib import Path

import numpy as np

import partialfc


def enrolled(model: partialfc.Recognizer, gallery: Path) -> tuple[list[str], np.ndarray]:
    """Return names `[n]` and the L2-normalized mean embedding `[n, D]` of each person."""
    names = sorted(folder.name for folder in gallery.iterdir() if folder.is_dir())
    templates = np.stack([model.embed(sorted((gallery / name).iterdir())).mean(0) for name in names])
    return names, templates / np.linalg.norm(templates, axis=1, keepdims=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("model"), parser.add_argument("gallery", type=Path)
    parser.add_argument("faces", nargs="+")
    parser.add_argument("--threshold", type=float, default=0.3, help="from partialfc evaluate")
    options = parser.parse_args()
    model = partialfc.load(options.model)
    names, templates = enrolled(model, options.gallery)
    for face, similarities in zip(options.faces, model.embed(options.faces) @ templates.T, strict=True):
        best = int(similarities.argmax())
        found = names[best] if similarities[best] > options.threshold else f"unknown (nearest {names[best]})"
        print(f"{face}: {found}, {similarities[best]:.4f}")
