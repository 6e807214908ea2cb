"""Every block of code in the README and the docs is right.

Python runs, page by page, in a folder of its own; shell lines are parsed by what they call. A block
that cannot run here has a comment before it that says why: `<!-- not run: it takes hours -->`.
"""

from __future__ import annotations

import copy
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.main import get_command

import refold
from helpers.traps import live
from refold.cli.app import EXAMPLES, app, main
from refold.models import registry
from refold.sources.networks import build
from training.pictures import folders

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^>]*?) -->\n+)?^ *```(?P<kind>\w*)\n(?P<code>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)
KINDS = {"console", "python", "text", "yaml"}
Names = dict[str, Any]


@dataclass(frozen=True)
class Block:
    """A block of code of a page."""

    page: Path
    kind: str
    code: str
    why_not: str | None


def blocks(page: Path) -> list[Block]:
    """Return the blocks of code of a page."""
    found = BLOCK.finditer(page.read_text())
    return [Block(page, m["kind"], m["code"], m["why"]) for m in found]


def shell_lines() -> Iterator[tuple[str, str]]:
    """Yield the page and the line of every command of the docs, and of every command's help."""
    for page in PAGES:
        for block in blocks(page):
            if block.kind == "console":
                for line in block.code.splitlines():
                    if line.startswith("$ "):
                        yield page.name, line[2:]
    for command, line in EXAMPLES.items():
        yield command.__name__, line


# what a page takes for granted


def rule() -> Names:
    """The names that a new file of rules imports."""
    from refold.algebra.operator import Operator
    from refold.rules.rule import Outcome, rule

    return {"rule": rule, "Operator": Operator, "Outcome": Outcome}


def anyones() -> Names:
    """A trained network of a reader, small, and an example for it."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1)]
    more = [nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)]
    x = torch.randn(1, 3, 32, 32)
    return {"model": live(nn.Sequential(*layers, *more)).float(), "example_inputs": x, "x": x}


def checkpoints() -> Names:
    """The files of the page: RepVGG-A0 in its training form, a student beside its teacher."""
    trained = refold.create_model("repvgg_a0", num_classes=10, width=(0.1, 0.1, 0.1, 0.1))
    torch.save(trained.state_dict(), "RepVGG-A0-train.pth")
    torch.save({"student": trained.state_dict(), "teacher": trained.state_dict()}, "dino.pth")
    model = refold.create_model("repvgg_a0", num_classes=10, width=(0.1,) * 4, deploy=True)
    return {"model": model, "state": trained.state_dict()}


def networks() -> Names:
    torch.save(refold.create_model("repvgg_a0").state_dict(), "RepVGG-A0-train.pth")
    return {}


def hugging_face() -> Names:
    from transformers import ViTConfig, ViTForImageClassification

    small = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32}
    config = ViTConfig(**small, num_attention_heads=2)
    ViTForImageClassification(config).save_pretrained("path/to/a/folder")
    return {}


def exported() -> Names:
    given = anyones()
    return given | {"folded": refold.reparameterize(given["model"], given["x"])}


def onnx_file() -> Names:
    given = anyones()
    refold.export(given["model"], "det.onnx", given["x"])
    return {}


def pruned() -> Names:
    from refold.pruning import channel_mask

    given = anyones()
    masked = copy.deepcopy(given["model"])
    with torch.no_grad():
        masked[0].weight[:4] = 0
    given["model"].insert(2, channel_mask(8))
    loss = nn.CrossEntropyLoss()
    return given | {"masked": masked, "criterion": loss, "y": torch.zeros(1, dtype=torch.long)}


SETUP: dict[str, Callable[[], Names]] = {
    "CONTRIBUTING": rule,
    "benchmarks": dict,
    "checkpoints": checkpoints,
    "export": exported,
    "hugging-face": hugging_face,
    "models": networks,
    "onnx-files": onnx_file,
    "pruning": pruned,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder to write to; networks that a page registers are forgotten."""
    monkeypatch.chdir(tmp_path)
    known = dict(registry._MODELS)
    yield
    registry._MODELS.clear()
    registry._MODELS.update(known)


STORIES = ("my-network", "my-images", "smaller-and-faster")  # whose commands run, too
RUNNING = [
    page
    for page in PAGES
    if page.stem not in STORIES and any(block.kind == "python" for block in blocks(page))
]


@pytest.mark.usefixtures("folder")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", RUNNING, ids=lambda page: page.stem)
def test_python_of_the_docs_runs(page: Path) -> None:
    names: Names | None = None
    for at, block in enumerate(b for b in blocks(page) if b.kind == "python"):
        code = compile(block.code, f"{page.name}, block {at}", "exec")
        if block.why_not is None:
            names = SETUP.get(page.stem, anyones)() if names is None else names
            try:
                exec(code, names)
            except ModuleNotFoundError as error:
                pytest.skip(f"{error.name} is not installed")


@pytest.fixture
def told(folder: None) -> None:
    """What the stories take for granted: net.py, trained weights, images of two classes."""
    first = next(block for block in blocks(ROOT / "docs" / "my-network.md"))
    Path("net.py").write_text(first.code)
    torch.manual_seed(0)
    torch.save(build("net.py:build").model.state_dict(), "net.pth")
    folders(Path("photos"), train=6, val=2, side=32)


@pytest.mark.usefixtures("told")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("story", STORIES)
def test_a_story_runs_as_written(
    story: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "net", raising=False)
    names: Names = {}
    for block in blocks(ROOT / "docs" / f"{story}.md"):
        if block.kind == "python":
            exec(compile(block.code, f"{story}.md", "exec"), names)
            continue
        for line in block.code.splitlines():
            capsys.readouterr()
            assert main(shlex.split(line)[2:]) == 0, (line, capsys.readouterr().err)


def test_every_block_says_what_it_is() -> None:
    found = [block for page in PAGES for block in blocks(page)]
    assert {block.kind for block in found} == KINDS
    fences = sum(len(re.findall(r"^ *```", page.read_text(), re.MULTILINE)) for page in PAGES)
    assert fences == 2 * len(found)
    skipped = [block for block in found if block.why_not is not None]
    assert all(len(block.why_not or "") > 10 and block.kind == "python" for block in skipped)


# the shell


def parse_refold(words: list[str]) -> None:
    """Read a command line of ours without running it; raises what the reader would be told."""
    group: Any = get_command(app)
    name, command, rest = group.resolve_command(group.make_context("refold", []), words)
    command.make_context(name, rest)


def check_line(line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "torchrun":
        at = words.index("-m") + 1
        words = words[at:]
    if words[0] == "refold":
        parse_refold(words[1:])
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "pip":
        check_install(words[-1])
    elif words[0] == "python":
        text = (ROOT / words[1]).read_text()
        options = [word[2:].replace("-", "_") for word in words[2:] if word.startswith("--")]
        assert all(re.search(rf"\b{option}: Annotated", text) for option in options)
    else:
        assert words[0] == ".venv/bin/pre-commit"


def check_install(what: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = re.findall(r"\[(.*)\]", what)
    assert all(extra in extras["optional-dependencies"] for extra in asked)


@pytest.mark.parametrize(("page", "line"), list(shell_lines()))
def test_commands_of_the_docs_exist(page: str, line: str) -> None:
    check_line(line)


@pytest.mark.parametrize(
    "line",
    [
        *("refold inspekt net", "refold inspect net --fail", "refold bench net --rounds many"),
        *("refold verify net", "make tea", "pip install '.[tea]'", "python benchmarks/tea.py"),
    ],
)
def test_a_wrong_command_is_found(line: str) -> None:
    with pytest.raises(Exception, match=r".*"):
        check_line(line)
