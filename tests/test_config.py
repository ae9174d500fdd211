"""Recipes: strict, with overrides, and errors that say what to do."""

import math
from pathlib import Path

import msgspec
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from partialfc import conversion, recipe, renamed
from partialfc.backbones import build_backbone
from partialfc.config import (
    SGD,
    AdamW,
    ArcFace,
    Config,
    CosFace,
    ElasticArcFace,
    HeadConfig,
    MultiStepSchedule,
    PolynomialSchedule,
    load_config,
)
from partialfc.data.sampler import valid_world_sizes
from partialfc.errors import InputError

RECIPES = sorted(Path(__file__).parents[1].glob("recipes/*.yaml"))
MINIMAL = """
data: {path: faces}
loss: {name: elastic_arcface, margin: 0.4, order: paper}
optim: {lr: 1e-1}
schedule: {name: multistep, milestones: [3, 5 epochs]}
train: {length: 26 epochs}
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "minimal.yaml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_refuses_an_unknown_key_in_any_section(path):
    tree = msgspec.to_builtins(load_config(path))
    for section in sections(tree):
        section["bogus"] = 1
        with pytest.raises(msgspec.ValidationError, match="unknown field `bogus`"):
            msgspec.convert(tree, Config)
        del section["bogus"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_builds_its_backbone(path):
    config = load_config(path)
    with FakeTensorMode():  # shapes without memory
        backbone = build_backbone(config.backbone)
        embeddings = backbone(torch.empty(2, 3, backbone.input_size, backbone.input_size))
    assert embeddings.shape == (2, config.backbone.embedding_size)
    on_a_laptop = path.stem in (
        "quickstart",
        "faces_small",
        "faces_small_student",
        "faces_tiny",
        "finetune",
    )  # two micro-batches a step
    assert set(valid_world_sizes(config)) >= ({1, 2} if on_a_laptop else {1, 2, 4})


def sections(node):
    if isinstance(node, dict):
        yield node
        for child in node.values():
            yield from sections(child)


def test_values_and_defaults(minimal):
    config = load_config(minimal)
    assert config.optim.lr == 0.1 and config.optim.momentum == 0.9
    assert config.loss == ElasticArcFace(margin=0.4, order="paper")
    assert config.schedule == MultiStepSchedule(milestones=(3, "5 epochs"))


def test_overrides(minimal):
    overrides = [
        "optim.lr=1e-3",
        "output=runs/a=b",
        "train.length=30",
        "data.synthetic.identities=7",
    ]
    config = load_config(minimal, overrides)
    assert config.optim.lr == 1e-3 and config.output == "runs/a=b" and config.train.length == 30
    assert config.data.synthetic is not None and config.data.synthetic.identities == 7


def test_no_value_of_the_old_variant_survives_a_new_name(minimal):
    assert load_config(minimal, ["loss.name=cosface"]).loss == CosFace()
    assert load_config(minimal, ["loss.name=arcface"]).loss == ArcFace()
    for order in (["loss.margin=0.3", "loss.name=arcface"], ["loss.name=arcface", "loss.margin=0.3"]):
        assert load_config(minimal, order).loss == ArcFace(margin=0.3)
    assert load_config(minimal, ["loss.name=elastic_arcface"]).loss == load_config(minimal).loss


def test_what_is_dumped_loads_as_the_same(minimal, tmp_path):
    config = load_config(minimal)
    copy = tmp_path / "copy.yaml"
    copy.write_text(recipe.dump(config))
    assert load_config(copy) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "optim.momentun=1",
            "optim.momentun: unknown key; the section optim has lr, .*; did you mean momentum",
        ),
        ("momentum=1", "momentum: unknown key; the recipe has data, .*; did you mean optim.momentum"),
        ("loss.margn=1", "loss.margn: unknown key; .*order; did you mean margin"),
        ("optim.lr=fast", "optim.lr: expected float, got str; found 'fast'"),
        ("train.global_batch_size=3.5", "train.global_batch_size: expected int, got float; found 3.5"),
        ("head.sample_rate=2", "head.sample_rate: expected float <= 1.0; found 2"),
        (
            "loss.name=acrface",
            "loss.name: 'acrface', expected one of adaface, arcface, .*; did you mean arcface",
        ),
        (
            "loss.order=papr",
            "loss.order: 'papr', expected one of none, paper, released; did you mean paper",
        ),
        ("backbone.depths=[1, a]", "backbone.depths.1: expected int, got str; found 'a'"),
        ("backbone=null", "backbone: expected object, got null"),
        (
            "head.memory=host",
            "head.memory: host copies .* requires head.sample_rate below 1",
        ),
        (
            "optim={name: adamw, momentum: 0.9}",
            "optim.momentum: unknown key; the section optim has lr, .*betas",
        ),
        ("optim.ema_decay=1", "optim.ema_decay: expected float < 1.0; found 1"),
        ("head.optim.name=lion", "head.optim.name: 'lion', expected one of adamw, sgd"),
        (
            "head.matmul_precision=bfloat16",
            "head.matmul_precision: 'bfloat16', expected one of auto, float32, half, tf32",
        ),
        ("head.kernels=cuda", "head.kernels: 'cuda', expected one of auto, torch, triton"),
        ("optim.reduce_dtype=fp16", "optim.reduce_dtype: 'fp16', expected one of bfloat16, float32"),
        ("deterministic=2", "deterministic: expected bool, got int; found 2"),
        (
            "head.optim={name: sgd, max_grad_norm: 1}",
            "head.optim.max_grad_norm: unknown key; the section head.optim has lr, .*; did you mean",
        ),
        ("optim={name: torch}", "optim: object missing required field optimizer_class"),
        (
            "optim={name: torch, optimizer_class: NAdam}",
            "set head.optim to sgd or adamw for the class centers",
        ),
        (
            "optim={name: torch, optimizer_class: NAdam, kwargs: {betas: no numbers}}",
            "optim.kwargs.*: expected",
        ),
        ("loss={name: adaface, h: -1}", "loss.h: expected float >= 0.0; found -1"),
        ("loss={name: adaface, ema_rate: 0}", "loss.ema_rate: expected float > 0.0; found 0"),
        ('output="a\\0b"', r"output: 'a.+x00b'; expected text without zero bytes"),
        ("optim.ema_decay=-0.5", "optim.ema_decay: expected float >= 0.0; found -0.5"),
        ("log.histograms_every=0", "log.histograms_every: expected int >= 1; found 0"),
        ("optim={nesterov: true, momentum: 0}", "optim.nesterov: requires momentum above 0"),
        ("train={global_batch_size: 4}", "train: object missing required field length"),
        (
            "train.length=3 weeks",
            "train.length: '3 weeks', expected a number of steps, or text such as 26 epochs",
        ),
        ("train.length=-1", "train.length: -1, expected a number of steps, or text such as 26 epochs"),
        (
            "checkpoint.every=15 fortnights",
            "checkpoint.every: '15 fortnights', expected .* such as .*15 minutes",
        ),
        (
            "checkpoint.every=0 minutes",
            "checkpoint.every: '0 minutes', expected a number of steps, or text such as",
        ),
        ("checkpoint.every=-1", "checkpoint.every: -1, expected a number of steps"),
        ("checkpoint.keep_best=lfw", "checkpoint.keep_best: 'lfw', expected SET/score, such as lfw/accuracy"),
        (
            "checkpoint.on_config_change=maybe",
            "checkpoint.on_config_change: 'maybe', expected one of allow, fail",
        ),
        ("launch.step_timeout=5", "launch.step_timeout: 5, expected a time above 0, such as 15 minutes"),
        ("augment.min_crop_area=0", "augment.min_crop_area: expected float > 0.0; found 0"),
        ("launch.step_timeout=0.0 seconds", "launch.step_timeout: '0.0 seconds', expected a time above 0"),
        ("launch.max_restarts=-1", "launch.max_restarts: expected int >= 0; found -1"),
        ("launch.max_requeues=many", "launch.max_requeues: expected int, got str; found 'many'"),
        ("train.max_skipped_steps=0", "train.max_skipped_steps: expected int >= 1; found 0"),
        ("optim.lr", "override 'optim.lr': expected section.key=value"),
        ("optim.lr.x=1", "override optim.lr.x: optim.lr is not a section"),
        ("optim={lr: 1, lr: 2}", "lr given twice"),
        ("optim.lr=.nan", "optim.lr: nan is not a finite number"),
        ("optim.lr=1e999", "optim.lr: inf is not a finite number"),
        ("optim=[", r"override 'optim=\['.*: "),
        ("optim=!!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_a_bad_override_is_refused_in_one_line(minimal, override, message):
    with pytest.raises(InputError, match=message) as raised:
        load_config(minimal, [override])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "minimal.yaml: recipe: object missing required field data"),
        (b"- a\n- b", "expected sections with keys"),
        (b"data: {path: x}\nbackbone: {name: iresnet_tiny\n", "minimal.yaml, line 3: "),
        (b"\xff\xfe\xff", "minimal.yaml: "),
        (b"a: 1\na: 2", "line 1: a given twice"),
        (b"&a [*a]", r"line 1: an alias, \*a; write the value instead"),
        (b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", r"line 2: an alias, \*a"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(minimal, content, message):
    minimal.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        load_config(minimal)
    assert "\n" not in str(raised.value)


def test_a_missing_recipe(tmp_path):
    with pytest.raises(InputError, match=r"recipe .*none\.yaml: No such file"):
        load_config(tmp_path / "none.yaml")


def test_a_section_that_names_no_variant_is_of_the_default_one(minimal):
    config = load_config(minimal, ["optim.lr=0.5", "schedule={warmup: 7}", "loss={scale: 32}"])
    assert config.optim == SGD(lr=0.5)
    assert config.schedule == PolynomialSchedule(warmup=7) and config.loss == CosFace(scale=32.0)
    assert load_config(minimal, ["optim.lr=0.5", "optim.name=sgd"]).optim == SGD(lr=0.5)
    assert load_config(minimal, ["optim.name=adamw"]).optim == AdamW()


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("{unsampled: decay, sample_rate: 0.5}", "head.unsampled: decay requires optim.name: sgd"),
        ("{optim_state_dtype: none}", "head.optim_state_dtype: none requires optim.name: sgd"),
    ],
)
def test_what_adamw_cannot_do_is_refused(minimal, head, message):
    with pytest.raises(InputError, match=message):
        load_config(minimal, ["optim.name=adamw", f"head={head}"])


def test_a_recipe_may_say_what_differs_from_another(minimal, tmp_path):
    (tmp_path / "sub").mkdir()
    first = tmp_path / "sub/first.yaml"
    first.write_text("base: ../minimal.yaml\nloss: {margin: 0.3}\noptim: {momentum: 0.5}\noutput: first\n")
    second = tmp_path / "sub/second.yaml"
    second.write_text("base: first.yaml\nloss: {name: cosface}\noptim: {name: adamw}\n")
    config = load_config(first)
    assert config.loss == ElasticArcFace(margin=0.3, order="paper") and config.output == "first"
    assert config.optim == SGD(lr=0.1, momentum=0.5) and config.schedule == load_config(minimal).schedule
    config = load_config(second, ["train.global_batch_size=8"])
    assert config.loss == CosFace() and config.optim == AdamW() and config.output == "first"
    assert config.train.global_batch_size == 8 and config.train.length == "26 epochs"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("base: none.yaml", r"recipe .*none\.yaml: No such file"),
        ("base: a.yaml", r"recipe .*a\.yaml: its `base` leads back to itself"),
        ("base: /dev/zero", "/dev/zero: expected a file, found a device"),
        ("base: .", ".*: expected a file, found a folder"),
        ("base: [1]", r"a\.yaml: base: \[1\], expected the path of a recipe"),
        ('base: "x\\0"', "expected the path of a recipe"),
    ],
)
def test_a_base_that_is_none_is_refused(tmp_path, content, message):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(InputError, match=message) as raised:
        load_config(tmp_path / "a.yaml")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HeadConfig(sample_rate=7), r"HeadConfig.sample_rate: expected float <= 1.0; found 7"),
        (lambda: CosFace(margin=-3), r"CosFace.margin: expected float >= 0.0; found -3"),
        (lambda: CosFace(scale=math.nan), r"CosFace.scale: .*; found nan"),
        (lambda: CosFace(margin=math.inf), r"CosFace.margin: expected a finite number; found inf"),
        (lambda: HeadConfig(centers_dtype="float16"), "HeadConfig.centers_dtype: expected one of float32, bfloat16; found 'float16'"),
        (lambda: SGD(momentum="0.9"), "SGD.momentum: expected float, got str; found '0.9'"),
        (lambda: SGD(momentum=0, nesterov=True), "optim.nesterov: requires momentum above 0"),
        (lambda: HeadConfig(memory="host"), "head.memory: host copies the sampled rows"),
        (lambda: AdamW(betas=(0.9, 1.0)), r"AdamW.betas: expected float < 1.0 - at \$\[1\]; found \(0.9, 1.0\)"),
    ],
)  # fmt: skip
def test_settings_made_in_python_are_checked_as_those_of_a_recipe(make, message):
    with pytest.raises(InputError, match=message):
        make()


RENAMED = [
    ("margin.scale=32", "margin.scale: unknown key; since 0.3 it is loss.scale"),
    ("margin.rate=0.1", "margin.rate: unknown key; since 0.3 it is loss.ema_rate"),
    ("margin={name: arcface}", "margin.name: unknown key; since 0.3 it is loss.name"),
    ("report.every=5", "report.every: unknown key; since 0.3 it is log.every"),
    ("report.histograms=5", "report.histograms: unknown key; since 0.3 it is log.histograms_every"),
    ("train.batch=64", "train.batch: unknown key; since 0.3 it is train.global_batch_size"),
    ("head.folder=rows", "head.folder: removed with head.memory: file; use head.memory: host"),
    ("head.memory=file", "head.memory: unknown value file; since 0.3 it is host"),
    ("optim.precision=bf16", "optim.precision: unknown value bf16; since 0.3 it is bfloat16"),
    (
        "checkpoint.on_config_change=refuse",
        "checkpoint.on_config_change: unknown value refuse; since 0.3 it is fail",
    ),
    ("schedule={name: step}", "schedule.name: unknown value step; since 0.3 it is multistep"),
]


@pytest.mark.parametrize(("override", "message"), RENAMED)
def test_a_renamed_key_or_value_is_refused_with_its_new_name(minimal, override, message):
    with pytest.raises(InputError) as raised:
        load_config(minimal, [override])
    assert str(raised.value) == f"{minimal}: {message}"


def test_new_names_of_keys_exist():
    existing = set(conversion._iter_known_keys(msgspec.inspect.type_info(Config)))
    assert {key for key in renamed.KEYS.values() if " " not in key} <= existing
    assert not renamed.KEYS.keys() & existing
    assert set(renamed.SECTIONS.values()) <= existing
    assert renamed.VALUES.keys() - {"schedule.name"} <= existing
