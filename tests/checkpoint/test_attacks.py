"""A checkpoint is a program for Python's unpickler; of a hostile one nothing runs."""

from __future__ import annotations

import io
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from refold.checkpoint import load_checkpoint, read_state_dict
from refold.checkpoint.pickle_reader import Name, Thing, read_pickle
from refold.errors import CheckpointError

STATE = {"weight": torch.linspace(-1, 1, 12).reshape(4, 3), "bias": torch.linspace(1, 2, 4)}


class Reduce:
    """Calls `os.system` on being loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


class Nested(Reduce):
    """Calls what a call returns."""

    def __reduce__(self) -> tuple[Any, ...]:
        return map, (os.system, [self.command, Reduce(self.command)])


class Evaluated(Reduce):
    """Runs source text."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"__import__('os').system({self.command!r})",)


class Stateful(Reduce):
    """Runs in `__setstate__`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Stateful, (self.command,), {"command": self.command}

    def __setstate__(self, state: dict[str, str]) -> None:
        os.system(state["command"])


def run_state(target: object, state: str) -> None:
    os.system(state)


class Setter(Reduce):
    """Has its state set by a function of the file's choice."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Setter, ("true",), self.command, None, None, run_state


class Setting(Reduce):
    """Runs in `__setitem__` and `append` of its own class."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Setting, (self.command,), None, iter([self.command]), iter([("k", self.command)])

    def append(self, item: str) -> None:
        os.system(item)

    def __setitem__(self, key: str, item: str) -> None:
        os.system(item)


class Keyword(Reduce):
    """Is made by `__new__` with named arguments."""

    def __new__(cls, *args: str, command: str = "") -> Keyword:
        os.system(command or "true")
        return super().__new__(cls)

    def __getnewargs_ex__(self) -> tuple[Any, ...]:
        return (self.command,), {"command": self.command}

    __reduce__ = object.__reduce__


class Storage(Reduce):
    """Hides in the place of a tensor's storage."""

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, (Reduce(self.command), 0, (1,), (1,), False, {})


class Tensorish(Reduce):
    """Asks for a subclass of tensors, whose state is set by a call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._tensor._rebuild_from_type_v2, (os.system, str, (self.command,), {})


ATTACKS = [Reduce, Nested, Evaluated, Stateful, Setter, Setting, Keyword, Storage, Tensorish]


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda evil: {"state_dict": STATE, "evil": evil},
        lambda evil: {"evil": [evil], "model": STATE},
        lambda evil: {"state_dict": STATE | {"evil": evil}},
        lambda evil: evil,
    ],
)
def test_nothing_runs(
    tmp_path: Path, attack: type[Reduce], wrap: Callable[[object], object], protocol: int
) -> None:
    trace, file = tmp_path / "it-ran", tmp_path / "a.pth"
    content = wrap(attack(f"touch {trace}"))
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save(content, file, pickle_protocol=protocol, **options)
        trace.unlink(missing_ok=True)  # some of these run already on being made
        if isinstance(content, dict):
            read = read_state_dict(file)
            assert all(torch.equal(read[key], tensor) for key, tensor in STATE.items())
        else:
            with pytest.raises(CheckpointError):
                read_state_dict(file)
        assert not trace.exists()


def archived(program: bytes) -> bytes:
    stream = io.BytesIO()
    torch.save(STATE, stream)
    out = io.BytesIO()
    with zipfile.ZipFile(stream) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, program if name.endswith("data.pkl") else old.read(name))
    return out.getvalue()


PROGRAMS = {
    "a global with a side effect": b"cantigravity\nfly\n.",
    "a dotted global": b"\x80\x04\x8c\x02os\x8c\x0bpath.os.path\x93.",
    "an import by name": b"\x80\x04\x8c\x0bevil_module\x8c\x04name\x93)R.",
    "an old instance": b"(S'touch x'\nios\nsystem\n.",
    "an old object": b"(cos\nsystem\nS'touch x'\no.",
    "an extension": b"\x82\x01.",
    "attributes of a class": b"ccollections\nOrderedDict\n}S'__setitem__'\ncos\nsystem\nsb.",
    "attributes of a function": b"ctorch._utils\n_rebuild_tensor_v2\n}S'__code__'\nNsb.",
    "a reference by text": b"Pos.system\n.",
    "a reference by value": b"cos\nsystem\n(S'touch x'\ntRQ.",
    "a buffer from outside": b"\x97.",
    "a call of a call": b"cos\nsystem\n(S'touch x'\ntR(tR.",
    "getattr": b"cbuiltins\ngetattr\n(cos\nS'system'\ntR(S'touch x'\ntR.",
    "a list as a class": b"]S'x'\n(tR.",
    "nothing on the stack": b"R.",
    "a mark that is missing": b"t.",
    "the wrong memory": b"g7\n.",
    "no end": b"N",
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("is_archive", [False, True])
def test_programs_that_pickle_would_not_write(
    tmp_path: Path, program: str, is_archive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil_module.py").write_text("open('it-ran', 'w').close()\nname = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    loaded = set(sys.modules)
    content = PROGRAMS[program]
    (tmp_path / "a.pth").write_bytes(archived(content) if is_archive else content)
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(tmp_path / "a.pth")
    assert "\n" not in str(caught.value)
    assert not {"antigravity", "evil_module"} & (set(sys.modules) - loaded)
    assert {file.name for file in tmp_path.iterdir()} == {"a.pth", "evil_module.py"}
    assert torch._utils._rebuild_tensor_v2.__code__ is not None


def test_no_class_stands_behind_a_name() -> None:
    data = pickle.dumps([Path("x"), os.path.join, nn.ReLU()])
    path, function, module = read_pickle(io.BytesIO(data), {}, lambda key: key)
    assert isinstance(path, Thing)
    assert function == Name("posixpath", "join")
    assert (type(function), type(module)) == (Name, Thing)
    assert module.state["training"] is True


def doubled(times: int, opening: bytes, closing: bytes) -> bytes:
    """Return a pickle in which each level holds the one below it twice."""
    body = b"K\x01" + b"".join(
        b"q" + bytes([at]) + opening + b"h" + bytes([at]) + b"h" + bytes([at]) + closing
        for at in range(times)
    )
    return b"\x80\x02" + body


@pytest.mark.parametrize(
    "content",
    [
        b"}" + doubled(60, b"0(", b"t")[2:] + b"NsX\x01\x00\x00\x00aN" + b"s.",
        doubled(60, b"0(", b"t") + b".",
        doubled(60, b"0(", b"l") + b".",
        b"cbuiltins\nset\n(" + doubled(60, b"0(", b"t")[2:] + b"ltR.",
        b"(" + doubled(60, b"0(", b"t")[2:] + b"\x91.",
    ],
)
def test_what_would_take_for_ever_or_fill_the_memory(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(archived(b"\x80\x04" + content))
    with pytest.raises(CheckpointError):
        load_checkpoint(nn.Linear(3, 4), tmp_path / "a.pth")


def stored(
    kind: str, key: str, count: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> bytes:
    """Return a pickle of one tensor beside a class that torch's own reader does not know."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return obj[1:] if isinstance(obj, tuple) and obj and obj[0] == "pid" else None

    class Tensor:
        def __reduce__(self) -> tuple[Any, ...]:
            storage = ("pid", "storage", getattr(torch, kind), key, "cpu", count)
            return torch._utils._rebuild_tensor_v2, (storage, 0, size, stride, False, {})

    stream = io.BytesIO()
    Pickler(stream, 2).dump({"by": Path("x"), "weight": Tensor()})
    return stream.getvalue()


@pytest.mark.parametrize(
    "program",
    [
        stored("FloatStorage", "0", 10**9, (10**9,), (1,)),  # longer than the member
        stored("FloatStorage", "0", 12, (13,), (1,)),  # longer than the storage
        stored("FloatStorage", "0", 12, (12,), (-1,)),
        stored("FloatStorage", "0", -1, (1,), (1,)),
        stored("FloatStorage", "../../../../../etc/passwd", 1, (1,), (1,)),
        stored("FloatStorage", "0", 12, (2**40,), (0,)),  # small, and huge once it is copied
        stored("FloatTensor", "0", 12, (12,), (1,)),
    ],
)
def test_tensors_that_are_not_there(tmp_path: Path, program: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(archived(program))
    with pytest.raises(CheckpointError, match=r"cannot be read|claims to hold|not tensors"):
        read_state_dict(tmp_path / "a.pth")
