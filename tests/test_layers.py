"""The layer table of the design, enforced on every import: a file knows only what lies below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "refold"

# Name of a file or folder in src/refold -> its layer. A new one must be entered here.
LAYERS = {
    "errors": 0,
    "algebra": 1,
    "rules": 2,
    "graph": 3,
    **dict.fromkeys(["files", "table", "workload", "registry"], 4),
    **dict.fromkeys(["plan", "reparameterize", "verify", "checkpoint", "transforms"], 4),
    **dict.fromkeys(["expand", "collapse", "residuals", "proof"], 4),
    "blocks": 5,
    **dict.fromkeys(["models", "pruning", "train", "export", "bench", "report"], 6),
    "cli": 7,
    "__init__": 8,
    "__main__": 8,
}
USERS = 6  # the packages of this layer meet only through each other's __init__
NO_MODULES = {"errors", "algebra", "rules"}  # know neither nn.Module nor fx
ZOOS = {"timm", "torchvision"}
REGISTERS_ZOOS = "models/zoo.py"  # whose job is to name the zoos' networks
# What training takes of them, which are no networks.
TOOLS = (
    *(["torchvision", part] for part in ("transforms", "datasets", "tv_tensors")),
    *(["timm", part] for part in ("optim", "loss", "utils")),
)
NEVER = {"ultralytics"}  # AGPL: tests only

FILES = sorted(SOURCE.rglob("*.py"))


def dotted(path: Path) -> list[str]:
    """Return `refold.a.b` of a file as a list; a package's __init__ is the package."""
    parts = ["refold", *path.relative_to(SOURCE).with_suffix("").parts]
    return parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts


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


def member(name: str) -> str:
    """Return the entry of LAYERS that a file belongs to: `_verify_inputs` is part of `verify`."""
    return name if name in LAYERS or name[0] != "_" else name[1:].split("_")[0]


def layer_of(name: list[str]) -> int:
    """Return the layer of an imported refold name; `refold.plan` as a verb is the facade's."""
    return LAYERS.get(member(name[1]), LAYERS["__init__"]) if len(name) > 1 else LAYERS["__init__"]


def is_inside(name: list[str]) -> bool:
    """Say whether a name reaches below the __init__ of its layer-6 package."""
    package = SOURCE.joinpath(*name[1:2])
    if len(name) < 3 or name[2] in exported(package / "__init__.py"):
        return len(name) > 3
    return (package / name[2]).with_suffix(".py").exists()


def may_know_zoos(path: Path, name: list[str]) -> bool:
    """Say whether a file may import a name of timm's or torchvision's."""
    me = member(dotted(path)[1])
    if me == "train" and name[:2] in TOOLS:
        return True
    return LAYERS[me] >= LAYERS["cli"] or path.relative_to(SOURCE).as_posix() == REGISTERS_ZOOS


def exported(init: Path) -> set[str]:
    """Return the names that a package's __init__ imports, and so offers."""
    nodes = ast.walk(ast.parse(init.read_text())) if init.exists() else ()
    return {a.asname or a.name for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names}


def faults(path: Path, tree: ast.AST) -> list[str]:
    """Return one sentence for every import that the table forbids."""
    me = member(dotted(path)[1])
    found: list[str] = []
    for line, name in imports(path, tree):
        where = f"{path.relative_to(SOURCE)}:{line} imports {'.'.join(name)}"
        if name[0] in NEVER or (name[0] in ZOOS and not may_know_zoos(path, name)):
            may = "tests" if name[0] in NEVER else f"the cli and {REGISTERS_ZOOS}"
            found.append(f"{where}: only {may} may")
        elif me in NO_MODULES and name[:2] == ["torch", "fx"]:
            found.append(f"{where}: {me} knows no fx")
        elif name[0] != "refold" or name[1:2] == [dotted(path)[1]] or LAYERS[me] > LAYERS["cli"]:
            continue
        elif name == ["refold"] and me == "cli":
            continue  # the command line is a user of the public names
        elif layer_of(name) > LAYERS[me]:
            found.append(f"{where}: a higher layer")
        elif layer_of(name) == LAYERS[me] == USERS and is_inside(name):
            found.append(f"{where}: past that package's __init__")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_only_lower_layers(path: Path) -> None:
    assert member(dotted(path)[1]) in LAYERS, f"enter {dotted(path)[1]} into LAYERS"
    assert not faults(path, ast.parse(path.read_text()))


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if member(dotted(path)[1]) in NO_MODULES],
    ids=lambda path: str(path.relative_to(SOURCE)),
)
def test_algebra_and_rules_know_no_module(path: Path) -> None:
    tree = ast.parse(path.read_text())
    named = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Name)]
    assert "Module" not in {getattr(node, "attr", getattr(node, "id", "")) for node in named}
    assert ["torch", "nn", "Module"] not in [name for _, name in imports(path, tree)]


def test_users_of_the_verbs_form_no_cycle() -> None:
    edges: dict[str, set[str]] = {}
    for path in FILES:
        me = member(dotted(path)[1])
        for _, name in imports(path, ast.parse(path.read_text())):
            if name[0] == "refold" and layer_of(name) == LAYERS[me] == USERS and name[1] != me:
                edges.setdefault(me, set()).add(name[1])
    order: list[str] = []
    while edges:
        free = {target for targets in edges.values() for target in targets} - set(edges)
        free |= {me for me, targets in edges.items() if targets <= set(order)}
        assert free - set(order), f"a cycle among {sorted(edges)}"
        order += sorted(free - set(order))
        edges = {me: targets for me, targets in edges.items() if me not in free}


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("algebra/x.py", "from refold.rules import RULES"),
        ("algebra/x.py", "from ..graph import capture"),
        ("algebra/x.py", "def f():\n    import refold.graph.capture"),
        ("rules/x.py", "import torch.fx"),
        ("graph/x.py", "import timm"),
        ("models/x.py", "import timm"),
        ("train/x.py", "from torchvision import models"),
        ("train/x.py", "import timm"),
        ("graph/x.py", "import refold"),
        ("graph/x.py", "from refold import plan"),
        ("cli/x.py", "import ultralytics"),
        ("errors.py", "from refold.files import atomic_path"),
        ("bench/x.py", "from refold.export.onnx import write_onnx"),
        ("bench/x.py", "from refold.export import onnx"),
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
        ("graph/x.py", "import torch.fx"),
        ("cli/x.py", "import refold"),
        ("models/zoo.py", "def f():\n    import timm"),
        ("train/x.py", "from torchvision.transforms import v2"),
        ("plan.py", "from refold.graph import capture"),
        ("bench/x.py", "from refold.export import export"),
        ("__init__.py", "from refold.plan import plan as plan"),
    ],
)
def test_an_allowed_import_is_not(path: str, line: str) -> None:
    assert not faults(SOURCE / path, ast.parse(line))
