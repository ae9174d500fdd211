"""The page of runs: what it shows is what they say, and it needs nothing beside itself."""

import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from helpers.runs import config_of, trained, verification_of

from partialfc.errors import InputError
from partialfc.evaluation.metrics import format_scores
from partialfc.monitoring.html_report import write_html_report


class Page(HTMLParser):
    """Its cells, and what it fetches."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.images: list[str] = []
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.text = path.read_text()
        self.feed(self.text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.fetched += [
            value for name, value in attrs if name in ("src", "href") and not value.startswith("data:")
        ]
        if tag == "img":
            assert known["alt"]
            self.images.append(known["src"])
        elif tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td" and data.strip():
            self.cells.append(data)


@pytest.fixture(scope="module")
def two(ranks, pack, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    for name, sigma in (("a<b>", 0.05), ("c", 0.02)):
        config = config_of(
            pack, folder / name, train={"length": 6}, evaluation={"every": 3}, loss={"sigma": sigma}
        )
        ranks.run(1, trained, config, None, True)
    return [folder / "a<b>", folder / "c"]


def test_one_run(two, tmp_path):
    write_html_report(two[:1], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert not page.fetched and len(page.images) == 3  # curves, ROC, pairs
    assert all(it.startswith("data:image/png;base64,iVBOR") for it in page.images)
    for value in format_scores(verification_of(two[0], 6)["unseen"]).values():
        assert value in page.cells
    assert {"train.length", "6", "loss.sigma", "0.05", "unseen"} <= set(page.cells)
    assert re.search(r"ms per step, \d+ images/s", page.text) and "backbone" in page.text
    environment = msgspec.json.decode((two[0] / "summary.json").read_bytes())["environment"]
    assert f"torch {environment['torch']}" in page.text and environment["device"].startswith("cpu with")
    assert "a&lt;b&gt;" in page.text and "a<b>" not in page.text


def test_of_several_runs_the_settings_that_differ(two, tmp_path):
    write_html_report(two, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    settings = page.text.partition("Settings that differ")[2].partition("Environment")[0]
    keys = re.findall(r"<tr><td>([\w.]+)</td>", settings)
    assert keys == ["loss.sigma", "output"]
    assert len(page.images) == 5 and page.text.count("images/s") == 2


def test_a_run_that_has_just_begun(two, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_bytes(b"")
    (run / "recipe.yaml").write_bytes((two[0] / "recipe.yaml").read_bytes())
    write_html_report([run], tmp_path / "page.html")
    assert len(Page(tmp_path / "page.html").images) == 1


def test_what_is_no_run_is_refused(two, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none: expected the folder of a run, with metrics.jsonl"):
        write_html_report([tmp_path / "none"], tmp_path / "page.html")
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_bytes(b"")
    (run / "recipe.yaml").write_text("data: [")
    with pytest.raises(InputError, match=r"run/recipe.yaml: expected the recipe of a run"):
        write_html_report([run], tmp_path / "page.html")
