"""From faces to a pack: sources merged, renumbered, resized where they have to be, and written."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from partialfc.data import images
from partialfc.data.packs.pack_writer import Sample, resume_pack
from partialfc.data.packs.sources import Face, Files, Source, opened
from partialfc.errors import InputError
from partialfc.runtime import randomness
from partialfc.runtime.progress import in_order, tracked

_JPEG = b"\xff\xd8\xff"


@dataclass(frozen=True)
class Packing:
    """How images are packed."""

    size: int = 112  # pixels, height and width
    quality: int = 95  # of the JPEGs made of images that are no JPEG of that size
    min_images: int | None = None  # identities with fewer are left out; unset, one without any is an error
    shuffle: int | None = None  # seed of the order of the images; unset, by source, and as they stand there

    def __post_init__(self) -> None:
        bounds = (
            ("size", 1, 1 << 15),
            ("quality", 1, 100),
            ("min_images", 0, 1 << 31),
            ("shuffle", 0, 1 << 62),
        )
        for name, low, high in bounds:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InputError(f"--{name.replace('_', '-')} {value}: wanted {low} to {high}")


def pack(
    inputs: Sequence[Path], folder: Path, packing: Packing = Packing(), *, progress: bool = False
) -> tuple[int, int]:
    """Pack the sources at `inputs` into `folder`; returns the numbers of identities and of images.

    What a source may be: see sources.opened. The identities of each source follow those of the source before, and
    no two are taken for one. A JPEG of the wanted size keeps its bytes; anything else is resized and encoded.
    A call that was interrupted is gone on with by the same call, and ends in the same bytes. progress: show a bar
    on stderr. InputError names an identity without images, and an image that cannot be read.
    """
    sources = [_renumbered(opened(path, sparse=packing.min_images is not None), packing) for path in inputs]
    if packing.shuffle is not None:
        sources = [_shuffled(inputs, sources, packing.shuffle)]
    total = _total(sources)

    def rest(done: int) -> Iterator[Sample]:
        faces = itertools.islice(_merged(sources), done, None)
        left = None if total is None else total - done
        shown = tracked(faces, "packing", shown=progress, total=left)
        return in_order(lambda face: (face.label, _encoded(face, packing)), shown)

    return resume_pack(folder, rest, plan=_plan(packing, [it.source for it in sources]), size=packing.size)


@dataclass(frozen=True)
class _Renumbered:
    """A source with other classes for its own."""

    source: Source
    total: int | None  # images; None where only going through them tells
    classes: dict[int, int] | None = None  # of those that are kept; unset: all, as they are

    def faces(self) -> Iterator[Face]:
        for face in self.source.faces():
            if self.classes is None:
                yield face
            elif face.label in self.classes:
                yield face._replace(label=self.classes[face.label])


def _renumbered(source: Source, packing: Packing) -> _Renumbered:
    """Without the identities that have too few images."""
    if packing.min_images is None:
        return _Renumbered(source, source.total())
    counts = Counter(source.labels())
    kept = sorted(label for label, count in counts.items() if count >= packing.min_images)
    total = sum(counts[label] for label in kept)
    return _Renumbered(source, total, {label: number for number, label in enumerate(kept)})


def _shuffled(inputs: Sequence[Path], sources: Sequence[_Renumbered], seed: int) -> _Renumbered:
    """All images of the sources in the order of a seed."""
    for path, it in zip(inputs, sources, strict=True):
        if not isinstance(it.source, Files):
            raise InputError(
                f"{path}: --shuffle wants folders of identities or .lst listings; this is read as a stream"
            )
    faces = list(_merged(sources))
    order = randomness.permuted(randomness.key(seed, "packing"), np.arange(len(faces)), len(faces))
    return _Renumbered(Files([faces[place] for place in order.tolist()]), len(faces))


def _merged(sources: Iterable[_Renumbered]) -> Iterator[Face]:
    """The sources one after the other, the classes of each after those before."""
    first = end = 0
    for source in sources:
        for face in source.faces():
            label = first + face.label
            end = max(end, label + 1)
            yield face._replace(label=label)
        first = end


def _total(sources: Sequence[_Renumbered]) -> int | None:
    totals = [source.total for source in sources]
    return None if None in totals else sum(total for total in totals if total is not None)


def _plan(packing: Packing, sources: Sequence[Source]) -> str:
    """Another one where something else would be packed."""
    digest = hashlib.sha256(repr(packing).encode())
    for source in sources:
        digest.update(b"source")
        for fact in source.facts():
            digest.update(fact.encode(errors="surrogateescape") + b"\n")
    return digest.hexdigest()


def _encoded(face: Face, packing: Packing) -> bytes:
    content = face.content if isinstance(face.content, bytes) else Path(face.content).read_bytes()
    try:
        pixels = images.decode(content)
    except InputError as error:
        raise InputError(f"{face.place}: {error}") from None
    if content.startswith(_JPEG) and pixels.shape == (packing.size, packing.size, 3):
        return content
    return images.encode_jpeg(images.resized(pixels, packing.size), packing.quality)
