"""IJB-B and IJB-C: templates of several images, compared 1:1 and searched 1:N, from the released files.

    loose_crop/1.jpg ...                   meta/ijbc_name_5pts_score.txt        name x1 y1 ... x5 y5 score
    meta/ijbc_face_tid_mid.txt             name template media
    meta/ijbc_template_pair_label.txt      template template label
    meta/ijbc_1N_gallery_G1.csv, _G2.csv, ijbc_1N_probe_mixed.csv    TEMPLATE_ID,SUBJECT_ID,... (IJB-B:
        _S1, _S2)

As in the public scripts, each unnormalized embedding is weighted by its detector score. A template is the sum
over its media of the mean of their images, L2-normalized.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
from partialfc.evaluation.ijb_files import SUFFIX, join_some, read_images, read_int_columns, read_subjects
from partialfc.evaluation.sets import Scores, SetEvaluation, check_embeddings

_FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_HEADLINE = "tar@far=1e-4"
_AT_ONCE = 1 << 12  # images
_COSINES = 1 << 24  # similarities per block

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
    warning: str | None = None  # what was left out

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
        return SetEvaluation(scores, _format_scores(scores), self._iter_figures(similarity), self.warning)

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
    return any(folder.glob(f"meta/*{SUFFIX}"))


def load_ijb(folder: Path, *, skip_unusable: bool = False) -> IJBSet:
    """Load a set from a folder.

    Args:
        folder: Folder of the set.
        skip_unusable: Whether to leave out images without five different points, and templates whose scores are all
            0, with their pairs.

    Returns:
        IJB-B or IJB-C.

    Raises:
        InputError: If a file is invalid, files are inconsistent, or images are unusable and not left out.
    """
    named = sorted(folder.glob(f"meta/*{SUFFIX}"))
    if len(named) != 1:
        raise InputError(f"{folder}: {len(named)} files meta/*{SUFFIX}; expected one, such as ijbc{SUFFIX}")
    name = named[0].name.removesuffix(SUFFIX)
    shown, all_ids, unusable = read_images(folder, name, skip_unusable=skip_unusable)
    known, templates = np.unique(shown.templates, return_inverse=True)
    index = _TemplateIndex(known, np.setdiff1d(all_ids, known))
    pairs = folder / f"meta/{name}_template_pair_label.txt"
    first, second, label = read_int_columns(pairs, 3)
    if (wrong := np.flatnonzero((label != 0) & (label != 1))).size:
        raise InputError(f"{pairs}: pair {wrong[0] + 1} has the label {label[wrong[0]]}; expected 0 or 1")
    kept = index.is_kept(first) & index.is_kept(second)
    galleries, probes = _load_galleries(folder / "meta", name, index)
    return IJBSet(
        path=folder,
        name=name,
        files=shown.files,
        points=shown.points,
        weights=shown.weights(),
        templates=templates.astype(np.int32),
        num_templates=len(known),
        first=index.find(first[kept], pairs),
        second=index.find(second[kept], pairs),
        is_same=label[kept] == 1,
        galleries=galleries,
        probes=probes,
        warning=_describe_skipped(name, unusable, len(index.skipped), int((~kept).sum())),
    )


def _describe_skipped(name: str, unusable: list[str], templates: int, pairs: int) -> str | None:
    if not unusable:
        return None
    return f"{name}: {templates} templates and {pairs} pairs are left out; {join_some(unusable)}"


@dataclass(frozen=True)
class _TemplateIndex:
    """Ids of the templates of a set, ascending."""

    known: NDArray[np.int64]
    skipped: NDArray[np.int64]  # left out

    def is_kept(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return a mask of the ids that are not left out."""
        return ~np.isin(ids, self.skipped)

    def find(self, ids: NDArray[np.int64], path: Path) -> TemplateIndices:
        """Return the indices of templates from their ids.

        Raises:
            InputError: If one has no images.
        """
        places = np.minimum(np.searchsorted(self.known, ids), len(self.known) - 1)
        if (wrong := np.flatnonzero(self.known[places] != ids)).size:
            raise InputError(f"{path}: template {ids[wrong[0]]} has no images in *{SUFFIX}")
        return places.astype(np.int32)


def _load_galleries(
    meta: Path, name: str, index: _TemplateIndex
) -> tuple[list[SubjectTemplates], SubjectTemplates | None]:
    """Return the two galleries and the probes, if they exist."""
    paths = [meta / f"{name}_1N_gallery_{it}.csv" for it in ("G1", "G2")]
    if not paths[0].exists():
        paths = [meta / f"{name}_1N_gallery_{it}.csv" for it in ("S1", "S2")]
    if not paths[0].exists():
        return [], None
    *galleries, probes = (
        _load_subjects(path, index) for path in (*paths, meta / f"{name}_1N_probe_mixed.csv")
    )
    return galleries, probes


def _load_subjects(path: Path, index: _TemplateIndex) -> SubjectTemplates:
    ids, subjects = read_subjects(path)
    kept = index.is_kept(ids)
    return SubjectTemplates(index.find(ids[kept], path), subjects[kept])
