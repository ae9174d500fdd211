"""The settings as a page; and what is said of a setting that is wrong."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from partialfc.__main__ import main
from partialfc.config import AnyLoss, load_config
from partialfc.config.reference import document_sections, select_sections, to_markdown
from partialfc.errors import InputError

ROOT = Path(__file__).parents[2]
KEYS = [
    (section, variant, key)
    for section in document_sections()
    for variant in section.variants or (None,)
    for key in section.keys
]


def test_the_page_is_fresh(capfd):
    with pytest.raises(SystemExit) as ended:
        main(["settings", "--markdown"])
    assert not ended.value.code
    assert capfd.readouterr().out == to_markdown() == (ROOT / "docs/reference/settings.md").read_text(), (
        "expected: partialfc settings --markdown > docs/reference/settings.md"
    )


def test_the_page_of_the_commands_is_fresh():
    command = [sys.executable, "-m", "typer", "partialfc.commands.app", "utils", "docs"]
    command += ["--name", "partialfc", "--title", "Commands"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    page = ROOT / "docs/reference/commands.md"
    assert done.stdout.strip() == page.read_text().strip(), f"expected: {' '.join(command[1:])} > {page}"


def test_every_key_says_what_it_is_for():
    assert not [(section.name, key.name) for section, _, key in KEYS if len(key.description) < 10]


@pytest.mark.parametrize(
    ("place", "titles", "keys"),
    [
        ("loss", len(get_args(AnyLoss)), ["scale", "margin", "h", "ema_rate"]),
        ("train", 1, ["length", "global_batch_size", "micro_batch_size", "max_skipped_steps"]),
        ("head.optim", 2, ["lr", "momentum", "nesterov", "weight_decay"]),
        ("train.global_batch_size", 1, ["global_batch_size"]),
        ("seed", 1, ["seed"]),
        ("optim.ema_decay", 3, ["ema_decay"]),
    ],
)
def test_a_part_of_them(place, titles, keys):
    found = select_sections(place)
    assert len(found) == titles and [key.name for key in found[0].keys] == keys


def test_bounds_units_and_defaults():
    (batch,) = select_sections("head.logits_budget")[0].keys
    assert (batch.allowed, batch.default) == ("integer, 0 or more, MiB per rank", "4096")
    (timeout,) = select_sections("launch.step_timeout")[0].keys
    assert (timeout.allowed, timeout.default) == ("a time above 0, such as 15 minutes", "10 minutes")
    (depths,) = select_sections("backbone.depths")[0].keys
    assert (depths.allowed, depths.default) == ("list of integer, 1 to 1000", "[1, 1, 1, 1]")


def test_on_the_command_line(capfd):
    with pytest.raises(SystemExit):
        main(["settings", "train"])
    assert "max_skipped" in capfd.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["settings", "nonsense"])
    out, err = capfd.readouterr()
    assert (
        ended.value.code == 2 and not out and re.match(r"error: settings nonsense: expected a section", err)
    )


def refusals() -> Iterator[str]:
    """What is said of values that no key takes, at every key."""
    for section, variant, key in KEYS:
        place = ".".join(filter(None, (section.name, key.name)))
        named = [f"{section.name}.name={variant}"] if variant else []
        for value in ("'no such value'", "-1"):
            try:
                load_config("quickstart", [*named, f"{place}={value}"])
            except InputError as error:
                yield str(error)


def test_no_regular_expression_reaches_a_user():
    told = list(refusals())
    assert len(told) > 200
    assert not [it for it in told if "regex" in it or re.search(r"[\\^$]", it)]


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("train.epochs=3", "train.length: 3 epochs"),
        ("epochs=3", "train.length: 3 epochs"),
        ("train.batch_size=64", "train.global_batch_size, over all ranks"),
        ("optim.learning_rate=0.1", "optim.lr"),
        ("fp16=true", "optim.precision: float16"),
        ("loss.m=0.5", "loss.margin"),
        ("lr=0.1", "optim.lr"),
        ("backbone.name=r50", "iresnet50"),
        ("backbone.name=ir_100", "iresnet100"),
        ("backbone.name=mbf", "mobilefacenet"),
        ("loss.name=elasticface", "elastic_arcface"),
        ("optim.precision=half", "float16"),
        ("head.centers_dtype=bf16", "bfloat16"),
        ("head.sampel_rate=0.1", "sample_rate"),
        ("loss.name=acrface", "arcface"),
    ],
)
def test_what_was_meant(override, hint):
    with pytest.raises(InputError, match=rf"; did you mean {re.escape(hint)}\?$"):
        load_config("quickstart", [override])
