"""A folded file rewritten by a pass over its graph, and compared with the one it came from."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from refold.errors import RefusedError
from refold.files import atomic_path
from refold.graph import Capture, undisturbed
from refold.onnx_files.constants import constants_of, sizes_of
from refold.onnx_files.folding import fold_onnx
from refold.onnx_files.proof import Trial, examples, prove
from refold.onnx_files.reading import OnnxFile, quantized_reason, read
from refold.onnx_files.saving import apply, companion, has_weights_outside, require_other, save
from refold.onnx_files.translation.network import Network
from refold.onnx_files.translation.translating import translate
from refold.onnx_files.writing import Writer

T = TypeVar("T")


class Translated(NamedTuple):
    """A file as the graph that passes edit.

    Args:
        network: the file as it was read.
        capture: its graph.
        names: what the file calls the layers of the graph.
    """

    network: Network
    capture: Capture
    names: dict[str, str]

    @classmethod
    def of(cls, path: Path) -> Translated:
        """Read a file."""
        file = read(path)
        sizes = sizes_of(file)
        network, capture = translate(file, sizes, constants_of(file, sizes))
        calls = (call for call in capture.graph.nodes if call.op == "call_module")
        names = {str(call.target): str(call.meta["place"]) for call in calls}
        return cls(network, capture, names)


@contextmanager
def folded_first(
    path: Path, output: str | os.PathLike[str] | None, example_inputs: Mapping[str, Any] | None
) -> Generator[tuple[Path, Path]]:
    """Yield a folder that is removed afterwards, and the folded form of a file in it.

    Raises:
        RefusedError: when the file is quantized.
        InputError: when it is damaged, or cannot be run, or the output would replace it.
    """
    file = read(path)
    if output is not None:
        require_other(file, output)
    reason = quantized_reason(file)
    if reason is not None:
        raise RefusedError(f"{path}: {reason}")
    with tempfile.TemporaryDirectory(prefix="refold-") as name:
        folded = Path(name) / "folded.onnx"
        fold_onnx(path, folded, example_inputs=example_inputs)
        yield Path(name), folded


def rewritten(source: Path, target: Path, edit: Callable[[Translated], T]) -> T:
    """Write what an edit makes of a file.

    Raises:
        UnwritableError: when ONNX has no node for a layer that the edit made.
    """
    with undisturbed(), torch.no_grad():
        made = Translated.of(source)
        done = edit(made)
        written = Writer(made.network, made.capture).write()
    file = made.network.file
    outside = has_weights_outside(file)
    apply(file, written)
    del file.model.graph.value_info[:]  # the shapes inside are others now
    save(file, target, outside=outside)
    return done


def published(made: Path, output: Path | None) -> None:
    """Put a file that was made elsewhere, and the weights beside it, in its place."""
    if output is None:
        return
    with atomic_path(output, [companion(output)]) as temporary:
        rewritten_weights = made.with_name(companion(made))
        if rewritten_weights.exists():
            save(read(made), temporary, outside=True)
        else:
            shutil.copyfile(made, temporary)


def compared(
    original: OnnxFile, candidate: Path, example_inputs: Mapping[str, Any] | None
) -> tuple[Trial, ...]:
    """Compare two files at their outputs: inside them, values have other channels.

    Raises:
        NotEquivalentError: when they differ by more than rounding.
    """
    return prove(original, candidate, examples(original, example_inputs), set())
