"""Names that users read: every dotted one exists, and none is a module and a function at once."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import refold

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
CODE = sorted(
    path for folder in ("src", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)
DOTTED = re.compile(r"(?<![\w./\\-])refold((?:\.[A-Za-z_]\w*)+)(?![\w/-])")
FILES = (
    ".com",
    ".git",
    ".io",
    ".org",
    ".onnx",
    ".pt2",
    ".pth",
    ".toml",
    ".yaml",
)  # no names of ours


def mentioned(text: str) -> set[str]:
    """Return the dotted names of refold in a text."""
    found = {match[0] for match in DOTTED.finditer(text)}
    return {name for name in found if not name.endswith(FILES)}


def resolve(name: str) -> object:
    """Return what a dotted name means, as a reader would find it."""
    found: object = refold
    path = "refold"
    for part in name.split(".")[1:]:
        path = f"{path}.{part}"
        if not hasattr(found, part) and isinstance(found, ModuleType):
            importlib.import_module(path)
        found = getattr(found, part)
    return found


def test_every_dotted_name_exists() -> None:
    missing: list[str] = []
    for path in (*PAGES, *CODE):
        for name in sorted(mentioned(path.read_text())):
            try:
                resolve(name)
            except (AttributeError, ImportError) as error:
                missing.append(f"{path.relative_to(ROOT)}: {name}: {error}")
    assert not missing


def packages() -> Iterator[ModuleType]:
    """Yield refold and every package in it."""
    yield refold
    for found in pkgutil.walk_packages(refold.__path__, "refold."):
        if found.ispkg:
            yield importlib.import_module(found.name)


def hidden(package: ModuleType) -> list[str]:
    """Return the names of a package that are a file of it and something else, too."""
    files = [found.name for found in pkgutil.iter_modules(package.__path__)]
    return [name for name in files if not inspect.ismodule(getattr(package, name, refold))]


def test_no_name_is_a_module_and_something_else() -> None:
    assert not [f"{package.__name__}.{name}" for package in packages() for name in hidden(package)]


def test_such_a_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "verify.py").write_text("")
    package = ModuleType("package")
    package.__path__ = [str(tmp_path)]
    assert not hidden(package)
    vars(package)["verify"] = refold.verify
    assert hidden(package) == ["verify"]


def test_a_name_that_is_not_there_is_found() -> None:
    assert mentioned("see `refold.verify(a, b)` and refold.training.train.") == {
        "refold.verify",
        "refold.training.train",
    }
    with pytest.raises((AttributeError, ImportError)):
        resolve("refold.train.list_recipes")


def test_a_shell_completes_what_is_for_users() -> None:
    shown = [name for name in dir(refold) if not name.startswith("__")]
    assert shown == sorted(refold.__all__)
    names: dict[str, object] = {}
    exec("from refold import *", names)
    assert set(shown) <= names.keys()
    for name in shown:
        thing = names[name]
        assert inspect.getdoc(thing), name
        owner = thing if isinstance(thing, ModuleType) else inspect.getmodule(thing)
        assert getattr(owner, "__name__", "").startswith("refold"), name


def public() -> Iterator[tuple[str, object]]:
    """Yield what users call: the functions and classes of refold and its packages, and methods."""
    for name in refold.__all__:
        thing = getattr(refold, name)
        parts = vars(thing).items() if isinstance(thing, ModuleType) else [(name, thing)]
        for below, part in parts:
            if below.startswith("_") or not str(getattr(part, "__module__", "")).startswith(
                "refold"
            ):
                continue
            if inspect.isfunction(part):
                yield f"{name}.{below}", part
            elif inspect.isclass(part):
                yield f"{name}.{below}", part
                yield from methods(f"{name}.{below}", part)


def methods(name: str, kind: type) -> Iterator[tuple[str, object]]:
    """Yield the methods that a class writes itself; a dataclass's constructor it does not."""
    for below, part in vars(kind).items():
        function = getattr(part, "fget", getattr(part, "__func__", part))
        if inspect.isfunction(function) and not below.startswith("_"):
            yield f"{name}.{below}", function


def unresolved(things: Iterator[tuple[str, object]]) -> list[str]:
    """Return what tools that read type hints (docs, command lines, checkers) stumble over."""
    found: list[str] = []
    for name, thing in things:
        try:
            typing.get_type_hints(thing)
        except NameError as error:
            found.append(f"{name}: {error}")
    return found


def test_type_hints_of_everything_public_resolve() -> None:
    assert not unresolved(public())
    assert len(list(public())) > 100


def test_a_hint_that_does_not_resolve_is_found() -> None:
    def verb(x: "Missing") -> None: ...  # type: ignore[name-defined]  # noqa: F821, UP037

    assert unresolved(iter([("verb", verb)])) == ["verb: name 'Missing' is not defined"]
