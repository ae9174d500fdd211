"""Weights & Biases and MLflow beside TensorBoard, without a network."""

import io
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import mlflow
import numpy as np
import pytest
import wandb
from helpers.runs import config_of, curve, refusal, trained, verification_of
from rich.console import Console
from wandb.proto import wandb_internal_pb2

from partialfc.config import Config, LogConfig, load_config
from partialfc.errors import InputError
from partialfc.evaluation import plots
from partialfc.monitoring.logger_group import LoggerGroup
from partialfc.monitoring.loggers.logger import tracker_run_id
from partialfc.monitoring.loggers.mlflow import MLflowLogger
from partialfc.monitoring.loggers.tensorboard import TensorBoardLogger
from partialfc.monitoring.loggers.wandb import WandbLogger
from partialfc.monitoring.terminal import Terminal
from partialfc.training.run import Run

LOGGERS = ["tensorboard", "wandb", "mlflow"]


def config_in(pack: Path, output: Path, **sections) -> Config:
    sections = {"train": {"length": 6}, "checkpoint": {"every": 2}} | sections
    report = {"every": 1, "histograms_every": 3, "loggers": LOGGERS, "pictures": "remote"}
    return config_of(pack, output, log=report, **sections)


def offline(config: Config, stop: int | None = None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        trained(config, stop, True)


@pytest.fixture(scope="module")
def run(ranks, pack, tmp_path_factory) -> Path:
    """One that died and went on, on two ranks."""
    output = tmp_path_factory.mktemp("runs") / "mine"
    ranks.run(2, offline, config_in(pack, output), 5)
    ranks.run(2, offline, config_in(pack, output))
    return output


def drawing_nothing(config: Config) -> None:
    with (
        mock.patch.object(plots, "plot_roc", side_effect=AssertionError),
        mock.patch.object(Run, "embed_images", side_effect=AssertionError),
    ):
        trained(config, None, True)


def test_without_a_logger_no_picture_is_drawn(ranks, pack, tmp_path):
    config = config_of(pack, tmp_path, train={"length": 2}, log={"every": 1, "loggers": []})
    ranks.run(1, drawing_nothing, config)
    assert verification_of(tmp_path, 2)["unseen"] and not (tmp_path / "tensorboard").exists()


def told_wandb(run: Path) -> list[wandb_internal_pb2.Record]:
    """What stands in its files, the oldest first."""
    paths = sorted(run.glob("wandb/offline-run-*/run-*.wandb"))
    return [
        wandb_internal_pb2.Record.FromString(it) for path in paths for it in records_of(path.read_bytes())
    ]


def records_of(content: bytes) -> Iterator[bytes]:
    """LevelDB's log format, after a header of 7 bytes: parts with checksum, length and kind, in blocks of 32 KiB."""
    place, record = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_wandb_has_the_runs_numbers_config_and_scores(run):
    records = told_wandb(run)
    rows = [
        {
            item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json)
            for item in it.history.item
        }
        for it in records
        if it.HasField("history")
    ]
    losses = {row["step"]: row["loss/train"] for row in rows if "loss/train" in row}
    assert [losses[step] for step in range(1, 7)] == pytest.approx(curve(run))
    accuracy = {row["step"]: row["eval/unseen/accuracy"] for row in rows if "eval/unseen/accuracy" in row}
    assert accuracy[6] == verification_of(run, 6)["unseen"]["accuracy"]
    assert {it.run.run_id for it in records if it.HasField("run")} == {(run / "wandb_run").read_text()}
    assert {it.run.display_name for it in records if it.HasField("run")} == {"mine"}
    settings = {
        item.key: item.value_json for it in records if it.HasField("run") for item in it.run.config.update
    }
    settings |= {
        item.key: item.value_json for it in records if it.HasField("config") for item in it.config.update
    }
    assert settings["loss.sigma"] == "0.05" and settings["train.length"] == "6"


def test_mlflow_has_the_runs_numbers_parameters_and_pictures(run, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient((run.parent / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("partialfc")
    (found,) = client.search_runs([experiment.experiment_id])  # the one that went on is the one that died
    history = client.get_metric_history(found.info.run_id, "loss/train")
    assert {it.step: it.value for it in history} == pytest.approx(dict(enumerate(curve(run), 1)))
    assert found.info.run_name == "mine" and found.info.status == "FINISHED"
    assert found.data.params["loss.sigma"] == "0.05" and "eval/unseen/auc" in found.data.metrics
    artifacts = {it.path for it in client.list_artifacts(found.info.run_id)}
    assert {"recipe.yaml", "eval", "train_images"} <= artifacts


def test_tensorboard_stays_beside_them(run):
    assert list((run / "tensorboard").glob("events.*"))


def without(config: Config) -> str:
    with mock.patch.dict(sys.modules, {"wandb": None}):
        return refusal(config)


def test_a_logger_that_is_not_installed_is_refused(ranks, pack, tmp_path):
    told = ranks.run(2, without, config_in(pack, tmp_path / "run"))
    assert set(told) == {"log.loggers: wandb is not installed; install it with: pip install wandb"}


def without_key(config: Config) -> str:
    def refuses(**settings: object) -> None:
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login`")

    with mock.patch.object(wandb, "init", refuses):
        return refusal(config)


def test_wandb_without_a_key_is_refused_in_one_line(ranks, pack, tmp_path):
    told = ranks.run(1, without_key, config_in(pack, tmp_path / "run"))
    assert told == [
        "log.loggers: wandb: No API key configured. Use `wandb login`; run wandb login, or set WANDB_MODE=offline"
    ]


def at_no_server(config: Config) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
        return refusal(config)


def test_a_server_of_mlflow_that_is_none_is_refused_in_one_line(ranks, pack, tmp_path):
    (told,) = ranks.run(1, at_no_server, config_in(pack, tmp_path / "run"))
    assert told.startswith("MLflow: ") and "nonsense" in told and "\n" not in told


def test_a_run_that_begins_anew_is_another_one_there(tmp_path):
    first = tracker_run_id(tmp_path, "wandb", 0)
    assert tracker_run_id(tmp_path, "wandb", 5) == first == tracker_run_id(tmp_path, "wandb", 7)
    assert tracker_run_id(tmp_path, "wandb", 0) != first


def test_an_unknown_one_is_refused():
    with pytest.raises(
        InputError, match=r"log.loggers.0: 'wandbb', expected one of .*; did you mean wandb\?"
    ):
        load_config("quickstart", ["log.loggers=[wandbb]"])


class Shown:
    """A logger that notes what it is given."""

    def __init__(self, *, is_remote: bool) -> None:
        self.is_remote, self.calls = is_remote, []

    def __getattr__(self, name: str):
        return lambda *arguments: self.calls.append(name)


@pytest.mark.parametrize(
    ("where", "shown"), [("local", (True, False)), ("remote", (True, True)), ("off", (False, False))]
)
def test_faces_stay_on_the_machine_unless_the_recipe_says_so(where, shown):
    loggers = [Shown(is_remote=False), Shown(is_remote=True)]
    board = LoggerGroup(loggers, lambda error: None, where)
    face = np.zeros((4, 4, 3), np.uint8)
    board.log_image(1, "train_images/batch", face)
    board.log_figures(1, "lfw", [("hardest_pairs", face)])
    board.log_embeddings(1, np.zeros((1, 2), np.float32), ["ann"], [face])
    board.log_record(1, {"loss": 1.0})
    for logger, seen in zip(loggers, shown, strict=True):
        assert logger.calls == ["log_image", "log_image", "log_embeddings"] * seen + ["log_scalars"]


def test_only_tensorboard_is_local():
    assert not TensorBoardLogger.is_remote and WandbLogger.is_remote and MLflowLogger.is_remote
    assert LogConfig().pictures == "local"


def test_the_display_says_how_far_an_evaluation_is():
    terminal = Terminal(0, 10)
    terminal.show_activity("evaluating lfw: 3 of 40 batches")
    console = Console(file=io.StringIO(), width=80)
    console.print(terminal._render())
    terminal.show_activity("")
    console.print(terminal._render())
    assert console.file.getvalue().count("evaluating lfw: 3 of 40 batches") == 1
