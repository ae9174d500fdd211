"""Packing of images: sources are merged, relabeled, resized if necessary, and written."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from partialfc.data import images
from partialfc.data.packs.item import PackItem
from partialfc.data.packs.names import write_names
from partialfc.data.packs.pack_writer import UNFINISHED, EncodedSample, resume_pack
from partialfc.data.packs.sources import FileSource, Source, open_source
from partialfc.errors import InputError
from partialfc.input_files import read_file
from partialfc.runtime import counter_rng
from partialfc.runtime.error_messages import format_error
from partialfc.runtime.progress import map_in_threads, progress_bar

DAMAGED = "damaged.txt"  # in a pack's folder: the unreadable images
_JPEG = b"\xff\xd8\xff"


@dataclass(frozen=True)
class PackOptions:
    """Options of packing."""

    size: int = 112  # height and width in pixels
    quality: int = 95  # JPEG quality of images that are re-encoded
    # Identities with fewer images are removed; None: an identity without images is an error.
    min_images: int | None = None
    shuffle: int | None = None  # seed of the image order; None: order of the sources
    root: Path | None = None  # root of the paths in .lst files; None: the folder of each file
    skip_damaged: bool = False  # skip unreadable images; otherwise they are one error, reported at the end

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
                raise InputError(f"--{name.replace('_', '-')} {value}: expected {low} to {high}")


def pack_images(
    inputs: Sequence[Path], folder: Path, options: PackOptions = PackOptions(), *, progress: bool = False
) -> tuple[int, int]:
    """Pack the sources at `inputs` into `folder`.

    The identities of each source follow those of the previous one. A JPEG of the target size keeps its bytes;
    anything else is resized and re-encoded. Unreadable images are listed in DAMAGED. Rerun the same call to
    resume; the result is bitwise identical.

    Args:
        inputs: Sources, see `sources.open_source`.
        folder: Folder of the pack.
        options: Options of packing.
        progress: Whether to show a progress bar on stderr.

    Returns:
        Numbers of identities and images.

    Raises:
        InputError: If images are unreadable and not skipped, or if an identity has no images.
    """
    sparse = options.min_images is not None
    sources = [_relabel(open_source(path, allow_empty=sparse, root=options.root), options) for path in inputs]
    names = _names(sources)
    if options.shuffle is not None:
        sources = [_shuffle(inputs, sources, options.shuffle)]
    total = _total_images(sources)

    def rest(done: int) -> Iterator[EncodedSample]:
        damaged = _Damaged(folder)
        start = damaged.first_after(done)
        faces = itertools.islice(_iter_merged(sources), start, None)
        left = None if total is None else total - start
        shown = progress_bar(faces, "packing", enabled=progress, total=left)
        return damaged.passed(map_in_threads(lambda face: _sample(face, options), shown), start, options)

    plan = _plan_hash(options, [it.source for it in sources])
    written = resume_pack(folder, rest, plan=plan, size=options.size)
    write_names(folder, names)
    return written


def _names(sources: Sequence["_RelabeledSource"]) -> dict[int, str]:
    """Return the names of all classes, in the order of `_iter_merged`."""
    found: dict[int, str] = {}
    first = 0
    for one in sources:
        names = one.source.names()
        if not names:  # a stream, whose classes are known once it has been read
            return {}
        kept = {label: label for label in names} if one.classes is None else one.classes
        found |= {first + new: names[old] for old, new in kept.items()}
        first += max(kept.values(), default=-1) + 1
    return found


class _Damaged:
    """List of unreadable images, stored with an unfinished pack so that it can be resumed."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / UNFINISHED / "damaged"
        lines = self._path.read_text(errors="surrogateescape").splitlines() if self._path.exists() else []
        self._known = {int(place): text for place, _, text in (it.partition("\t") for it in lines)}

    def first_after(self, done: int) -> int:
        """Return the index of the first image to read, given the number of packed images."""
        place, packed = 0, 0
        for damaged in sorted(self._known):
            if packed + damaged - place > done:
                break
            packed += damaged - place
            place = damaged + 1
        return place + done - packed

    def passed(
        self, samples: Iterable[EncodedSample | InputError], start: int, packing: PackOptions
    ) -> Iterator[EncodedSample]:
        """Yield the samples without the unreadable ones, which are listed.

        Raises:
            InputError: At the end, unless unreadable images are skipped.
        """
        with self._path.open("a", errors="surrogateescape") as file:
            for place, sample in enumerate(samples, start):
                if not isinstance(sample, InputError):
                    yield sample
                elif place not in self._known:
                    self._known[place] = format_error(sample)
                    file.write(f"{place}\t{self._known[place]}\n")
                    file.flush()
        texts = [self._known[place] for place in sorted(self._known)]
        listing = self._folder / DAMAGED
        listing.unlink(missing_ok=True)
        if texts:
            listing.write_text("".join(f"{it}\n" for it in texts), errors="surrogateescape")
        if texts and not packing.skip_damaged:
            raise InputError(
                f"{self._folder}: {len(texts)} unreadable images, listed in {listing}; the first: {texts[0]}; pass "
                "--skip-damaged to skip them"
            )


def _sample(face: PackItem, packing: PackOptions) -> EncodedSample | InputError:
    try:
        return face.label, _encode_item(face, packing)
    except InputError as error:
        return error


@dataclass(frozen=True)
class _RelabeledSource:
    """Source with changed class numbers."""

    source: Source
    total: int | None  # number of images; None if unknown before reading
    classes: dict[int, int] | None = None  # new number of each retained class; None: all classes unchanged

    def faces(self) -> Iterator[PackItem]:
        for face in self.source.items():
            if self.classes is None:
                yield face
            elif face.label in self.classes:
                yield face._replace(label=self.classes[face.label])


def _relabel(source: Source, packing: PackOptions) -> _RelabeledSource:
    """Return the source without the identities that have too few images."""
    if packing.min_images is None:
        return _RelabeledSource(source, source.num_images())
    counts = Counter(source.labels())
    kept = sorted(label for label, count in counts.items() if count >= packing.min_images)
    total = sum(counts[label] for label in kept)
    return _RelabeledSource(source, total, {label: number for number, label in enumerate(kept)})


def _shuffle(inputs: Sequence[Path], sources: Sequence[_RelabeledSource], seed: int) -> _RelabeledSource:
    """Return all images of the sources in a seeded random order."""
    for path, it in zip(inputs, sources, strict=True):
        if not isinstance(it.source, FileSource):
            raise InputError(
                f"{path}: --shuffle requires folders of identities or .lst files; this source is a stream"
            )
    faces = list(_iter_merged(sources))
    order = counter_rng.permute_indices(
        counter_rng.derive_key(seed, "packing"), np.arange(len(faces)), len(faces)
    )
    return _RelabeledSource(FileSource([faces[place] for place in order.tolist()]), len(faces))


def _iter_merged(sources: Iterable[_RelabeledSource]) -> Iterator[PackItem]:
    """Yield the images of all sources; the classes of each follow those of the previous one."""
    first = end = 0
    for source in sources:
        for face in source.faces():
            label = first + face.label
            end = max(end, label + 1)
            yield face._replace(label=label)
        first = end


def _total_images(sources: Sequence[_RelabeledSource]) -> int | None:
    totals = [source.total for source in sources]
    return None if None in totals else sum(total for total in totals if total is not None)


def _plan_hash(packing: PackOptions, sources: Sequence[Source]) -> str:
    """Return a hash that changes with everything that affects the pack."""
    digest = hashlib.sha256(repr(replace(packing, skip_damaged=False)).encode())
    for source in sources:
        digest.update(b"source")
        for fact in source.fingerprint_parts():
            digest.update(fact.encode(errors="surrogateescape") + b"\n")
    return digest.hexdigest()


def _encode_item(item: PackItem, packing: PackOptions) -> bytes:
    content = item.content if isinstance(item.content, bytes) else read_file(Path(item.content))
    try:
        pixels = images.decode(content)
    except InputError as error:
        raise InputError(f"{item.location}: {error}") from None
    if content.startswith(_JPEG) and pixels.shape == (packing.size, packing.size, 3):
        return content
    return images.encode_jpeg(images.resize(pixels, packing.size), packing.quality)
