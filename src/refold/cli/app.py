"""The console script: one table of commands, one place where errors become one line."""

from __future__ import annotations

import functools
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.main import get_command

from refold.cli.bench import bench
from refold.cli.console import complain, remark_block, say
from refold.cli.convert import convert
from refold.cli.demo import demo
from refold.cli.expand import collapse, expand
from refold.cli.inspect import inspect
from refold.cli.interrupts import INTERRUPTED, Interrupts
from refold.cli.models import models
from refold.cli.options import spread
from refold.cli.predict import predict
from refold.cli.prune import prune
from refold.cli.report import report
from refold.cli.residuals import remove_residuals
from refold.cli.streams import OutputLost, results_apart, safe_streams
from refold.cli.study import study
from refold.cli.train import train
from refold.cli.tune import tune
from refold.cli.verify import verify
from refold.errors import (
    InputError,
    NotEquivalentError,
    RefoldError,
    RuleLoopError,
    is_out_of_memory,
    one_line,
)
from refold.sources.guest import describe, place_of

BAD_INPUT = 2
NOT_EQUAL = 1
DEFECT = 70  # EX_SOFTWARE of sysexits.h
OUTPUT_FULL = 74  # EX_IOERR
READER_LEFT = 141  # as SIGPIPE ends other programs

app = typer.Typer(
    name="refold",
    help="Fold the plain, fast, equal network out of a trained one. "
    "Every fold is exact for every input, or it is refused with a reason.",
    epilog="MODEL is one of our names, timm:NAME, torchvision:NAME, hf:FOLDER, "
    "path/to/file.py:factory, an exported .pt2, or the folder of a run. "
    "--debug anywhere, or REFOLD_DEBUG=1, shows the traceback of an error. "
    "Example: refold convert timm:repvgg_a0 -o repvgg_a0.onnx",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its boxes squeeze the text of an option into a narrow column
)

EXAMPLES = {
    inspect: "refold inspect timm:repghostnet_100",
    convert: "refold convert net.py:build --checkpoint net.pt -o net.onnx",
    report: "refold report timm:repvgg_a0 -o report.html",
    verify: "refold verify net.py:build net.onnx --checkpoint net.pt",
    expand: "refold expand timm:resnet18 --block dbb --checkpoint net.pth -o wide.safetensors",
    collapse: "refold collapse timm:resnet18 --block dbb --checkpoint wide.pth -o net.safetensors",
    remove_residuals: "refold remove-residuals timm:resnet18 --checkpoint net.pth -o plain.onnx",
    prune: "refold prune torchvision:resnet18 --checkpoint net.pth --ratio 0.5 -o small.onnx",
    train: "refold train --data DIR --model resnet18 --block dbb --epochs 2 -o RUN",
    predict: "refold predict RUN photos/*.jpg",
    study: "refold study branches --seeds 3 -o study",
    bench: "refold bench timm:repvgg_a0 --runtime eager --runtime onnxruntime",
    tune: "refold tune timm:repvgg_a0 --runtime onnxruntime -o tuning.json",
    models: "refold models '*repvgg*'",
    demo: "refold demo --output demo-out",
}


def _apart(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let only results reach standard output, and no network exit the process."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        with results_apart():
            try:
                return command(*args, **kwargs)
            except (Exception, KeyboardInterrupt):
                raise
            except BaseException as error:  # a forward that calls exit: our own code never does
                what = f"the network failed{place_of(error)}: {describe(error)}"
                raise InputError(what) from error

    return run


for _command, _example in EXAMPLES.items():
    app.command(epilog=f"Example: {_example}")(_apart(spread(_command)))


def _print_version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        say(f"refold {importlib.metadata.version('refold')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print and exit."),
    ] = False,
) -> None:
    del version  # its callback has done everything


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; show a traceback only if asked.

    Args:
        argv: the words after `refold`; those of this process by default.

    Returns:
        0, or 1 if a check failed, 2 on bad input, 70 on a bug in refold, 74 if the output is full,
        128 plus the number of a signal: 130 for Ctrl-C, 141 for a closed pipe.
    """
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    debug = "--debug" in words or bool(os.environ.get("REFOLD_DEBUG"))
    words = [word for word in words if word != "--debug"]
    interrupts = Interrupts()
    with safe_streams():
        try:
            with interrupts, warnings.catch_warnings():
                if not debug:  # a user can do nothing about torch's and onnxscript's own warnings
                    warnings.simplefilter("ignore")
                code = _run(words)
        except KeyboardInterrupt:
            code = INTERRUPTED
        except Exception as error:
            if debug:
                remark_block("".join(traceback.format_exception(error)))
            # A library may have turned Ctrl-C into an error of its own, such as a failed import.
            code = INTERRUPTED if interrupts.received else _explain(error)
    if argv is None:  # the process ends: what a user's file prints at exit is not a result
        sys.stdout = sys.stderr
    return (interrupts.exit_code or code) if code else 0


_NO_VALUE = re.compile(r"(--[\w-]+)=")


def _require_values(words: Sequence[str]) -> None:
    """Refuse empty words: most come from a shell's variable that is not set.

    Raises:
        InputError: naming the first.
    """
    for before, word in zip(["", *words], words, strict=False):
        found = _NO_VALUE.fullmatch(word)
        if word and not found:
            continue
        option = found[1] if found else before if before.startswith("-") else ""
        what = f"the value of {option}" if option else "an argument"
        raise InputError(f"{what} is empty: is it a variable of the shell that is not set?")


_OTHERWISE = {
    **dict.fromkeys(("deploy", "export", "fold", "fuse", "reparameterize"), "convert"),
    **dict.fromkeys(("check", "compare"), "verify"),
    "plan": "inspect",
}
"""Commands by the names that the Python functions, or other tools, have."""


def _require_command(words: Sequence[str]) -> None:
    """Refuse a command that has another name here.

    Raises:
        InputError: saying which.
    """
    first = words[0]
    if first in _OTHERWISE:
        raise InputError(f"there is no command {first!r}: use refold {_OTHERWISE[first]}")


def _run(words: list[str]) -> int:
    _require_values(words)
    _require_command(words)
    code = get_command(app).main(args=words, prog_name="refold", standalone_mode=False)
    sys.stdout.flush()
    return code if isinstance(code, int) else 0


def _explain(error: BaseException) -> int:
    """Print an error as one line and return its exit code."""
    if isinstance(error, typer.Abort) and error.__cause__:  # what typer makes of an EOFError
        error = error.__cause__
    if isinstance(error, OutputLost):
        if error.reader_left:
            return READER_LEFT
        complain(f"cannot write to standard output: {error}")
        return OUTPUT_FULL
    if isinstance(error, typer.TyperException):
        place = getattr(error, "ctx", None)
        command = "refold" if place is None else place.command_path
        complain(f"{error.format_message()} (see {command} --help)")
        return BAD_INPUT
    if isinstance(error, RefoldError) and not isinstance(error, RuleLoopError):
        complain(str(error))
        return NOT_EQUAL if isinstance(error, NotEquivalentError) else BAD_INPUT
    if isinstance(error, OSError) and isinstance(error.filename, str):
        complain(f"cannot use {error.filename}: {(error.strerror or str(error)).lower()}")
        return BAD_INPUT
    if is_out_of_memory(error):
        complain(f"out of memory{_asked_for(error)}; give a smaller batch or input")
        return BAD_INPUT
    place = place_of(error, unless_ours=True)
    if place:
        complain(f"the network failed{place}: {describe(error)}")
        return BAD_INPUT
    what = f"{type(error).__name__}: {str(error)[:500]}"
    complain(f"this is a bug in refold; please report it with the output of --debug: {what}")
    return DEFECT


def _asked_for(error: BaseException) -> str:
    """Return how much memory was asked for at once, where the error says so."""
    from rich import filesize

    found = re.search(r"allocate (?:(\d+) bytes|([\d.]+ [KMGT]iB))", one_line(error))
    if found is None:
        return ""
    return f" ({found[2] or filesize.decimal(int(found[1]))} at once)"
