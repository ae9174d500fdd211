"""Model-parallel Partial-FC training of face recognition for huge identity counts.

    model = partialfc.load("output/mine")
    first, second = model.embed(["a.jpg", "b.jpg"])
    similarity = first @ second

Public names are imported on first use.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from partialfc.data import RecordDataset
    from partialfc.evaluation.metrics import verify
    from partialfc.head import PartialFC
    from partialfc.inference.recognizer import Recognizer, load

__all__ = ["PartialFC", "Recognizer", "RecordDataset", "__version__", "load", "verify"]

__version__ = "0.3.0"

# OpenCV refuses larger images before it allocates memory. It reads this when it is imported.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "100000000")

_LAZY_IMPORTS = {
    "PartialFC": "partialfc.head",
    "Recognizer": "partialfc.inference.recognizer",
    "RecordDataset": "partialfc.data",
    "load": "partialfc.inference.recognizer",
    "verify": "partialfc.evaluation.metrics",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module 'partialfc' has no attribute {name!r}")
    return getattr(import_module(_LAZY_IMPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
