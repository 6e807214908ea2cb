"""The page "Why was this not folded?" knows every reason that the code can give, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import nn

import refold
from refold.reasons import SECTIONS, explain, page
from refold.reasons.kind import GAP

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "refold"
PAGE = ROOT / "docs" / "why-not-folded.md"
# Where reasons come from, and the files there that hold tables of calls or the tests' own oracle.
ROOMS = ("algebra", "rules", "engine", "graph", "residuals", "pruning", "branches")
FILES = (
    "planning.py",
    *(f"onnx_files/{name}.py" for name in ("bodies", "folding", "lowering", "writing")),
    *(f"onnx_files/translation/{name}.py" for name in ("idioms", "layers")),
)
NO_REASONS = ("graph/calls.py", "graph/lift/ranges.py", "algebra/apply.py", "algebra/dense.py")
# What is told to the caller at once, to the log, or to Python.
NOT_KEPT = {
    *("InputError", "require_kind", "RuleLoopError", "TypeVar", "cast", "getattr", "rule"),
    *("debug", "info", "warning"),
}
PARTS = {  # of sentences, and names of steps
    *("more multiply-adds at the border", "… multiply-adds per input position instead of …"),
    *("the folded model gives another answer on the example", "… (other shapes)", "the code of …"),
    *("… (relative error …)", "…; the step was undone", "…, computed once by …", "… of a buffer"),
    *("drop what changes nothing", "drop what is undone", "drop what is computed twice"),
    *("drop what nobody reads", "lay out a sum once"),
    *("lay assigned slices side by side", "… slices of …"),
    *("norm gain into readers", ", but …"),
    *("norm through pool or shuffle", "repeated norm into its layers"),
    "norm through pool or function into readers",
    *(
        "value bias through attention",
        "norms of slices into layer",
        "weight computed once",
        "the code of ……, which could not be followed,",
        "… … … in place",
    ),
    *("… while … reads it", "of other numbers", "of another size or precision", "of another size"),
    *(
        "of another batch size or precision",
        "of another batch size",
        "of another rank",
        "of another precision",
    ),
    *("code outside it", "… sets its …", "its code changes … …"),
    "… steps carry the shortcut along",
    *("… -> … channels", "…: …; …", "; drop_unused=True leaves it out", "kernel …… padding …"),
    *(
        "…; recorded on an input made up for it, …",
        "… and … more",
        "… -> …",
        "stored tensors add axes to it",
        ": it comes from .*",
    ),
    "costlier: it needs more multiply-adds than its parts; allow_growth=True makes it",
    "give it an `adopt` method, let the callable copy the weights, or pass preserve=False",
    *("… … …>", "'(\\w+)' object has no attribute '(\\w+)'", "a folded weight"),
    *("1 node that no input decides", "… nodes that no input decides", "a scale of nothing"),
    *("a convolution of another window, padded by its size", "a padding that goes around"),
    "bounds that differ by channel",
    *("an average with a divisor of its own", "values side by side along an unknown axis"),
    *("a choice of positions", "nodes into one", "the padding of …"),
    "run shape inference on the file, or give its inputs shapes",
    *("the folded model fails (…: …)", "the folded model fails on the example (…: …)"),
    "the folded model gives another answer (other shapes)",
    "the folded model calls … layers of class …, its graph …",
    *("its optional argument… … may be given", "… may run its parts one by one"),
    *("no recorded call runs it…", "… asks for the size of …, and the fold would … it"),
    "eq ne lt le gt ge mod floordiv and_ or_ not_ getattr getitem",
    "an int or … ints",
    "… of … is not a module",
    ", since …",
}
ERRORS = {  # raised by a whole verb, never kept
    "… must be ……, got …",
    "kernel, stride and dilation must be at least 1, got …",
    "this folded forward was made for …=…, got …; call the original model for other arguments",
    "dropping channels alone takes this network to … …, not to …: ask for …, lower floor or "
    "round_to, or pass remove_residuals=True",
    "of its time",
    "a share between … and 1",
    "… to … of them, or for ",
    "… holds something else than when this model was folded, and its forward was made for that: "
    "change it in the original model, then fold",
    "… runs … otherwise than the forward for which it was folded; call the method of the original "
    "model",
    "…… was … when this model was folded, and its forward was made for that; got …: set it on the "
    "original model, then fold",
    "… object has no attribute …",
    "the model is already expanded: … is a …; call collapse first",
}


def written(node: ast.AST) -> str:
    """Return a string of the code, with a gap for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(written, node.values))
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return GAP


def strings(node: ast.AST) -> Iterator[str]:
    """Yield the strings below a node that may reach an account."""
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name in NOT_KEPT:
            return
    if isinstance(node, ast.Constant | ast.JoinedStr):
        yield written(node)
        return
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns") or isinstance(node, ast.Assert):
            continue
        for below in value if isinstance(value, list) else [value]:
            is_comment = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(below, ast.AST) and not is_comment:
                yield from strings(below)


def sentences() -> dict[str, str]:
    """Return every sentence of the code that may be a reason, and the file it stands in."""
    found: dict[str, str] = {}
    below = chain.from_iterable(sorted((SOURCE / room).rglob("*.py")) for room in ROOMS)
    for path in (*below, *(SOURCE / name for name in FILES)):
        name = path.relative_to(SOURCE).as_posix()
        if name in NO_REASONS:
            continue
        for text in strings(ast.parse(path.read_text())):
            if len(text.split()) > 2 and not text.startswith((" ", "def ")):
                found.setdefault(text, name)
    return found


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    return sentences()


def test_the_page_is_what_the_code_writes() -> None:
    """`make reasons` writes it."""
    assert PAGE.read_text() == page()


@pytest.mark.slow
def test_every_reason_that_the_code_can_give_is_in_the_table(said: dict[str, str]) -> None:
    known = {*PARTS, *ERRORS}
    unknown = {text: name for text, name in said.items() if text not in known and not explain(text)}
    assert unknown == {}


def test_the_table_holds_no_reason_that_the_code_does_not_give(said: dict[str, str]) -> None:
    forms = [re.compile(".*".join(map(re.escape, text.split(GAP))), re.DOTALL) for text in said]
    stale = [
        sentence
        for _, kinds in SECTIONS
        for kind in kinds
        for sentence, (_, own) in zip(kind.says, kind.forms, strict=True)
        if not any(form.fullmatch(sentence) for form in forms) and not any(map(own.fullmatch, said))
    ]
    assert stale == []


def test_what_is_set_aside_exists(said: dict[str, str]) -> None:
    assert {*PARTS, *ERRORS} - set(said) == set()


def test_no_two_kinds_have_one_title_or_one_sentence() -> None:
    kinds = [kind for _, reasons in SECTIONS for kind in reasons]
    titles = [kind.title for kind in kinds]
    says = [sentence for kind in kinds for sentence in kind.says]
    assert len(set(titles)) == len(titles)
    assert len(set(says)) == len(says)


class Shared(nn.Module):
    """A convolution read by its norm and by the sum behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.norm(y).relu() + y.sigmoid()


@pytest.mark.parametrize(
    ("net", "title"),
    [
        (Shared(), "Something else reads the value"),
        (
            nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)),
            "A shift meets zero padding",
        ),
        (
            nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU()),
            "The norm has no neighbour to go into",
        ),
        (nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)), "The merge would cost more"),
    ],
)
def test_what_an_account_says_is_explained(net: nn.Module, title: str) -> None:
    kept = refold.plan(net.eval(), torch.zeros(1, 3, 9, 9)).kept
    kinds = [explain(item.reason) for item in kept]
    assert title in [kind.title for kind in kinds if kind]
    assert all(kinds)


def test_of_two_kinds_the_one_that_says_more_is_meant() -> None:
    kind = explain("its gain stays: conv reads it: the module is called 2 times")
    assert kind
    assert kind.title == "The gain of a LayerNorm or GroupNorm stays"
    assert explain("nobody says so") is None
