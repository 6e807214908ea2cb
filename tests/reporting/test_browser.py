"""The page in a real browser: it draws, searches and tells, and runs nothing that a name says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import browser
from helpers.browser import Browser
from refold.reporting.page import render
from reporting.nets import HOSTILE, facts_in, repeated

pytestmark = pytest.mark.skipif(
    browser.find() is None, reason="Chromium or its chromedriver is not installed"
)


PREFERS = "return matchMedia('(prefers-color-scheme: {})').matches"


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = browser.find()
    assert found is not None
    opened = Browser(*found, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def opened(window: Browser, page: Path) -> Iterator[Browser]:
    """A browser that shows the page; afterwards nothing was complained of or asked for."""
    window.scheme("light")
    window.open(page, "#overview")
    window.run("localStorage.clear()")
    window.wait(PREFERS.format("light"))
    yield window
    assert window.complaints() == []
    asked = {address.partition("#")[0] for address in window.requests()}
    assert asked <= {page.as_uri(), "about:blank", "data:,"}


def place(facts: dict[str, Any], side: str, name: str) -> int:
    return [box["place"] for box in facts[side]["boxes"]].index(name)


def test_it_draws_what_the_facts_say(opened: Browser, page: Path) -> None:
    facts = facts_in(page)
    assert opened.text("h1") == HOSTILE
    assert "4 folds: 8 layers and 9 norms became 6 layers and 1 norm." in opened.text(".lead")
    assert "Same function" in opened.text(".verdict")
    opened.press("2")
    for side in ("before", "after"):
        drawn = opened.run(f"return document.querySelectorAll('.box.{side}').length")
        assert drawn == len(facts[side]["boxes"])
    assert opened.run("return document.querySelectorAll('.ribbon').length") == 4
    opened.press("3")
    assert opened.run("return document.querySelectorAll('#weights tbody tr').length") == 6


def test_a_name_stays_text(opened: Browser, page: Path) -> None:
    number = place(facts_in(page), "after", f"{HOSTILE}.0")
    opened.open(page, f"#network:after:{number}")
    assert f"{HOSTILE}.0" in opened.text("#detail")
    assert opened.run("return document.querySelectorAll('script').length") == 9
    assert opened.run("return document.querySelectorAll('main script').length") == 0


def test_a_click_tells_the_branches(opened: Browser, page: Path) -> None:
    number = place(facts_in(page), "after", "stage.0.reparam_conv")
    opened.press("2")
    opened.click(f'.box.after[data-id="{number}"]')
    told = opened.text("#detail")
    for word in ("stage.0.wide.0", "stage.0.point.0", "stage.0.identity", "in float64"):
        assert word in told
    assert opened.run("return document.querySelectorAll('#detail canvas').length") == 4
    colours = """
        const data = document.querySelector('#detail canvas').getContext('2d');
        const all = data.getImageData(0, 0, data.canvas.width, data.canvas.height).data;
        return new Set(new Uint32Array(all.buffer)).size"""
    assert opened.run(colours) > 9
    assert opened.run("return document.querySelectorAll('.box.partner').length") == 7
    opened.click("#detail ol button")  # the first layer of the first branch
    assert "BEFORE" in opened.text("#detail").splitlines()[0].upper()


def test_what_stayed_says_why(opened: Browser) -> None:
    opened.click(".reason li button")
    assert opened.run("return document.body.dataset.view") == "network"
    assert "Kept" in opened.text("#detail .callout")


def test_search_finds_and_walks(opened: Browser) -> None:
    opened.press("/")
    opened.press(*"point")
    assert opened.text(".found") == "4 found"
    assert opened.run("return document.querySelectorAll('.box.hit').length") == 4
    opened.press("Enter", "Enter")
    assert opened.text(".found") == "2 of 4"
    assert "stage.0.point.1" in opened.text("#detail")
    opened.press("Escape")
    assert opened.run("return document.querySelectorAll('.box.hit').length") == 0
    opened.click('.filter[data-query="is:kept"]')
    assert "stays" in opened.text("#detail")


def test_the_keyboard_walks_and_zooms(opened: Browser) -> None:
    opened.press("2", "Down", "Down")
    assert "stem.0" in opened.text("#detail")
    opened.press("Right")
    assert opened.text("#detail .eyebrow").lower() == "after"
    scale = "return document.querySelector('.plane').transform.baseVal[1].matrix.a"
    before = opened.run(scale)
    opened.press("+")
    assert opened.run(scale) > before
    opened.press("-", "-")
    assert opened.run(scale) < before
    opened.press("Escape")
    assert "Choose a layer" in opened.text("#detail")
    opened.press("?")
    assert opened.run("return document.getElementById('help').open")


def test_light_and_dark(opened: Browser, page: Path) -> None:
    paper = "return getComputedStyle(document.documentElement).backgroundColor"
    light = opened.run(paper)
    opened.press("t")
    dark = opened.run(paper)
    assert light != dark
    opened.run("localStorage.clear()")
    opened.scheme("dark")
    opened.open(page)
    opened.wait(PREFERS.format("dark"))
    assert opened.run(paper) == dark


def test_a_thousand_layers_are_drawn(window: Browser, page: Path, tmp_path: Path) -> None:
    small = facts_in(page)
    large = tmp_path / "large.html"
    large.write_text(render(repeated(small, 1000 // len(small["before"]["boxes"]) + 1)))
    window.open(large, "#network:after:500")
    drawn = "return document.querySelectorAll('.box.before').length"
    assert window.run(drawn) >= 1000
    assert window.text("#detail h2")
    spots = """
        const all = [...document.querySelectorAll('.box.before')].map((box) =>
            box.getAttribute('transform'));
        return [all.length, new Set(all).size]"""
    count, different = window.run(spots)
    assert count == different  # none lies on another
    assert window.complaints() == []
