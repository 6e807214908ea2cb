"""Files for phones, and machine code: written by other libraries, run again like every file."""

from __future__ import annotations

import importlib.util
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import refold
from refold.errors import ExportError, InputError, MissingDependencyError
from refold.exporting import (
    Options,
    describe,
    described,
    export,
    is_compiled,
    open_file,
    read_provenance,
    write,
)
from refold.exporting.formats import aot, executorch, litert
from refold.sources.networks import build

X = torch.randn(2, 3, 9, 7)
LIBRARIES = {".pte": ("executorch", "executorch"), ".tflite": ("litert_torch", "litert")}


class Two(nn.Module):
    """Two outputs, of which one is a map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image: Tensor, scale: Tensor | None = None) -> dict[str, Any]:
        y = torch.relu(self.conv(image))
        return {"map": y if scale is None else y * scale, "mean": y.mean((2, 3))}


@pytest.fixture(scope="module")
def net() -> Two:
    torch.manual_seed(0)
    return Two().eval()


@pytest.mark.parametrize("suffix", LIBRARIES)
def test_a_missing_library_is_named_before_anything_is_done(
    suffix: str, net: Two, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    library, extra = LIBRARIES[suffix]
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == library else found(name, *a)
    )
    with pytest.raises(MissingDependencyError, match=rf"needs {library}.*refold\[{extra}\]"):
        export(net, tmp_path / f"net{suffix}", X)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", LIBRARIES)
def test_sizes_are_fixed(suffix: str, net: Two, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="takes one size"):
        export(net, tmp_path / f"net{suffix}", X, dynamic="batch")


def test_only_a_program_is_compiled(net: Two, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"aot compiles a \.pt2"):
        export(net, tmp_path / "net.onnx", X, aot=True)


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "format_"), [(".pte", executorch), (".tflite", litert)])
def test_a_file_for_phones_is_compared(
    suffix: str, format_: Any, net: Two, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(LIBRARIES[suffix][0])
    path = export(net, tmp_path / f"net{suffix}", (X, torch.tensor(2.0)))
    assert path.exists()
    if suffix == ".pte":
        assert read_provenance(path)["source"] == "Two"
    name = f"run_{format_.__name__.rpartition('.')[2]}"
    run = getattr(format_, name)
    monkeypatch.setattr(format_, name, lambda call, inputs: [y + 0.01 for y in run(call, inputs)])
    with pytest.raises(ExportError, match="differs"):
        export(net, tmp_path / f"other{suffix}", X)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="it needs a C++ compiler")
def test_machine_code_is_compared_and_holds_nothing_private(net: Two, tmp_path: Path) -> None:
    done = write(net, tmp_path / "net.pt2", X, Options(aot=True, dynamic="batch"))
    path = done.path
    assert list(done.shapes.values()) == [("batch", 3, 9, 7)]
    assert "code for" in done.notes[0]
    describe(path, {"classes": ["ä", "b"]})
    assert described(path) == {"classes": ["ä", "b"]}
    call, sizes = open_file(path)
    assert dict(sizes) == {"image": (None, 3, 9, 7)}
    for batch in (1, 5):
        x = torch.randn(batch, 3, 9, 7)
        with torch.no_grad():
            for ours, theirs in zip(call((x,)), net(x).values(), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    content = path.read_bytes()
    assert not [place for place in aot._private() if place in content]
    assert b"#include" not in content
    assert is_compiled(path)
    assert read_provenance(path)["source"] == "Two"
    with pytest.raises(InputError, match="machine code"):
        build(str(path))
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        aot.open_aot(path)


def test_machine_code_that_does_not_say_its_sizes_is_not_run(tmp_path: Path) -> None:
    """It would read whatever lies behind an input that is too small."""
    path = tmp_path / "net.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data/aotinductor/model/net.so", b"")
    assert is_compiled(path)
    with pytest.raises(InputError, match="does not say which sizes"):
        open_file(path)


def test_a_program_is_no_machine_code(net: Two, tmp_path: Path) -> None:
    assert not is_compiled(refold.export(net, tmp_path / "net.pt2", X))
    assert not is_compiled(tmp_path / "none.pt2")


def test_a_network_that_cannot_be_compiled_leaves_no_file(
    net: Two, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("g++ not found")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    with pytest.raises(ExportError, match=r"g\+\+ not found; it needs a C\+\+ compiler"):
        export(net, tmp_path / "net.pt2", X, aot=True)
    assert not list(tmp_path.iterdir())
