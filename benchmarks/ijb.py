"""Benchmark of IJB-C evaluation at full size with random embeddings, without a network: time and memory.

    python -m benchmarks.ijb [--share 1.0] [--width 512]

469,375 images of 23,124 templates of 3,531 subjects, 15,658,489 pairs, 19,593 probes; --share: fraction of
these.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from benchmarks.process_memory import ProcessMemory
from partialfc.evaluation.ijb import load_ijb

IMAGES, TEMPLATES, SUBJECTS, PAIRS = 469_375, 23_124, 3_531, 15_658_489
Result = TypeVar("Result")


def main() -> None:
    parser = argparse.ArgumentParser(description="What IJB-C takes at its full size.")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--width", type=int, default=512)
    arguments = parser.parse_args()
    images, templates, subjects, pairs = (
        max(1, round(it * arguments.share)) for it in (IMAGES, TEMPLATES, SUBJECTS, PAIRS)
    )
    with tempfile.TemporaryDirectory() as folder:
        draws = np.random.default_rng(0)
        template_of = np.sort(
            np.concatenate([np.arange(templates), draws.integers(templates, size=images - templates)])
        )
        subject_of = np.concatenate(
            [np.arange(subjects), draws.integers(subjects, size=templates - subjects)]
        )
        write_ijb(Path(folder), template_of, subject_of, pairs, draws)
        ijb = time_and_print("reading the lists", lambda: load_ijb(Path(folder)))
    directions = draws.normal(size=(subjects, arguments.width)).astype(np.float32)
    embeddings = torch.from_numpy(directions[subject_of[template_of]])
    embeddings += 8 * torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(0))
    print(f"{embeddings.nbytes / 2**20:.0f} MiB of embeddings [{len(embeddings)}, {arguments.width}]")
    print(time_and_print("scoring", lambda: ijb.evaluate(embeddings)).summary)


def time_and_print(what: str, compute: Callable[[], Result]) -> Result:
    memory, began = ProcessMemory("cpu"), time.perf_counter()
    result = compute()
    print(
        f"{what}: {time.perf_counter() - began:.1f} s, {memory.peak() / 2**20:.0f} MiB more at most",
        flush=True,
    )
    return result


def write_ijb(
    folder: Path, template_of: np.ndarray, subject_of: np.ndarray, pairs: int, draws: np.random.Generator
) -> None:
    """Write the lists of IJB-C: template i of subject i is in a gallery, the others are probes."""
    meta = folder / "meta"
    meta.mkdir()
    media = np.arange(len(template_of)) // 3
    with (meta / "ijbc_name_5pts_score.txt").open("w") as file:
        file.writelines(
            f"{i}.jpg 38.3 51.7 73.5 51.5 56.0 71.7 41.5 92.4 70.7 92.2 0.98\n" for i in range(len(media))
        )
    with (meta / "ijbc_face_tid_mid.txt").open("w") as file:
        file.writelines(f"{i}.jpg {t} {m}\n" for i, (t, m) in enumerate(zip(template_of, media, strict=True)))
    subjects = int(subject_of.max()) + 1
    first = np.sort(draws.integers(subjects, size=pairs))  # gallery templates
    second = draws.integers(len(subject_of), size=pairs)
    label = subject_of[first] == subject_of[second]
    with (meta / "ijbc_template_pair_label.txt").open("w") as file:
        file.writelines(f"{a} {b} {int(c)}\n" for a, b, c in zip(first, second, label, strict=True))
    half = subjects // 2
    for name, chosen in (
        ("gallery_G1", range(half)),
        ("gallery_G2", range(half, subjects)),
        ("probe_mixed", range(subjects, len(subject_of))),
    ):
        rows = [f"{template},{subject_of[template]}\n" for template in chosen]
        (meta / f"ijbc_1N_{name}.csv").write_text("TEMPLATE_ID,SUBJECT_ID\n" + "".join(rows))


if __name__ == "__main__":
    main()
