"""What is printed is text, results alone reach standard output, and no stream stops a command."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from refold.cli import app, console, streams
from refold.cli.entry import starts_here
from refold.errors import InputError
from refold.table import printable, render

EVIL = "a[/b] [bold]:mask:\x1b[2J\x07\u202etxt\n\r\x9b1m\udcff"
SHOWN = r"a[/b] [bold]:mask:\x1b[2J\x07\u202etxt\n\r\x9b1m\udcff"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_title_of_a_narrow_table_stays_on_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", screen)
    console.table("models/detector.onnx -> out/detector.onnx", ["", "before"], [["nodes", "1"]])
    assert "models/detector.onnx -> out/detector.onnx" in screen.getvalue()


@pytest.mark.parametrize("columns", [20, 200, None])
def test_text_of_others_is_shown_as_it_is_and_does_nothing(
    monkeypatch: pytest.MonkeyPatch, columns: int | None
) -> None:
    screen = Terminal() if columns else io.StringIO()
    monkeypatch.setenv("COLUMNS", str(columns or 20))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")  # colours are asked for, a spinner in a file is not
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    console.say(EVIL, EVIL)
    console.note(EVIL)
    console.complain(EVIL.replace("\n\r", ""))
    console.table(EVIL, ["", EVIL], [[EVIL, EVIL]])
    with console.step(EVIL):
        pass
    console.say_block(render(["name"], [[EVIL]]))
    console.remark_block(f"first\n{EVIL.replace(chr(10), '')}")
    text = screen.getvalue()
    assert not {"\x07", "\u202e", "\x9b", "\udcff", "\U0001f637"} & set(text)
    assert "\x1b[2J" not in text
    if columns is None:
        assert "\x1b" not in text
        assert text.count(SHOWN) == 9
        assert text.count(SHOWN.replace(r"\n\r", "")) == 1
        assert f"first\n{SHOWN.replace(chr(92) + 'n', '')}" in text
        assert not any("\u2800" <= letter < "\u2900" for letter in text)  # no spinner
    elif columns == 20:
        widths = [len(line) for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).splitlines()]
        assert max(widths) <= columns


@pytest.mark.parametrize("letter", ["\x00", "\x1b", "\x7f", "\x85", "\u2028", "\u2066", "\ufeff"])
def test_letters_that_act_are_escaped(letter: str) -> None:
    shown = printable(f"x{letter}y")
    assert shown.isascii()
    assert shown[:2] == "x\\"
    assert shown.encode().decode("unicode_escape") == f"x{letter}y"


def test_letters_of_any_script_are_kept() -> None:
    text = "größe 層 مرحبا क्षि ‌\u200d 😷"
    assert printable(text) == text


@pytest.mark.slow
def test_names_of_modules_and_files_do_nothing_to_a_terminal(run: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "a[b:mask:\x1b[5m"
    folder.mkdir()
    (folder / "net.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    net = nn.Sequential()\n"
        "    net.add_module('n\\x1b[2J', nn.Conv2d(3, 4, 1, bias=False))\n"
        "    net.add_module('[red]\\u202e', nn.BatchNorm2d(4))\n"
        "    return net\n"
        "def fails(): raise ValueError('\\x1b[1mbold [/x] :mask:')\n"
    )
    words = (f"{folder / 'net.py'}:build", "--input-size", "3x8x8")
    shown = str(folder).replace("\x1b", r"\x1b")
    for result in (
        run("inspect", *words),
        run("convert", *words, "-o", folder / "[/x].safetensors"),
        run("inspect", f"{folder / 'net.py'}:fails"),
    ):
        text = result.out + result.err
        assert shown in text
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert (folder / "[/x].safetensors").is_file()
    assert r"\x1b[1mbold [/x] :mask:" in text


@pytest.mark.parametrize(
    "words",
    [
        ["convert", "timm:resnet10t", "-o", "n" * 300 + ".safetensors"],
        ["inspect", "n" * 300 + ".py:build"],
        ["inspect", "n" * 300 + ".pt2"],
        ["verify", "timm:resnet10t", "n" * 300 + ".onnx"],
    ],
)
def test_a_name_too_long_is_bad_input(run: Callable, words: list[str]) -> None:
    result = run(*words)
    assert (result.code, result.out) == (2, "")
    assert "too long" in result.err or (words[0] != "convert" and "no file 'nnn" in result.err)
    assert len(result.err.splitlines()) == 1


class Broken(io.StringIO):
    """A stream whose other end refuses."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(32, 141, ""), (28, 74, "cannot write to standard output: no space left on device")],
)
@pytest.mark.parametrize("words", [["models", "resnet18"], ["models", "x*", "--json"], ["--help"]])
def test_a_broken_standard_output_is_no_defect(
    monkeypatch: pytest.MonkeyPatch, error: int, code: int, said: str, words: list[str]
) -> None:
    monkeypatch.setattr("refold.cli.models.zoo_names", lambda: ["x:resnet18"])
    monkeypatch.setattr("refold.cli.models.own_names", list)
    remarks = io.StringIO()
    monkeypatch.setattr(sys, "stdout", Broken(error))
    monkeypatch.setattr(sys, "stderr", remarks)
    assert app.main(words) == code
    assert remarks.getvalue() == (f"refold: {said}\n" if said else "")


def test_a_broken_standard_error_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Broken(28))
    assert app.main(["models", "no-such-*"]) == 2


def test_an_end_of_file_is_no_interrupt(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> list[str]:
        raise EOFError("ran out of input")

    for name in [name for name in sys.modules if name.startswith("refold_user_")]:
        monkeypatch.delitem(sys.modules, name)  # else this file is beside a user's, and so theirs
    monkeypatch.setattr("refold.cli.models.zoo_names", fail)
    result = run("models")
    assert result.code == 70
    assert "EOFError: ran out of input" in result.err


def test_results_are_told_from_what_others_print(capsys: pytest.CaptureFixture[str]) -> None:
    with streams.safe_streams():
        with streams.results_apart():
            sys.stdout.write("chatter\n")
            sys.stdout.close()  # someone else's mistake
            console.say("result")
            console.print_json({})
        with pytest.raises(InputError), streams.results_apart():
            raise InputError("x")
        console.say("after")
    assert capsys.readouterr() == ("result\n{}\nafter\n", "chatter\n")


@pytest.mark.parametrize(
    ("words", "script", "is_ours"),
    [
        (["python", "C:/bin/refold.exe"], ["refold.exe"], True),
        (["python", "-c", "import refold"], ["-c"], False),
        (["python", "-c", "spawn_main()", "--multiprocessing-fork"], ["refold", "train"], False),
        (["python"], [], False),
        (["python"], ["refold", "a", "b"], False),
    ],
)
def test_only_the_command_line_takes_the_streams(
    words: list[str], script: list[str], is_ours: bool
) -> None:
    assert starts_here(words, script) is is_ours


# The console script as it starts, without the seconds that torch takes; `models` lists one name.
SCRIPT = """
import atexit, os, sys, types
root = types.ModuleType("refold")
root.__path__ = [{package!r}]
root.list_models = list
sys.modules["refold"] = root
import refold.cli.entry
import refold.cli.models
def names():
    print("printed")
    os.system("echo from another program")
    os.write(1, b"written\\n")
    atexit.register(print, "at exit")
    opened = os.open(os.devnull, os.O_RDONLY)
    return ["x:one" if opened > 2 else "x:stream taken"]
refold.cli.models.zoo_names = names
refold.cli.models.own_names = list
from refold.cli.app import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bin") / "refold"
    path.write_text(SCRIPT.format(package=str(Path(app.__file__).parents[1])))
    return path


@pytest.mark.skipif(os.name == "nt", reason="redirections of a shell")
@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [
        ("", 0, "x:one\n"),
        (">&-", 0, ""),
        ("<&- 2>&-", 0, "x:one\n"),
        ("<&- >&- 2>&-", 0, ""),
        (">/dev/full", 74, ""),
        ("| true", 141, ""),
    ],
)
def test_standard_streams_of_a_process(
    script: Path, redirection: str, code: int, said: str
) -> None:
    line = f"set -o pipefail; sleep 0.01; {sys.executable} {script} models --names {redirection}"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        ["bash", "-c", line], env=environment, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, said), done.stderr
    if "2>&-" not in redirection:
        chatter = ["from another program", "written", "printed", "at exit"]
        full = [f"refold: cannot write to standard output: {os.strerror(28).lower()}"]
        wanted = sorted(chatter + (full if code == 74 else []))
        assert sorted(done.stderr.splitlines()) == wanted
