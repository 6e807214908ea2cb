"""The page is one small file, whole or not at all, in which no name becomes markup."""

from __future__ import annotations

import hashlib
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest
import torch
from torch import nn

import refold
from refold.errors import InputError, RefusedError
from refold.reporting import Comparison
from refold.reporting.facts import gather
from refold.reporting.page import LIMIT, render
from reporting.nets import HOSTILE, Net, deep, facts_in, lively, repeated

pytestmark = pytest.mark.slow


class Reader(HTMLParser):
    """Collects the elements of a page and what they hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.data: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.data.append(data)


def test_a_page_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"net\.onnx is no page: end it in \.html or \.htm"):
        refold.report(nn.Conv2d(3, 4, 1).eval(), tmp_path / "net.onnx", torch.zeros(1, 3, 4, 4))
    assert not any(tmp_path.iterdir())


def test_names_stay_text(page: Path) -> None:
    text = page.read_text()
    assert HOSTILE not in text
    reader = Reader(text)
    assert reader.tags.count("script") == 1 + 1 + 7  # the facts, the layout, our own
    assert "img" not in reader.tags
    facts = facts_in(page)
    assert facts["name"] == HOSTILE
    assert any(box["place"].startswith(HOSTILE) for box in facts["before"]["boxes"])
    assert facts["proof"]["exact"] < 1e-9


def test_the_page_asks_for_nothing(page: Path) -> None:
    text = page.read_text()
    assert all(address.startswith(("#", "data:")) for address in Reader(text).addresses)
    assert "default-src 'none'" in text
    known = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml"}  # names, not addresses
    assert set(re.findall(r"https?://[\w./-]+", text)) <= known
    assert "sourceMappingURL" not in text


def test_the_page_carries_the_licence_of_its_layout(page: Path) -> None:
    text = page.read_text()
    assert "Copyright (c) 2012-2014 Chris Pettitt" in text
    folder = resources.files("refold.reporting") / "assets" / "vendor"
    note = (folder / "README.md").read_text()
    checksum = hashlib.sha256((folder / "dagre.min.js").read_bytes()).hexdigest()
    assert f"sha256: {checksum}" in note
    [version] = re.findall(r"@dagrejs/dagre (\d[\d.]*\d)", text)
    assert f"@dagrejs/dagre {version}," in note


@pytest.mark.parametrize("count", [150, pytest.param(999, marks=pytest.mark.zoo)])
def test_many_layers_are_told_one_by_one(count: int) -> None:
    model, example = lively(deep(count)), torch.randn(1, 4, 4, 4)
    plan = refold.plan(model, example)
    facts = gather(
        Comparison(name="", before=model, after=plan.model, inputs=(example,), account=plan)
    )
    assert len(facts["before"]["boxes"]) == count + 2
    assert sum("branches" in box for box in facts["after"]["boxes"]) == count // 3
    assert len(render(facts).encode()) < LIMIT


def test_a_thousand_layers_fit(page: Path) -> None:
    small = facts_in(page)
    large = repeated(small, 1000 // len(small["before"]["boxes"]) + 1)
    assert len(large["before"]["boxes"]) >= 1000
    text = render(large)
    assert len(text.encode()) < LIMIT
    assert text.count('"kernel":') == sum("kernel" in box for box in large["after"]["boxes"]) > 200


def test_a_page_that_would_be_too_large_leaves_pictures_out() -> None:
    box = {"place": "a", "kernel": {"pixels": "x" * LIMIT}, "weight": {"low": 0.0}}
    sides = {side: {"boxes": [dict(box)]} for side in ("before", "after")}
    text = render({"name": "net"} | sides)
    assert len(text.encode()) < LIMIT
    assert '"weight":{"low":0.0}' in text
    assert "kernel" in box  # the caller's facts stay as they were


def test_the_same_network_gives_the_same_page(page: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, example = lively(Net()), torch.randn(1, 3, 8, 8)
    pages = [refold.report(model, tmp_path / name, example) for name in ("a.html", "b.html")]
    assert pages[0].read_bytes() == pages[1].read_bytes()
    assert pages[0].read_bytes() != page.read_bytes()


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "net.html"
    path.write_text("old")
    with pytest.raises(InputError):
        refold.report(lively(Net()), path, torch.randn(1, 3))
    with pytest.raises(RefusedError):
        refold.report(Net().train(), path, torch.randn(1, 3, 8, 8))
    with pytest.raises(InputError, match="example_inputs"):
        refold.report(lively(Net()), path, None)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["net.html"]
    refold.report(nn.Sequential(nn.ReLU()).eval(), path, torch.zeros(1, 2))
    assert path.read_text().startswith("<!DOCTYPE html>")
