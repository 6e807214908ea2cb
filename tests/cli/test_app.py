"""The one place where errors become lines and exit codes, and where text goes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from refold.cli import app
from refold.cli.console import UNBOUNDED, complain, out
from refold.errors import CheckpointError, NotEquivalentError, RuleLoopError

pytestmark = pytest.mark.slow

Net = Callable[[str], str]
COMMANDS = ("inspect", "convert", "verify", "expand", "collapse", "bench", "models", "demo")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(run: Callable, command: str) -> None:
    result = run(command, "--help")
    assert result.code == 0
    assert f"Example: refold {command} " in result.out


def test_no_words_show_the_commands(run: Callable) -> None:
    result = run()
    assert result.code == 0
    assert all(command in result.out for command in COMMANDS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["inspekt"], "Did you mean 'inspect'"),
        (["export", "timm:resnet10t"], "no command 'export': use refold convert"),
        (["plan", "timm:resnet10t"], "no command 'plan': use refold inspect"),
        (["inspect"], "Missing argument 'MODEL'"),
        (["convert", "timm:resnet10t"], "Missing option '-o'"),
        (["inspect", "timm:resnet10t", "--batch", "0"], "'--batch'"),
        (["inspect", "resnet10t"], "is not a MODEL"),
        (["inspect", "repvgg_a9"], "did you mean repvgg_a"),
        (["inspect", "timm:resnet10tt"], "did you mean resnet10t"),
        (["inspect", "timm:resnet10t", "--input-size", "big"], "write numbers joined by x"),
        (["inspect", "timm:resnet10t", "--checkpoint", "nowhere.pt"], "nowhere.pt"),
        (["convert", "timm:resnet10t", "-o", "net.engine"], "net.engine"),
        (["convert", "timm:resnet10t", "-o", "nowhere/at/all/net.onnx"], "no folder"),
        (["verify", "timm:resnet10t", "nowhere.onnx"], "there is no file 'nowhere.onnx'"),
        (["verify", "timm:resnet10t", "net.engine"], "suffixes .onnx"),
        (["models", "no-such-*"], "no network matches"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run: Callable, words: list[str], said: str) -> None:
    result = run(*words)
    assert result.code == 2
    assert result.out == ""
    lines = [line for line in result.err.splitlines() if line.startswith("refold: ")]
    assert lines == [result.err.splitlines()[-1]]
    assert said in lines[0]
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (CheckpointError("junk\nfile"), 2, "refold: junk file"),
        (NotEquivalentError("off by 1"), 1, "refold: off by 1"),
        (RuleLoopError("rule x"), 70, "this is a bug in refold; please report it"),
        (KeyError("x"), 70, "this is a bug in refold; please report it"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_every_error_has_its_exit_code(
    run: Callable, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    def fail() -> list[str]:
        raise error

    monkeypatch.setattr("refold.cli.models.zoo_names", fail)
    result = run("models")
    assert (result.code, result.out) == (code, "")
    assert said in result.err
    assert len(result.err.splitlines()) <= 1


@pytest.mark.parametrize("how", ["word", "variable"])
def test_a_traceback_is_shown_on_request(
    run: Callable, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "variable":
        monkeypatch.setenv("REFOLD_DEBUG", "1")
        monkeypatch.setattr(app, "_explain", lambda _: 2)  # the traceback is all that is left
    words = ["models", "no-such-*", *(["--debug"] if how == "word" else [])]
    from refold.cli.app import main

    assert main(words) == 2


def test_brackets_are_text_and_long_lines_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    complain("model['a'] [bold]x[/bold] " + "long " * 100)
    assert capsys.readouterr().err == "refold: model['a'] [bold]x[/bold] " + "long " * 99 + "long\n"
    assert out().width == UNBOUNDED


def test_models_are_listed_bare_or_prefixed(run: Callable) -> None:
    assert run("models", "torchvision:resnet18").out == "torchvision:resnet18\n"
    both = run("models", "vgg11").out.split()
    assert both == ["timm:vgg11", "torchvision:vgg11"]


def test_a_network_whose_library_is_missing_is_listed_with_what_to_install(
    run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    lines = run("models", "resnet1*").out.splitlines()
    assert lines[1].startswith("resnet101 ")
    assert all("install refold[models]" in line for line in lines[1:4])


SOURCE = str(Path(app.__file__).parents[2])


def python(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": SOURCE, "REFOLD_DEBUG": ""}
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True, text=True, env=environment, check=False, timeout=60,
    )  # fmt: skip


def test_the_module_is_the_console_script() -> None:
    done = python("-m", "refold", "inspects")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "No such command 'inspects'" in done.stderr


def test_the_command_line_does_not_wait_for_torch() -> None:
    code = (
        "import sys, types; root = types.ModuleType('refold')\n"
        f"root.__path__ = [{str(Path(app.__file__).parents[1])!r}]; sys.modules['refold'] = root\n"
        "import refold.cli.app; sys.exit('torch' in sys.modules)"
    )
    assert python("-c", code).returncode == 0


@pytest.mark.parametrize("words", [[], ["--help"], ["train", "--help"]])
def test_help_needs_no_torch(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "refold", *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: refold" in done.stdout
