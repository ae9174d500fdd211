"""IJB-B and IJB-C: templates of several images, compared 1:1 and searched 1:N, from the released files.

    loose_crop/1.jpg ...                   meta/ijbc_name_5pts_score.txt        name x1 y1 ... x5 y5 score
    meta/ijbc_face_tid_mid.txt             name template media
    meta/ijbc_template_pair_label.txt      template template label
    meta/ijbc_1N_gallery_G1.csv, _G2.csv, ijbc_1N_probe_mixed.csv    TEMPLATE_ID,SUBJECT_ID,... (IJB-B:
        _S1, _S2)

As in the public scripts, each unnormalized embedding is weighted by its detector score. A template is the sum
over its media of the mean of their images, L2-normalized.
"""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from partialfc.data import images
from partialfc.data.alignment import FacePoints, align_face
from partialfc.data.images import ImageArray
from partialfc.errors import InputError
from partialfc.evaluation import metrics
from partialfc.evaluation.identification import Subjects, identify, identify_insightface
from partialfc.evaluation.sets import Scores, SetEvaluation, check_embeddings

_FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_HEADLINE = "tar@far=1e-4"
_AT_ONCE = 1 << 12  # images
_COSINES = 1 << 24  # similarities per block
_SUFFIX = "_face_tid_mid.txt"
_INTEGER = re.compile(r"-?[0-9]{1,18}")

TemplateIndices = NDArray[np.int32]  # indices of templates, ordered by template id


@dataclass(frozen=True)
class SubjectTemplates:
    """Template indices `[n]` and their subjects `[n]`."""

    templates: TemplateIndices
    subjects: Subjects


@dataclass(frozen=True)
class IJBSet:
    """IJB-B or IJB-C: N images in T templates, P pairs of templates."""

    path: Path
    name: str  # prefix of its file names
    files: list[str]  # `[N]`
    points: list[FacePoints]  # `[N]`
    weights: NDArray[np.float32]  # `[N]` detector score / number of images of the same media in the template
    templates: TemplateIndices  # `[N]`
    num_templates: int  # T
    first: TemplateIndices  # `[P]`
    second: TemplateIndices  # `[P]`
    is_same: NDArray[np.bool_]  # `[P]`
    galleries: list[SubjectTemplates]  # empty: no 1:N protocol
    probes: SubjectTemplates | None

    def __len__(self) -> int:
        return len(self.files)

    def pixels(self, index: int, size: int) -> ImageArray:
        """Return the face of image `index`, aligned by its points, uint8 RGB `[size, size, 3]`."""
        return align_face(images.read(self.path / "loose_crop" / self.files[index]), self.points[index], size)

    def evaluate(self, embeddings: Tensor) -> SetEvaluation:
        """Return the scores of the 1:1 protocol and, if there are galleries, of the 1:N protocol.

        tar@far=1e-4 and so on: see metrics.tar_at_far. insightface_tar@far=...: by the rule of the public
        script, see metrics.insightface_tars_at_fars. Scores of `identify` are the mean over the two
        galleries; scores of `identify_insightface` use both as one. The figure is the ROC curve.
        """
        check_embeddings(embeddings, self.name)
        templates = self.pool_templates(embeddings)
        similarity = self._pair_similarities(templates)
        found = {
            f"{rule}@far={metrics.format_rate(far)}": tar
            for rule, tars in (
                ("tar", metrics.tars_at_fars(similarity, self.is_same, _FARS)),
                ("insightface_tar", metrics.insightface_tars_at_fars(similarity, self.is_same, _FARS)),
            )
            for far, tar in zip(_FARS, tars, strict=True)
        }
        scores = {_HEADLINE: found[_HEADLINE]} | found | self._identification_scores(templates.numpy())
        if one_kind := metrics.one_kind(self.is_same):
            return SetEvaluation(scores, _format_scores(scores), warning=f"{self.name}: {one_kind}")
        return SetEvaluation(scores, _format_scores(scores), self._iter_figures(similarity))

    def pool_templates(self, embeddings: Tensor) -> Tensor:
        """Return L2-normalized float32 templates `[T, D]`, on the host."""
        sums = torch.zeros(self.num_templates, embeddings.shape[1], dtype=torch.float64)
        for start in range(0, len(self), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            weights = torch.from_numpy(self.weights[part]).double()
            weighted = embeddings[part].cpu().double() * weights[:, None]
            sums.index_add_(0, torch.from_numpy(self.templates[part]), weighted)
        return normalize(sums).float()

    def _iter_figures(self, similarity: NDArray[np.float32]) -> Iterator[tuple[str, ImageArray]]:
        from partialfc.evaluation import plots  # imported late: matplotlib takes a second

        yield "roc", plots.plot_roc(self.name, similarity, self.is_same)

    def _pair_similarities(self, templates: Tensor) -> NDArray[np.float32]:
        """Return the cosine `[P]` of each pair."""
        # One matrix product per first template with all others is faster than its few thousand pairs one by
        # one.
        order = np.argsort(self.first, kind="stable")
        firsts, starts = np.unique(self.first[order], return_index=True)
        bounds = np.append(starts, len(order))
        step = max(1, _COSINES // self.num_templates)
        found = np.empty(len(order), np.float32)
        for place in range(0, len(firsts), step):
            block = firsts[place : place + step]
            with_all = (templates[torch.from_numpy(block)] @ templates.T).numpy()
            pairs = order[bounds[place] : bounds[place + len(block)]]
            found[pairs] = with_all[np.searchsorted(block, self.first[pairs]), self.second[pairs]]
        return found

    def _identification_scores(self, templates: NDArray[np.float32]) -> dict[str, float]:
        if self.probes is None:
            return {}
        probes, subjects = templates[self.probes.templates], self.probes.subjects
        try:
            each = [identify(probes, subjects, templates[it.templates], it.subjects) for it in self.galleries]
            gallery = np.concatenate([it.templates for it in self.galleries])
            known = np.concatenate([it.subjects for it in self.galleries])
            together = identify_insightface(probes, subjects, templates[gallery], known)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None
        common = [name for name in each[0] if all(name in it for it in each)]
        return {name: float(np.mean([it[name] for it in each])) for name in common} | together


def _format_scores(scores: Scores) -> str:
    rates = [it for it in scores if it.startswith(("tar@far=", "rank", "tpir@"))]
    spoken = {
        name: name.replace("tar@far=", "TAR@FAR ").replace("tpir@fpir=", "TPIR@FPIR ") for name in rates
    }
    return ", ".join(f"{spoken[name]} {metrics.percent(scores[name])}" for name in rates)


def is_ijb(folder: Path) -> bool:
    """Return True if the folder contains IJB-B or IJB-C."""
    return any(folder.glob(f"meta/*{_SUFFIX}"))


def load_ijb(folder: Path) -> IJBSet:
    """Load a set from a folder.

    Returns:
        IJB-B or IJB-C.

    Raises:
        InputError: If a file is invalid, or files are inconsistent.
    """
    named = sorted(folder.glob(f"meta/*{_SUFFIX}"))
    if len(named) != 1:
        raise InputError(f"{folder}: {len(named)} files meta/*{_SUFFIX}; expected one, such as ijbc{_SUFFIX}")
    name = named[0].name.removesuffix(_SUFFIX)
    files, points, scores = _read_face_points(folder / f"meta/{name}_name_5pts_score.txt")
    numbers, media = _read_templates(named[0], files)
    known, templates = np.unique(numbers, return_inverse=True)
    pairs = folder / f"meta/{name}_template_pair_label.txt"
    first, second, label = _read_int_columns(pairs, 3)
    if (wrong := np.flatnonzero((label != 0) & (label != 1))).size:
        raise InputError(f"{pairs}: pair {wrong[0] + 1} has the label {label[wrong[0]]}; expected 0 or 1")
    galleries, probes = _load_galleries(folder / "meta", name, known)
    return IJBSet(
        path=folder,
        name=name,
        files=files,
        points=points,
        weights=(scores / _count_media_images(templates, media)).astype(np.float32),
        templates=templates.astype(np.int32),
        num_templates=len(known),
        first=_template_indices(first, known, pairs),
        second=_template_indices(second, known, pairs),
        is_same=label == 1,
        galleries=galleries,
        probes=probes,
    )


def _read_face_points(path: Path) -> tuple[list[str], list[FacePoints], NDArray[np.float64]]:
    """Return names `[N]`, five points `[N]` and scores `[N]`."""
    files, points, scores = [], [], []
    for place, fields in _iter_fields(path, 12):
        try:
            values = np.array([float(it) for it in fields[1:]])
        except ValueError:
            raise InputError(f"{path}: line {place}: no numbers after {fields[0]}") from None
        if not np.isfinite(values).all() or len(set(values[:10])) == 1:
            raise InputError(f"{path}: line {place}: no five points after {fields[0]}")
        files.append(fields[0])
        points.append(values[:10:2] + 1j * values[1:10:2])
        scores.append(values[10])
    return files, points, np.array(scores)


def _read_templates(path: Path, files: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return template and media `[N]` of each image.

    Raises:
        InputError: If the images are not `files`, in the same order.
    """
    numbers = []
    for (place, fields), expected in zip(_iter_fields(path, 3), [*files, None], strict=False):
        if fields[0] != expected:
            found = expected or f"{len(files)} images"
            raise InputError(f"{path}: line {place}: {fields[0]}; the list of points has {found} there")
        if not all(_INTEGER.fullmatch(it) for it in fields[1:]):
            raise InputError(f"{path}: line {place}: {' '.join(fields)}; expected name template media")
        numbers.append((int(fields[1]), int(fields[2])))
    if len(numbers) != len(files):
        raise InputError(f"{path}: {len(numbers)} images; the list of points has {len(files)}")
    columns = np.array(numbers, np.int64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def _count_media_images(templates: NDArray[Any], media: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of images of the same media in the template, for each image `[N]`."""
    together = np.stack([templates.astype(np.int64), media], axis=1)
    _, inverse, counts = np.unique(together, axis=0, return_inverse=True, return_counts=True)
    return counts[inverse.reshape(-1)]


def _iter_fields(path: Path, fields: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the fields of each line."""
    with path.open(encoding="utf-8", errors="surrogateescape") as file:  # names may contain any bytes
        for place, line in enumerate(file, 1):
            found = line.split()
            if len(found) != fields:
                raise InputError(f"{path}: line {place}: {len(found)} fields; expected {fields}")
            yield place, found


def _read_int_columns(path: Path, columns: int) -> list[NDArray[np.int64]]:
    """Read integer columns; a file may have tens of millions of rows."""
    with warnings.catch_warnings():
        # numpy's only report of a field that is not a number.
        warnings.simplefilter("error", DeprecationWarning)
        try:
            found = np.fromfile(path, np.int64, sep=" ")
        except (DeprecationWarning, ValueError):
            raise InputError(f"{path}: expected integers only") from None
    if not found.size or found.size % columns:
        raise InputError(f"{path}: {found.size} numbers; expected {columns} in each line")
    return [found[column::columns] for column in range(columns)]


def _template_indices(
    template_ids: NDArray[np.int64], known_ids: NDArray[np.int64], path: Path
) -> TemplateIndices:
    """Return the indices of templates from their ids.

    Raises:
        InputError: If one has no images.
    """
    places = np.minimum(np.searchsorted(known_ids, template_ids), len(known_ids) - 1)
    if (wrong := np.flatnonzero(known_ids[places] != template_ids)).size:
        raise InputError(f"{path}: template {template_ids[wrong[0]]} has no images")
    return places.astype(np.int32)


def _load_galleries(
    meta: Path, name: str, known: NDArray[np.int64]
) -> tuple[list[SubjectTemplates], SubjectTemplates | None]:
    """Return the two galleries and the probes, if they exist."""
    paths = [meta / f"{name}_1N_gallery_{it}.csv" for it in ("G1", "G2")]
    if not paths[0].exists():
        paths = [meta / f"{name}_1N_gallery_{it}.csv" for it in ("S1", "S2")]
    if not paths[0].exists():
        return [], None
    return [_load_subject_templates(path, known) for path in paths], _load_subject_templates(
        meta / f"{name}_1N_probe_mixed.csv", known
    )


def _load_subject_templates(path: Path, known: NDArray[np.int64]) -> SubjectTemplates:
    """Return the templates of a file; a template of several images has several lines."""
    found: dict[int, int] = {}
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        for place, line in enumerate(file, 1):
            fields = [it.strip() for it in line.split(",")[:2]]
            if place == 1 and not _INTEGER.fullmatch(fields[0]):
                continue  # header
            if len(fields) < 2 or not all(_INTEGER.fullmatch(it) for it in fields):
                raise InputError(f"{path}: line {place}: expected TEMPLATE_ID,SUBJECT_ID,...")
            template, subject = map(int, fields)
            if found.setdefault(template, subject) != subject:
                raise InputError(f"{path}: line {place}: template {template} of a second subject, {subject}")
    if not found:
        raise InputError(f"{path}: no templates")
    numbers, subjects = np.array(list(found.items()), np.int64).T
    return SubjectTemplates(_template_indices(numbers, known, path), subjects)
