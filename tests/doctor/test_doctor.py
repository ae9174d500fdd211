"""What the doctor finds on machines that are well, and what where something is planted."""

import json
import os
import re
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from unittest import mock

import msgspec
import pytest
import torch
from helpers.calling import called
from helpers.faces import write_pack, write_pairs
from helpers.runs import config_of

from partialfc.__main__ import main
from partialfc.config import (
    AdaFace,
    ArcFace,
    CombinedMargin,
    Config,
    CosFace,
    CosineSoftmax,
    CurricularFace,
    ElasticArcFace,
    ElasticCosFace,
    HeadConfig,
    LinearSoftmax,
    MagFace,
    SphereFace2,
    UniFace,
)  # fmt: skip
from partialfc.doctor import acceptance, checks, trial
from partialfc.doctor.result import CheckResult
from partialfc.head.losses import TargetLogit
from partialfc.head.losses.cosface import CosFaceLoss
from partialfc.runtime import comm, versions
from partialfc.runtime.process import run_lock
from partialfc.training.health import tensor_digests


def examined(config: Config, planted: str = "") -> tuple[list[str], str]:
    """What a rank comes back with, and prints."""
    dist_ctx = comm.create_dist_context(torch.device("cpu"))
    places = {
        "version": mock.patch.object(versions, "_code_digest", return_value=f"code{dist_ctx.rank}"),
        "head": mock.patch.object(trial, "_TOLERANCE", 0.0),
        "derivative": mock.patch.object(CosFaceLoss, "logit_with_derivatives", doubled),
        "": mock.patch.object(trial, "_TIME_LIMIT", 0.0),
    }
    with redirect_stdout(StringIO()) as printed, places[planted]:
        return checks.list_problems(checks.run_checks(config, dist_ctx)), printed.getvalue()


def doubled(loss: CosFaceLoss, angle: torch.Tensor, norm: None, draws: None) -> TargetLogit:
    """A loss whose derivative is twice that of its logit."""
    return TargetLogit(angle.cos() - 0.2, torch.full_like(angle, 2.0), None)


@pytest.fixture
def config(tmp_path) -> Config:
    write_pack(tmp_path / "pack", 10, 6)
    write_pairs(tmp_path / "pack/some.bin")
    return config_of(tmp_path / "pack", tmp_path / "run")


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_nothing_is_wrong(ranks, config, world_size):
    (problems, told), *others = ranks.run(world_size, examined, config)
    assert not problems and all(it == ([], "") for it in others)
    said = {line[:10].strip() for line in told.splitlines()}
    assert {"versions", "devices", "network", "head", "loss", "pack", "output", "steps"} <= said
    assert f"{world_size} rank(s) on cpu" in told and "60 images of 10 identities" in told
    assert (
        "sharded head matches dense reference: loss error" in told
        and "images/s; the run's 30 steps take" in told
    )
    assert ("GB/s from each rank" in told) == (world_size > 1)
    assert told.splitlines()[-1].startswith("no problems found in 0:00:")
    assert not Path(config.output, ".doctor").exists()


def test_a_rank_with_other_code_is_named(ranks, config):
    problems, told = ranks.run(2, examined, config, "version")[0]
    (problem,) = problems
    assert (
        problem.startswith("versions: rank 1 on ")
        and "(code1); rank 0 on " in problem
        and "(code0)" in problem
    )
    assert "PROBLEM rank 1" in told and told.splitlines()[-1].startswith("1 problem(s) in")


def test_a_head_that_is_not_the_formulas_is_a_problem(ranks, config):
    problems, _ = ranks.run(2, examined, config, "head")[0]
    assert [it.partition(":")[0] for it in problems] == ["head", "loss"]
    assert problems[0].startswith("head: does not match the dense reference")


def test_a_wrong_derivative_of_the_recipes_loss_is_a_problem(ranks, config):
    """Sharded equals dense even so, where both use it."""
    planted = msgspec.structs.replace(config, loss=CosineSoftmax(scale=16.0))
    problems, told = ranks.run(2, examined, planted, "derivative")[0]
    assert "loss: derivatives of the target logit match autograd: error 5e-01" in problems and "loss " in told


MARGINS = [
    CosineSoftmax(), CosFace(), ArcFace(), ArcFace(gradient="detached"), CombinedMargin(m1=1.35, m2=0.1, m3=0.1), ElasticArcFace(order="paper"),
    ElasticCosFace(), AdaFace(), MagFace(), CurricularFace(), UniFace(), SphereFace2(), LinearSoftmax(),
]  # fmt: skip


def losses(config: Config) -> list[list[str]]:
    dist_ctx = comm.create_dist_context(torch.device("cpu"))
    options = [{"sample_rate": 0.3}, {"sample_rate": 0.3, "logit_correction": "log_q", "subcenters": 2}]
    found = []
    for margin in MARGINS:
        for option in options[: 1 if isinstance(margin, UniFace | SphereFace2 | LinearSoftmax) else 2]:
            tried = msgspec.structs.replace(config, loss=margin, head=HeadConfig(**option))
            found.append(trial.loss(tried, dist_ctx).problems)
    return found


@pytest.mark.parametrize("world_size", [1, 3])
def test_every_loss_is_examined_with_its_sampling(ranks, config, world_size):
    found = ranks.run(world_size, losses, config)[0]
    assert len(found) > len(MARGINS) and not any(found)


def test_a_damaged_image_is_named_and_the_rest_is_looked_at(ranks, config):
    records = Path(config.data.path, "train.rec")
    first, *images = records.read_bytes().split(b"\xff\xd8\xff")
    records.write_bytes(
        b"\xff\xd8\xff".join([first, *images[:20]]) + b"".join(b"\0\0\0" + it for it in images[20:])
    )
    problems, told = ranks.run(2, examined, config)[0]
    assert "sharded head matches dense reference" in told and f"{len(problems)} problem(s) in" in told
    assert any(
        re.match(r"pack: .*train.rec, key \d+: \d+ bytes; expected an image", it) for it in problems
    ), problems


def test_a_pack_that_is_not_there(ranks, config):
    shutil.rmtree(config.data.path)
    problems, _ = ranks.run(2, examined, config)[0]
    assert [it.split(":")[0] for it in problems] == ["pack", "steps"] and "no such folder" in problems[0]


def test_an_output_at_which_another_run_works(ranks, config):
    lock = run_lock._lock(Path(config.output), "token")
    try:
        problems, _ = ranks.run(1, examined, config)[0]
    finally:
        os.close(lock)
    assert len(problems) == 1 and "is using it" in problems[0]


def test_a_run_without_steps(ranks, config):
    none = msgspec.structs.replace(config, train=msgspec.structs.replace(config.train, length=0))
    problems, told = ranks.run(2, examined, none)[0]
    assert not problems and "train.length: no steps to try" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quikstart"], "recipe quikstart: not found; .*; did you mean quickstart?"),
        (["quickstart", "train.global_batch_size=0"], "train.global_batch_size: expected int >= 1; found 0"),
        (
            ["quickstart", "--ranks", "5"],
            "train.global_batch_size 64 in micro-batches of 32 cannot be split over 5 ranks",
        ),
    ],
)
def test_a_recipe_that_is_none_is_refused_before_any_rank_starts(capfd, arguments, message):
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *arguments])
    out, err = capfd.readouterr()
    assert ended.value.code == 2 and not out and re.search(message, err) and err.count("\n") == 1, err


def accepted(config: Config, differs_on: int | None) -> tuple[dict[str, CheckResult], str]:
    """Return the results of the acceptance checks, with other digests in the second run on one rank."""
    dist_ctx, calls = comm.create_dist_context(torch.device("cpu")), []

    def digests(state):
        calls.append(state)
        return len(calls) if dist_ctx.rank == differs_on else tensor_digests(state)

    with (
        redirect_stdout(StringIO()) as printed,
        mock.patch.object(acceptance, "_SECONDS", 0.1),
        mock.patch.object(acceptance, "_IDENTITIES", {"cpu": 1000}),
        mock.patch.object(acceptance, "tensor_digests", digests),
    ):
        return checks.run_checks(config, dist_ctx, checks.ACCEPTANCE_CHECKS), printed.getvalue()


@pytest.mark.parametrize("world_size", [1, 2])
def test_new_machines_are_accepted(ranks, config, world_size):
    (results, told), *_ = ranks.run(world_size, accepted, config, None)
    assert not checks.list_problems(results)
    assert "10 steps twice: bitwise identical on all ranks" in told
    assert results["head speed"].values["head_step_ms"] > 0
    assert results["loader"].values["loader_images_per_second"] > 0
    assert not Path(config.output, ".doctor").exists()


def test_runs_that_differ_are_a_problem(ranks, config):
    (results, _), *_ = ranks.run(2, accepted, config, 1)
    (problem,) = checks.list_problems(results)
    assert problem.startswith("repeats: 10 steps twice: different on rank(s) 1; expected identical bits")


@pytest.mark.kills
def test_an_acceptance_report_of_two_ranks(config, tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps(msgspec.to_builtins(config)))
    report = tmp_path / "machine.json"
    done = called("doctor", tmp_path / "recipe.yaml", "--ranks", "2", "--acceptance", report)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert re.search(r"stop +rank 1 was stopped: .* rank 1 on \S+ stalled at step \d+", done.stdout)
    assert done.stdout.splitlines()[-1] == f"results: {report}"
    content = json.loads(report.read_text())
    assert content["ranks"] == 2 and content["versions"]["torch"] == torch.__version__
    assert content["recipe"]["train"]["global_batch_size"] == config.train.global_batch_size
    assert list(content["checks"]) == [*checks.CHECKS, *checks.ACCEPTANCE_CHECKS, "stop"]
    assert not any(result["problems"] for result in content["checks"].values())


def test_from_the_command_line(config, tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps(msgspec.to_builtins(config)))
    command = ["doctor", tmp_path / "recipe.yaml", "--ranks", "2"]
    done = called(*command)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "2 rank(s) on cpu" in done.stdout and "no problems found" in done.stdout
    done = called(*command, "data.path=nowhere")
    assert done.returncode == 1 and re.search(r"PROBLEM /\S*/nowhere: no such folder", done.stdout)
