"""Export a model to one checked file, its format chosen by the suffix; open such a file again."""

from __future__ import annotations

from refold.exporting.accepted import Sizes, onnx_sizes, openvino_sizes, size_text, takes
from refold.exporting.axes import words_of
from refold.exporting.dispatch import (
    SUFFIXES,
    Exported,
    Options,
    export,
    require_names,
    require_options,
    write,
)
from refold.exporting.formats.aot import is_compiled
from refold.exporting.formats.onnx import onnx_session, run_onnx, write_unfused
from refold.exporting.formats.openvino import openvino_model, run_openvino
from refold.exporting.half import halved
from refold.exporting.libraries import require
from refold.exporting.metadata import describe, described
from refold.exporting.provenance import PRECISION, keyed, read_provenance, version, without_folders
from refold.exporting.silence import quiet
from refold.exporting.table import (
    ELSEWHERE,
    FORMATS,
    Format,
    Runtime,
    companions,
    open_file,
    runtime_of,
)

__all__ = [
    "ELSEWHERE",
    "FORMATS",
    "PRECISION",
    "SUFFIXES",
    "Exported",
    "Format",
    "Options",
    "Runtime",
    "Sizes",
    "companions",
    "describe",
    "described",
    "export",
    "halved",
    "is_compiled",
    "keyed",
    "onnx_session",
    "onnx_sizes",
    "open_file",
    "openvino_model",
    "openvino_sizes",
    "quiet",
    "read_provenance",
    "require",
    "require_names",
    "require_options",
    "run_onnx",
    "run_openvino",
    "runtime_of",
    "size_text",
    "takes",
    "version",
    "without_folders",
    "words_of",
    "write",
    "write_unfused",
]
