"""A user's file is a guest: it may do anything, and the command still ends in order."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from refold.errors import InputError
from refold.sources.networks import build
from refold.torch_versions import reset_default_device

GUEST = """
import os, sys
import torch
from torch import nn

class Net(nn.Module):
    def forward(self, x): return x

class Odd(BaseException): pass

class Mute(Exception):
    def __str__(self): raise ValueError("no text either")

def leaves(): raise SystemExit(0)
def leaves_in_silence(): sys.exit()
def leaves_with_words(): sys.exit("no data here")
def odd(): raise Odd("not an Exception")
def mute(): raise Mute
def deep(): return deep()
def ends(): raise EOFError("file ends early")
def nothing(): pass
def itself(): return Net
def weights(): return Net().state_dict()
def asks(width): return Net()
value = 3

class Exits(Net):
    calls = 0
    def forward(self, x):
        type(self).calls += 1
        if self.calls >= self.last: sys.exit(chr(33))
        return x
def exits_at_once(): net = Exits(); net.last = 1; return net
def exits_later(): net = Exits(); net.last = 2; return net
def interrupted(): raise KeyboardInterrupt
"""


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("guest") / "net.py"
    path.write_text(GUEST)
    return path


def line_of(text: str) -> int:
    return next(at for at, line in enumerate(GUEST.splitlines(), 1) if text in line)


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("leaves", "it tried to exit (SystemExit: 0)"),
        ("leaves_in_silence", "it tried to exit (SystemExit: None)"),
        ("leaves_with_words", "it tried to exit (SystemExit: no data here)"),
        ("odd", "Odd: not an Exception"),
        ("mute", "Mute: Mute"),
        ("deep", "RecursionError: maximum recursion depth exceeded"),
        ("ends", "EOFError: file ends early"),
    ],
)
def test_whatever_a_factory_raises_names_its_line(guest: Path, factory: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        build(f"{guest}:{factory}")
    place = f"{guest}:{factory} could not be called (line {line_of(f'def {factory}()')} of net.py)"
    assert str(caught.value).startswith(f"{place}: {said}")


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("nothing", "returned nothing (its last line should return the network)"),
        ("itself", "returned the class Net itself (call it: return Net())"),
        ("weights", "returned OrderedDict (if these are weights"),
        ("asks", "missing 1 required positional argument: 'width'"),
        ("value", "TypeError: 'int' object is not callable"),
    ],
)
def test_what_is_no_network_is_explained(guest: Path, factory: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        build(f"{guest}:{factory}")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sys\nsys.exit(3)\n", "(line 2 of net.py): it tried to exit (SystemExit: 3)"),
        ("def build(:\n", "(line 1 of net.py): SyntaxError"),
        ("\n\nimport argparse\np = argparse.ArgumentParser()\np.add_argument('data')\n"
         "p.parse_args()\n", "(line 6 of net.py): it tried to exit (SystemExit: 2)"),
        ("import neighbour_that_exits", "(line 2 of neighbour_that_exits.py): it tried to exit"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_imported_names_its_line(
    run: Callable, tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "net.py").write_text(text)
    (tmp_path / "neighbour_that_exits.py").write_text("import sys\nsys.exit(1)\n")
    result = run("inspect", f"{tmp_path / 'net.py'}:build")
    assert result.code == 2
    assert f"net.py:build: net.py could not be run {said}" in result.err


def test_a_file_reads_the_words_of_no_other_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.py").write_text(
        "import argparse\nparser = argparse.ArgumentParser()\n"
        "parser.add_argument('--width', type=int, default=3)\nwidth = parser.parse_args().width\n"
        "from torch import nn\ndef build(): return nn.Linear(width, 1)\n"
    )
    monkeypatch.setattr(sys, "argv", ["refold", "inspect", "--width", "wide"])
    assert isinstance(build(f"{tmp_path / 'net.py'}:build").model, torch.nn.Linear)
    assert sys.argv[-1] == "wide"


def test_a_network_that_exits_is_bad_input_at_any_call(
    run: Callable, guest: Path, tmp_path: Path
) -> None:
    out = tmp_path / "net.safetensors"
    for factory in ("exits_at_once", "exits_later"):
        result = run("convert", f"{guest}:{factory}", "--input-size", "3x8x8", "-o", out)
        assert (result.code, result.out) == (2, "")
        assert f"(line {line_of('sys.exit(chr(33))')} of net.py): it tried to exit" in result.err
        assert result.err.splitlines()[-1].startswith("refold: ")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_in_a_factory_is_no_error_of_it(run: Callable, guest: Path) -> None:
    result = run("inspect", f"{guest}:interrupted")
    assert (result.code, result.out, result.err) == (130, "", "")


RUDE = """
import io, logging, os, random, signal, sys, warnings
import numpy, torch
from torch import nn

def build():
    print("to everyone")
    sys.stdout = sys.stderr = io.StringIO()
    os.chdir("elsewhere")
    os.umask(0o077)
    sys.argv[:] = ["mine"]
    sys.path.insert(0, "lib")
    sys.path.remove(LEFT_OUT)
    warnings.simplefilter("error")
    logging.basicConfig(level=logging.DEBUG)
    logging.disable(logging.CRITICAL)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("medium")
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(7); random.seed(7); numpy.random.seed(7)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return nn.Conv2d(3, 4, 1)
"""


def state() -> dict[str, object]:
    import numpy as np

    mask = os.umask(0)
    os.umask(mask)
    return {
        "streams": (sys.stdout, sys.stderr),
        "place": (Path.cwd(), mask),
        "script": list(sys.argv),
        "warnings": list(warnings.filters),
        "logging": (list(logging.root.handlers), logging.root.level, logging.root.manager.disable),
        "defaults": (torch.get_default_dtype(), torch.get_default_device()),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "strict": torch.are_deterministic_algorithms_enabled(),
        "chance": (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())),
        "handler": signal.getsignal(signal.SIGTERM),
    }


def test_a_factory_changes_nothing_for_those_who_come_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "left_out").mkdir()
    left_out = str(tmp_path / "left_out")
    (tmp_path / "net.py").write_text(RUDE.replace("LEFT_OUT", repr(left_out)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, left_out])
    folders = list(sys.path)
    before = state()
    try:
        model = build("net.py:build").model
        after = state()
    finally:  # whatever this test finds, those after it start clean
        reset_default_device()
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
        signal.signal(signal.SIGTERM, before["handler"])  # type: ignore[arg-type]
    assert isinstance(model, torch.nn.Conv2d)
    assert [name for name in before if before[name] != after[name]] == []
    assert torch.rand(1).dtype == torch.float32
    assert sys.path[: len(folders)] == folders  # what it added stays, and hides nothing of ours
    assert set(sys.path[len(folders) :]) == {"lib", str(tmp_path)}
    assert capsys.readouterr() == ("", "to everyone\n")


@pytest.mark.slow
def test_a_forward_that_wanders_off_takes_no_file_along(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "net.py").write_text(
        "import os\nfrom torch import nn\n"
        "class Net(nn.Conv2d):\n    def forward(self, x):\n"
        f"        print('on my way'); os.chdir({str(tmp_path / 'elsewhere')!r})\n"
        "        return super().forward(x)\n"
        "def build(): return Net(3, 4, 1)\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ("net.py:build", "--input-size", "3x8x8")
    done = run("convert", *words, "-o", "net.safetensors", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["output"] == "net.safetensors"
    assert "on my way" in done.err
    assert (tmp_path / "net.safetensors").is_file()
    assert not list((tmp_path / "elsewhere").iterdir())
    monkeypatch.chdir(tmp_path)
    assert run("verify", *words[:1], "net.safetensors", *words[1:]).code == 0
