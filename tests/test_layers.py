"""The rooms of the design, enforced on every import: a file knows its own room and those below."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "refold"

# The rooms, lowest first. A file imports from its own room and from those above it in this list;
# rooms on one line do not know each other. A new file or folder must be entered here.
ROOMS = [
    ["errors", "reasons", "torch_versions"],
    ["algebra"],
    ["rules", "ranked"],
    ["engine"],
    ["graph"],
    ["files", "table", "inputs"],
    ["equivalence", "workload"],
    ["account"],
    ["planning", "folding", "transforms"],
    ["branches"],
    ["checkpoint", "residuals"],
    ["pruning"],
    ["exporting"],
    ["streaming"],
    ["bench"],
    ["tuning"],
    ["blocks"],
    ["models"],
    ["sources"],
    ["training", "onnx_files"],
    ["reporting"],
    ["cli"],
    ["__init__", "__main__"],
]
# The same inside the packages that have rooms of their own; a file of the package is a room, too.
INNER = {
    "graph": [
        ["calls", "layers", "policy", "threads"],
        ["copies"],
        ["trace"],
        ["lift", "surgery"],
        ["fold", "agreement"],
        ["driver"],
        ["rewriting"],
        ["__init__"],
    ],
    "training": [
        ["seeds", "stopping", "settings"],
        ["recipes"],
        ["data"],
        ["loop"],
        ["run"],
        ["studies"],
        ["__init__"],
    ],
}
# Folders within such a room, lowest first.
FOLDERS = {("graph", "trace"): ["code", "recorder", "other_runs"]}
# Whoever stands outside one of these imports from its __init__ only.
FRONT_DOORS = {
    *("graph", "equivalence", "transforms", "branches", "residuals", "pruning", "exporting"),
    *("bench", "tuning", "models", "onnx_files", "reasons", "reporting"),
}
NO_MODULES = {"errors", "algebra", "rules", "engine"}  # know neither nn.Module nor fx
ZOOS = {"timm", "torchvision"}
NAME_ZOOS = ("models/zoo.py", "sources/networks.py")  # whose job is to name the zoos' networks
# What training takes of them, which are no networks.
TOOLS = (
    *(["torchvision", part] for part in ("transforms", "datasets", "tv_tensors")),
    *(["timm", part] for part in ("optim", "loss", "utils")),
)
NEVER = {"ultralytics"}  # AGPL: tests only
MANY = {"models", "cli", "blocks"}  # folders that may hold more files than
MOST = 20

FILES = sorted(SOURCE.rglob("*.py"))
Name = tuple[str, ...]


def ranks(rooms: list[list[str]]) -> dict[str, int]:
    """Return the height of every room in a list of them."""
    return {name: height for height, row in enumerate(rooms) for name in row}


RANKS = ranks(ROOMS)
INNER_RANKS = {package: ranks(rooms) for package, rooms in INNER.items()}


def name_of(path: Path) -> Name:
    """Return the parts of a file's path below refold; a package ends in __init__."""
    return path.relative_to(SOURCE).with_suffix("").parts


def imports(path: Path, tree: ast.AST) -> Iterator[tuple[int, list[str]]]:
    """Yield line and absolute dotted name of every import, wherever in the file it stands."""
    package = ["refold", *path.relative_to(SOURCE).parent.parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split(".")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            for alias in node.names:
                yield node.lineno, [*base, alias.name]


def file_of(name: list[str]) -> Name:
    """Return the file that an imported name of refold stands in: a module, or an __init__."""
    parts = name[1:]
    for length in range(len(parts), 0, -1):
        path = SOURCE.joinpath(*parts[:length])
        if path.with_suffix(".py").exists():
            return tuple(parts[:length])
        if path.is_dir():
            return (*parts[:length], "__init__")
    return ("__init__",)


def may_know_zoos(me: Name, name: list[str]) -> bool:
    """Say whether a file may import a name of timm's or torchvision's."""
    if me[0] == "training" and name[:2] in TOOLS:
        return True
    return RANKS[me[0]] >= RANKS["cli"] or "/".join(me) + ".py" in NAME_ZOOS


def fault(me: Name, name: list[str]) -> str | None:
    """Return what is wrong with an import of other libraries, or None."""
    if name[0] in NEVER:
        return "only tests may"
    if name[0] in ZOOS and not may_know_zoos(me, name):
        return f"only the cli and {' and '.join(NAME_ZOOS)} may"
    if me[0] in NO_MODULES and name[:2] == ["torch", "fx"]:
        return f"{me[0]} knows no fx"
    return None


def misplaced(me: Name, target: Name) -> str | None:
    """Return what is wrong with an import of a file of ours, or None."""
    if me[0] == target[0]:
        table = INNER_RANKS.get(me[0])
        if table is None:
            return None
        if me[1] == target[1]:
            return misplaced_inside(me, target)
        lower = table[target[1]] < table[me[1]]
        return None if lower else f"{me[1]} may not know {target[1]}"
    if RANKS[target[0]] >= RANKS[me[0]]:
        return f"{me[0]} may not know {target[0]}"
    if target[0] in FRONT_DOORS and target[1:] != ("__init__",):
        return f"past the front door of {target[0]}"
    return None


def misplaced_inside(me: Name, target: Name) -> str | None:
    """Return what is wrong with an import of a file of the same inner room, or None."""
    order = FOLDERS.get(me[:2], [])
    if me[2] in order and target[2] in order and order.index(target[2]) > order.index(me[2]):
        return f"{me[2]} may not know {target[2]}"
    return None


def faults(path: Path, tree: ast.AST) -> list[str]:
    """Return one sentence for every import that the rooms forbid."""
    me, found = name_of(path), list[str]()
    for line, name in imports(path, tree):
        if name[0] != "refold":
            why = fault(me, name)
        elif me[0] in ("__init__", "__main__") or (name == ["refold"] and me[0] == "cli"):
            continue  # the command line is a user of the public names
        else:
            why = misplaced(me, file_of(name))
        if why is not None:
            found.append(f"{'/'.join(me)}.py:{line} imports {'.'.join(name)}: {why}")
    return found


def test_a_file_knows_only_its_room_and_those_below() -> None:
    found: list[str] = []
    for path in FILES:
        me = name_of(path)
        assert me[0] in RANKS, f"enter {me[0]} into ROOMS"
        assert me[0] not in INNER_RANKS or me[1] in INNER_RANKS[me[0]], f"enter {me[1]} into INNER"
        found += faults(path, ast.parse(path.read_text()))
    assert not found


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if name_of(path)[0] in NO_MODULES],
    ids=lambda path: str(path.relative_to(SOURCE)),
)
def test_algebra_and_rules_know_no_module(path: Path) -> None:
    tree = ast.parse(path.read_text())
    named = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Name)]
    assert "Module" not in {getattr(node, "attr", getattr(node, "id", "")) for node in named}
    assert ["torch", "nn", "Module"] not in [name for _, name in imports(path, tree)]


def cycle(edges: dict[Name, set[Name]]) -> list[Name]:
    """Return files that import each other in a ring, or nothing."""
    left = {me: set(targets) for me, targets in edges.items()}
    while free := {me for me, targets in left.items() if not targets & set(left)}:
        left = {me: targets for me, targets in left.items() if me not in free}
    return sorted(left)


@pytest.mark.slow
def test_no_file_imports_itself_through_others() -> None:
    """Imports for type checking count, too."""
    edges: dict[Name, set[Name]] = {}
    for path in FILES:
        named = [name for _, name in imports(path, ast.parse(path.read_text()))]
        ours = {file_of(name) for name in named if name[0] == "refold"}
        edges[name_of(path)] = ours - {name_of(path), ("__init__",)}
    assert not cycle(edges)


def test_a_ring_is_found() -> None:
    edges: dict[Name, set[Name]] = {("a",): {("b",)}, ("b",): {("a",), ("c",)}, ("c",): set()}
    assert cycle(edges) == [("a",), ("b",)]
    assert not cycle({("a",): {("b",)}, ("b",): set()})


def test_the_map_in_the_docs_is_true() -> None:
    page = (SOURCE.parents[1] / "docs" / "how-it-works.md").read_text()
    table = page.split("| room | holds |")[1].split("\n\n")[0]
    shown = [re.findall(r"`([\w/]+)`", line.split("|")[1]) for line in table.splitlines()[2:]]
    graph = [[f"graph/{name}" for name in row] for row in INNER["graph"][:-1]]
    at = ROOMS.index(["graph"])
    rows = [*ROOMS[:at], *graph, *ROOMS[at + 1 : -1]]
    assert [{name.rstrip("/") for name in row} for row in shown] == [set(row) for row in rows]
    assert all((SOURCE / name).is_dir() for row in shown for name in row if name.endswith("/"))
    assert " < ".join(f"`{name}`" for [name] in INNER["training"][1:-1]) in page
    for folders in FOLDERS.values():
        assert " < ".join(f"`{name}`" for name in folders) in page


def test_no_room_is_overcrowded() -> None:
    folders = {path.parent for path in FILES if name_of(path)[0] not in MANY}
    full = {folder: len(list(folder.glob("*.py"))) for folder in folders}
    assert not {str(folder): count for folder, count in full.items() if count > MOST}


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("algebra/x.py", "from refold.rules import RULES"),
        ("algebra/x.py", "from ..graph import capture"),
        ("algebra/x.py", "def f():\n    import refold.graph.driver"),
        ("rules/x.py", "import torch.fx"),
        ("graph/trace/x.py", "import timm"),
        (
            "graph/trace/recorder/x.py",
            "from refold.graph.trace.other_runs.variants import Variant",
        ),
        ("graph/trace/x.py", "from refold.graph.lift.piece import Piece"),
        ("graph/lift/x.py", "from refold.graph.surgery.editor import Editor"),
        ("graph/surgery/x.py", "from refold.graph.lift.lifter import Lifter"),
        ("graph/surgery/x.py", "from ..lift import lifter"),
        ("graph/fold/x.py", "from refold.graph.driver import rewrite"),
        ("graph/fold/x.py", "from refold.graph import capture"),
        ("graph/fold/x.py", "import refold"),
        ("graph/fold/x.py", "from refold import plan"),
        ("residuals/x.py", "from refold.graph.lift.lifter import Lifter"),
        ("residuals/x.py", "from refold.graph.lift import lifter"),
        ("residuals/x.py", "from refold.pruning import prune"),
        ("models/x.py", "import timm"),
        ("training/run/x.py", "from torchvision import models"),
        ("training/run/x.py", "import timm"),
        ("training/data/x.py", "from refold.training.loop.engine import Engine"),
        ("cli/x.py", "import ultralytics"),
        ("errors.py", "from refold.files import atomic_path"),
        ("bench/x.py", "from refold.exporting.formats.onnx import write_onnx"),
        ("bench/x.py", "from refold.exporting.formats import onnx"),
    ],
)
def test_a_forbidden_import_is_found(path: str, line: str) -> None:
    assert faults(SOURCE / path, ast.parse(line))


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("rules/x.py", "from refold.algebra.operator import Conv"),
        ("rules/x.py", "from ..algebra import Conv"),
        ("rules/x.py", "from .norm import fold"),
        ("graph/trace/x.py", "import torch.fx"),
        ("graph/fold/x.py", "from refold.graph.lift.lifter import Lifter"),
        ("residuals/x.py", "from refold.graph import Lifter"),
        ("residuals/x.py", "from .plan import Planner"),
        ("cli/x.py", "import refold"),
        ("models/zoo.py", "def f():\n    import timm"),
        ("training/data/x.py", "from torchvision.transforms import v2"),
        ("training/run/x.py", "from refold.training.loop.engine import Engine"),
        ("planning.py", "from refold.graph import capture"),
        ("bench/x.py", "from refold.exporting import export"),
        ("__init__.py", "from refold.planning import plan as plan"),
    ],
)
def test_an_allowed_import_is_not(path: str, line: str) -> None:
    assert not faults(SOURCE / path, ast.parse(line))
