"""What a run says, and what of it survives a resume."""

import errno
import json
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from helpers.runs import CLASSES, config_of, trained, whole
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from partialfc.backbones import build_backbone
from partialfc.backbones.flops import count_forward_flops
from partialfc.evaluation.sets import SetEvaluation
from partialfc.monitoring.loggers.tensorboard import TensorBoardLogger
from partialfc.monitoring.main_logger import MainRunLogger
from partialfc.monitoring.run_logger import RunLogger
from partialfc.monitoring.step_metrics import RunProgress, StepMetrics


def metrics(loss: float, finite: bool = True) -> StepMetrics:
    return StepMetrics(
        torch.tensor(loss),
        torch.tensor(1.0),
        torch.tensor(finite),
        lr=0.1,
        data_wait_seconds=0.5,
        num_replaced=0,
        flops=10**12,
    )


def report(folder: Path, start: int = 0, every: int = 2, enabled: bool = True) -> RunLogger:
    length = RunProgress(start, 6, 3, 8, elapsed_seconds=100.0 * (start > 0), peak_flops=4e12)
    if not enabled:
        return RunLogger()
    return MainRunLogger(folder, length, log_every=every, device=torch.device("cpu"))


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scores(accuracy: float) -> dict[str, SetEvaluation]:
    names = ("accuracy_std", "auc", "tar@far=1e-2", "tar@far=1e-3")
    return {"lfw": SetEvaluation({"accuracy": accuracy, **dict.fromkeys(names, 0.5)}, "in words")}


def run(folder: Path, start: int, stop: int) -> None:
    with report(folder, start) as written:
        if start == 0:
            written.log_scores(0, scores(0.5))
        for step in range(start + 1, stop + 1):
            written.log_step(step, metrics(float(step), finite=step != 3))
        written.log_scores(stop, scores(0.5 + stop / 100))
        written.write_summary(stop, {})


def test_lines_hold_means_and_skips_and_the_last_step_always_has_one(tmp_path):
    run(tmp_path, 0, 6)
    found = lines(tmp_path)
    assert [line["step"] for line in found if "epoch_steps" not in line] == [0, 2, 4, 6, 6]
    assert [line["loss"] for line in found if "loss" in line] == [1.5, 3.5, 5.5]
    assert [line["skipped_steps"] for line in found if "loss" in line] == [0, 1, 0]
    assert [line["epoch"] for line in found if "loss" in line] == [2 / 3, 4 / 3, 2.0]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["loss"] == 5.5 and summary["steps"] == 6
    assert summary["verification_before"]["lfw"]["accuracy"] == 0.5
    assert summary["verification"]["lfw"]["accuracy"] == 0.56
    assert "1 steps skipped" in (tmp_path / "log.txt").read_text()


def test_on_a_gpu_a_line_is_written_while_the_next_step_is_computed(tmp_path):
    """What a step queues later is not in it; the last line, and those before a word, are there at once."""
    with report(tmp_path) as written:
        written._reads_async = True
        loss, seen = torch.tensor(1.0), []
        for step in range(1, 7):
            written.log_step(step, replace(metrics(0.0), loss=loss.clone()))
            seen.append([line["step"] for line in lines(tmp_path) if "loss" in line])
            loss.add_(1)
            if step == 5:
                written.log_message("a word")
    assert seen == [[], [], [2], [2], [2, 4], [2, 4, 6]]
    assert [line["loss"] for line in lines(tmp_path) if "loss" in line] == [1.5, 3.5, 5.5]


def test_the_wait_for_data_is_told_of_steps_and_summed_over_epochs(tmp_path):
    run(tmp_path, 0, 6)
    run(tmp_path, 5, 6)
    found = [line for line in lines(tmp_path) if "epoch_steps" in line]
    assert [(line["step"], line["epoch_steps"], line["epoch_data_wait_seconds"]) for line in found] == [
        (3, 3, 1.5),
        (6, 1, 0.5),  # of an epoch that was begun by another run
    ]
    assert {line["max_data_wait_seconds"] for line in lines(tmp_path) if "loss" in line} == {0.5}
    assert "1.5 s waiting for data" in (tmp_path / "log.txt").read_text()


def test_a_resumed_run_keeps_what_was_before_its_step_and_drops_the_rest(tmp_path):
    run(tmp_path, 0, 5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "los')  # a process killed while it wrote
    run(tmp_path, 2, 6)
    assert [line["step"] for line in lines(tmp_path) if "epoch_steps" not in line] == [0, 2, 4, 6, 6]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["verification_before"]["lfw"]["accuracy"] == 0.5 and summary["seconds"] > 100


def test_a_run_from_the_start_keeps_nothing(tmp_path):
    run(tmp_path, 0, 4)
    with report(tmp_path):
        assert lines(tmp_path) == []


def test_other_ranks_write_nothing(tmp_path):
    with report(tmp_path / "none", enabled=False) as silent:
        silent.log_message("x")
        silent.log_step(2, metrics(1.0))
        silent.write_summary(2, {})
    assert not (tmp_path / "none").exists()


def test_the_best_so_far_is_told_and_survives_a_resume(tmp_path):
    run(tmp_path, 0, 5)
    with report(tmp_path, 4) as written:
        for step in (5, 6):
            written.log_step(step, metrics(1.0))
        written.log_scores(6, scores(0.4))
        written.write_summary(6, {})
    assert "lfw: in words; best" in (tmp_path / "log.txt").read_text()
    assert "; best 50.00% at step 0" in (tmp_path / "log.txt").read_text()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["verification_best"] == {"lfw": {"accuracy": 0.5, "step": 0}}
    assert summary["verification"]["lfw"]["accuracy"] == 0.4


def board_of(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "images": 0, "histograms": 0})
    found.Reload()
    return found


def test_tensorboard_shows_a_run(ranks, pack, tmp_path):
    config = config_of(
        pack, tmp_path, log={"every": 2, "histograms_every": 4}, evaluation={"every": 5}, train={"length": 10}
    )
    ranks.run(2, trained, config, None, True)
    board = board_of(tmp_path)
    steps = {tag: [it.step for it in board.Scalars(tag)] for tag in board.Tags()["scalars"]}
    every, looks, evaluations = [2, 4, 6, 8, 10], [4, 8, 10], [0, 5, 10]
    for tag in (
        "loss/train",
        "optim/lr",
        "optim/grad_norm",
        "perf/images_per_second",
        "perf/tflops_per_second",
    ):
        assert steps[tag] == every
    for part in ("data", "backbone", "head", "communication", "optimizer", "other"):
        assert steps[f"time_ms/{part}"] == every
    for tag in (
        "memory_gib/rank_0",
        "memory_gib/rank_1",
        "stats/target_angle",
        "stats/target_angle_std",
        "stats/num_unseen_classes",
    ):
        assert steps[tag] == looks
    for tag in (
        "eval/unseen/accuracy",
        "eval/unseen/accuracy_best",
        "eval/unseen/auc",
    ):
        assert steps[tag] == evaluations
    assert {
        tag: [it.step for it in board.Histograms(tag)] for tag in board.Tags()["histograms"]
    } == dict.fromkeys(("stats/target_cosine", "stats/nearest_negative_cosine", "stats/random_margin"), looks)
    assert (tmp_path / "figures/run.png").stat().st_size > 10_000
    assert {(it.width, it.height) for it in board.Images("eval/unseen/hardest_pairs")} == {(1200, 592)}
    images = {tag: [it.step for it in board.Images(tag)] for tag in board.Tags()["images"]}
    assert images == {
        "train_images/batch": [1],
        "eval/unseen/roc": evaluations,
        "eval/unseen/hardest_pairs": evaluations,
    }
    every_tag = [
        *steps,
        *board.Tags()["histograms"],
        *images,
    ]  # the page TIME SERIES opens on the first groups of all
    groups = list(dict.fromkeys(tag.split("/")[0] for tag in sorted(every_tag)))
    assert groups[:2] == ["eval", "loss"]


def test_tensorboard_shows_recipe_outcome_and_identities(ranks, pack, tmp_path):
    ranks.run(1, trained, config_of(pack, tmp_path, train={"length": 4}))
    found = EventAccumulator(str(tmp_path / "tensorboard"), {"tensors": 0})
    found.Reload()
    (recipe,) = found.Tensors("recipe/text_summary")
    assert b"    order: paper" in recipe.tensor_proto.string_val[0]
    board = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    settings = HParamsPluginData.FromString(board).session_start_info.hparams
    assert (
        settings["train.length"].number_value == 4 and settings["loss.name"].string_value == "elastic_arcface"
    )
    board = found.summary_metadata["_hparams_/experiment"].plugin_data.content
    shown = {it.name.tag for it in HParamsPluginData.FromString(board).experiment.metric_infos}
    assert "eval/unseen/accuracy" in shown and shown <= set(found.Tags()["scalars"]) | {"loss/train"}
    (place,) = (tmp_path / "tensorboard").glob("*/identities")
    names = (place / "metadata.tsv").read_text().split()
    vectors = np.loadtxt(place / "tensors.tsv")
    assert len(set(names)) == 20 and len(names) == len(vectors) == 100
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-4)
    alike, cosines = np.equal.outer(names, names), vectors @ vectors.T
    assert cosines[alike & ~np.eye(100, dtype=bool)].mean() > cosines[~alike].mean()
    assert cv2.imread(str(place / "sprite.png")).shape == (320, 320, 3)


def test_the_parts_of_the_time_are_a_steps_and_numbers_of_a_look_are_right(ranks, pack, tmp_path):
    config = config_of(
        pack,
        tmp_path,
        log={"every": 2, "histograms_every": 1},
        head={"sample_rate": 1.0},
        train={"length": 4},
    )
    state = whole(ranks.run(2, trained, config))
    found = lines(tmp_path)
    forward = count_forward_flops(build_backbone(config.backbone))
    for line in (line for line in found if "loss" in line):
        in_all = 1000 * 24 / line["images_per_second"]
        assert abs(sum(line["time_ms"].values()) - in_all) < 1e-6 * in_all
        flops = line["tflops_per_second"] * 1e12 * in_all / 1000
        assert flops == pytest.approx(3 * forward * 12 + 3 * 2 * 24 * -(-CLASSES // 2) * 16)
        assert min(line["time_ms"].values()) > 0
    looks = [line for line in found if "num_unseen_classes" in line]
    never_positive = [line["num_unseen_classes"] for line in looks]
    assert [line["step"] for line in looks] == [1, 2, 3, 4]
    assert (
        CLASSES
        > never_positive[0]
        > never_positive[1]
        >= never_positive[3]
        == int((state["seen_classes"] == 0).sum())
    )
    for line in looks:
        assert 0 < line["target_angle"] < 180 and 0 < line["nearest_negative_angle"] < line["target_angle"]
        assert len(line["memory_bytes"]) == 2 and min(line["memory_bytes"]) > 50 << 20


def test_the_time_of_what_is_aside_is_not_the_steps(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    with report(tmp_path) as written:
        for step in (1, 2):
            now[0] += 1
            written.log_step(step, metrics(1.0))
            with written.pause_timing():  # between two lines, and at one
                now[0] += 100
        now[0] += 3
        for step in (3, 4):
            written.log_step(step, metrics(1.0))
        assert written.elapsed_seconds == 205
    found = [line for line in lines(tmp_path) if "loss" in line]
    assert [line["images_per_second"] for line in found] == [8, 16 / 3]
    assert [line["tflops_per_second"] for line in found] == [1, 2 / 3]
    assert [line["mfu"] for line in found] == [1 / 4, 1 / 6]
    assert "8 images/s  1 TFLOP/s  MFU 25%" in (tmp_path / "log.txt").read_text()


class Identification:
    """An evaluation set of another kind: no pairs, another score, no pictures."""

    name = "gallery"

    def evaluate(self, embeddings: torch.Tensor) -> SetEvaluation:
        scores = {"rank1": float(embeddings.mean()), "rank5": 0.9}
        return SetEvaluation(scores, f"rank 1 {scores['rank1']:.1%}")


def test_a_set_of_another_kind_is_reported_by_its_own_scores(tmp_path):
    with report(tmp_path) as written:
        for step, rank1 in ((0, 0.25), (2, 0.75), (4, 0.5)):
            written.log_step(step, metrics(1.0))
            written.log_evaluation(step, [Identification()], {"gallery": torch.full((3, 2), rank1)})
        written.write_summary(4, {})
    log = (tmp_path / "log.txt").read_text()
    assert "step 4  gallery: rank 1 50.0%; best 75.00% at step 2" in log
    first = next(line for line in lines(tmp_path) if "verification" in line)
    assert first == {"step": 0, "verification": {"gallery": {"rank1": 0.25, "rank5": 0.9}}}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["verification_best"] == {"gallery": {"rank1": 0.75, "step": 2}}
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [it.value for it in board.Scalars("eval/gallery/rank1_best")] == [0.25, 0.75, 0.75]


def log_losses(folder: Path, start: int, stop: int, clock: float, monkeypatch) -> None:
    """Log the steps of one process to TensorBoard, from the one before the first for a new run."""
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: clock)
        logger = TensorBoardLogger(folder, start)
        for step in range(start + 1 if start else 0, stop + 1):
            logger.log_scalars(step, {"loss": 1 / (step + 1)})
        logger.close()


@pytest.mark.parametrize(
    "clocks", [(5000, 6000, 7000), (7000, 6000, 5000), (6000, 6000, 6000), (6000, 7000, 5000)]
)
@pytest.mark.filterwarnings("ignore")  # of the reader: that it purges events
def test_tensorboard_shows_each_step_once_whatever_the_clock(tmp_path, monkeypatch, clocks):
    """Log a run that is killed before its first checkpoint, is started again, and resumes at step 4."""
    for (start, stop), clock in zip([(0, 3), (0, 6), (4, 9)], clocks, strict=True):
        log_losses(tmp_path, start, stop, 1_700_000_000 + clock, monkeypatch)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(10))


def test_the_terminal_shows_steps_while_the_disk_is_full(tmp_path, monkeypatch, capsys):
    full = OSError(errno.ENOSPC, "No space left on device")
    with report(tmp_path) as it:
        monkeypatch.setattr(it, "_append_to_log", mock.Mock(side_effect=full))
        with monkeypatch.context() as patch:
            patch.setattr(it._metrics_file, "_file", mock.Mock(write=mock.Mock(side_effect=full)))
            for step in range(1, 7):
                it.log_step(step, metrics(float(step)))
    said = capsys.readouterr().out
    assert [step for step in (2, 4, 6) if f"step {step}/" in said] == [2, 4, 6]
    path = tmp_path / "metrics.jsonl"
    assert said.count("training continues without it") == 1
    assert f"{path}: No space left on device (" in said and "MiB free); training continues without it" in said
