"""Open-set and closed-set identification in a gallery. numpy only.

A probe is mated if its subject is in the gallery, which may have several templates per subject; otherwise it
is non-mated.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from partialfc.errors import InputError
from partialfc.evaluation.metrics import format_rate

RANKS = (1, 5, 10)
FPIRS = (1e-2, 1e-1)  # false positive identification rates to report
_BLOCK = 1 << 24  # similarities per block

Templates = NDArray[np.float32]  # `[n, D]`, L2-normalized
Subjects = NDArray[np.int64]  # `[n]`
UNKNOWN_SUBJECT = -1  # in a gallery: a subject of no probe


def identify(
    probes: Templates,
    probe_subjects: Subjects,
    gallery: Templates,
    gallery_subjects: Subjects,
    ranks: Sequence[int] = RANKS,
) -> dict[str, float]:
    """Return the identification scores of probes in a gallery.

    - rank1 and so on: fraction of mated probes with a mate among that many nearest templates. Equally near
    non-mates count as nearer.
    - tpir@fpir=1e-2 and so on: fraction of mated probes whose nearest mate exceeds a threshold. At most that
    fraction of the non-mated probes exceeds the threshold for any template. Rates that need more non-mated
    probes are omitted.

    Raises:
        InputError: If no probe is mated, or a template is not finite.
    """
    _check_finite(probes, gallery)
    order = np.argsort(gallery_subjects, kind="stable")
    gallery, ascending = gallery[order], gallery_subjects[order]
    starts, stops = (np.searchsorted(ascending, probe_subjects, side=side) for side in ("left", "right"))
    places, to_mate, best = [], [], []
    for block, similarity in _iter_similarities(probes, gallery):
        for row, (start, stop) in enumerate(zip(starts[block], stops[block], strict=True)):
            if start == stop:
                best.append(similarity[row].max())
                continue
            own = similarity[row, start:stop].max()
            similarity[row, start:stop] = -np.inf
            places.append(1 + np.count_nonzero(similarity[row] >= own))
            to_mate.append(own)
    place, mate, strangers = (np.array(it) for it in (places, to_mate, best))
    if not len(place):
        raise InputError("no probe's subject is in the gallery")
    found = {f"rank{rank}": float((place <= rank).mean()) for rank in ranks}
    descending = -np.sort(-strangers)
    for fpir in FPIRS:
        if fpir * len(strangers) > 1 - 1e-9:
            found[f"tpir@fpir={format_rate(fpir)}"] = float(
                (mate > descending[_max_count(fpir, len(strangers))]).mean()
            )
    return found


def identify_insightface(
    probes: Templates, probe_subjects: Subjects, gallery: Templates, gallery_subjects: Subjects
) -> dict[str, float]:
    """Return the scores of insightface's script (ijb_1n.py), where every probe has exactly one mate.

    insightface_rank1 and so on; insightface_tpir@fpir=F: fraction of mates above the n-th largest of all
    non-mate similarities, with n = ceil(F probes).

    Raises:
        InputError: If a subject is in the gallery twice, or a probe's is missing.
    """
    _check_finite(probes, gallery)
    mates = find_mates(probe_subjects, gallery_subjects)
    if (missing := np.flatnonzero(mates < 0)).size:
        raise InputError(f"subject {probe_subjects[missing[0]]} of a probe is in no gallery")
    expected = [int(np.ceil(fpir * len(probes))) for fpir in FPIRS]
    largest = np.empty(0, np.float32)
    places, to_mate = [], []
    for block, similarity in _iter_similarities(probes, gallery):
        rows = np.arange(len(similarity))
        own = similarity[rows, mates[block]]
        places.append((similarity >= own[:, None]).sum(axis=1))
        to_mate.append(own)
        similarity[rows, mates[block]] = -2
        together = np.concatenate([largest, similarity.ravel()])
        largest = np.partition(together, -min(max(expected), len(together)))[-max(expected) :]
    place, mate = np.concatenate(places), np.concatenate(to_mate)
    descending = -np.sort(-largest)
    found = {f"insightface_rank{rank}": float((place <= rank).mean()) for rank in RANKS}
    for fpir, count in zip(FPIRS, expected, strict=True):
        found[f"insightface_tpir@fpir={format_rate(fpir)}"] = float((mate > descending[count - 1]).mean())
    return found


def find_mates(probe_subjects: Subjects, gallery_subjects: Subjects) -> NDArray[np.int64]:
    """Return the gallery index `[P]` of each probe's subject, or -1.

    Raises:
        InputError: If a subject is in the gallery twice.
    """
    order = np.argsort(gallery_subjects, kind="stable")
    ascending = gallery_subjects[order]
    if (twice := ascending[1:][ascending[1:] == ascending[:-1]]).size:
        raise InputError(f"subject {twice[0]} is in the gallery twice; expected one template per subject")
    places = np.minimum(np.searchsorted(ascending, probe_subjects), len(gallery_subjects) - 1)
    return np.where(ascending[places] == probe_subjects, order[places], -1)


def _check_finite(probes: Templates, gallery: Templates) -> None:
    """Raise InputError if a template is not finite: no similarity is less than NaN, which would rank first."""
    for name, templates in (("probes", probes), ("gallery", gallery)):
        if wrong := int((~np.isfinite(templates)).any(axis=1).sum()):
            raise InputError(
                f"{name}: expected finite templates, got {wrong} of {len(templates)} that are not"
            )


def _iter_similarities(probes: Templates, gallery: Templates) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield the similarities of blocks of probes to the gallery."""
    step = max(1, _BLOCK // len(gallery))
    for start in range(0, len(probes), step):
        block = slice(start, min(start + step, len(probes)))
        yield block, probes[block] @ gallery.T


def _max_count(fraction: float, count: int) -> int:
    """Return the largest count that is at most this fraction of `count`."""
    return int(np.floor(fraction * count + 1e-9))
