"""`.pt2` with `aot`: the program as machine code, compiled by torch's inductor."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from refold.equivalence import tensor_leaves
from refold.errors import ExportError, InputError, one_line
from refold.exporting.accepted import Sizes
from refold.exporting.formats.pt2 import trace
from refold.exporting.provenance import PT2_ENTRY, keyed, read_provenance
from refold.exporting.request import Request
from refold.exporting.silence import quiet
from refold.files import is_file
from refold.inputs import Arguments, parted

_CODE = re.compile(r"/data/aotinductor/.+\.so$")
_SOURCE = ".cpp"
_OWN = ("/.data/version", "/byteorder", "/.data/serialization_id")
"""Records that torch's writer adds by itself."""
_SIZES = "inputs"


class Compiled(NamedTuple):
    """Loaded code.

    Args:
        call: runs it.
        sizes: what it takes; it does not look, and reads whatever lies behind a smaller input.
    """

    call: Any
    sizes: Sizes


def write_aot(request: Request, path: Path) -> None:
    """Compile the program for this kind of processor, write the package, then load and run it."""
    program = trace(request)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "net.pt2"
        try:
            torch._inductor.aoti_compile_and_package(program, package_path=str(package))
        except Exception as error:  # the compiler's, without a common base
            name = type(request.model).__name__
            raise ExportError(
                f"torch cannot compile {name}: {one_line(error)}; it needs a C++ compiler, such "
                "as g++"
            ) from error
        about = dict(request.provenance) | {_SIZES: json.dumps(request.shapes)}
        path.write_bytes(repacked(package, {PT2_ENTRY: json.dumps(keyed(about))}))
    compiled = open_aot(path)
    request.check("AOTInductor", lambda inputs: run_aot(compiled, inputs))


def is_compiled(path: Path) -> bool:
    """Say whether a `.pt2` file holds machine code; nothing of it is loaded."""
    if not is_file(path) or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(map(_CODE.search, archive.namelist()))


def open_aot(path: Path) -> Compiled:
    """Load the code of a package, which runs with the rights of this process.

    Raises:
        InputError: when it was compiled for another kind of machine, is damaged, or does not say
            which sizes it takes.
    """
    said = read_provenance(path).get(_SIZES)
    if said is None:
        raise InputError(
            f"{path} does not say which sizes its inputs have, and machine code does not check "
            "them: write it with refold convert --aot"
        )
    sizes = {
        name: tuple(size if isinstance(size, int) else None for size in shape)
        for name, shape in json.loads(said).items()
    }
    try:
        with quiet():
            return Compiled(torch._inductor.aoti_load_package(str(path)), sizes)
    except Exception as error:
        raise InputError(
            f"{path} cannot be loaded: {one_line(error)}; it runs on the kind of machine and with "
            "the version of torch that it was compiled for"
        ) from error


def run_aot(compiled: Compiled, inputs: Arguments) -> list[Tensor]:
    """Call loaded code as the model is called."""
    args, kwargs = parted(inputs)
    with torch.no_grad():
        return tensor_leaves(compiled.call(*args, **kwargs))


def aot_sizes(compiled: Compiled) -> Sizes:
    """Return what loaded code takes."""
    return compiled.sizes


def repacked(package: Path, more: Mapping[str, str]) -> bytes:
    """Return a package without its source and without paths of this machine.

    Args:
        package: the file.
        more: texts that it holds beside its code, by name; those it has of the same name go.
    """
    extra = {f"extra/{name}": text.encode() for name, text in more.items()}
    reader, content = torch._C.PyTorchFileReader(str(package)), io.BytesIO()
    writer = torch._C.PyTorchFileWriter(content)
    for name in reader.get_all_records():
        if name not in extra and not name.endswith(_SOURCE) and not f"/{name}".endswith(_OWN):
            record = _without_paths(reader.get_record(name))
            writer.write_record(name, record, len(record))
    for name, record in extra.items():
        writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    return content.getvalue()


def _without_paths(content: bytes) -> bytes:
    """Blank out paths in compiled code, each with as many dots: no text may move."""
    for path in sorted(_private(), key=len, reverse=True):
        content = content.replace(path, b"." * len(path))
    return content


def _private() -> set[bytes]:
    places = {
        str(Path(torch.__file__).parents[1]),
        str(Path.home()),
        str(Path.cwd()),
        tempfile.gettempdir(),
        os.environ.get("TORCHINDUCTOR_CACHE_DIR", ""),
        sys.prefix,
        sys.base_prefix,
        sysconfig.get_path("include"),
    }
    return {place.encode() for place in places if len(place) > 1}
