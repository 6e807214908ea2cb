"""Run what `convert` wrote, and compare it with the network it came from."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refold.cli.options import FORMATS
from refold.cli.subject import Subject
from refold.errors import InputError, RefoldError
from refold.files import is_file
from refold.sources.names import suggest
from refold.sources.networks import build

if TYPE_CHECKING:
    from torch import Tensor, nn

    from refold.exporting import Runtime, Sizes


@dataclass(frozen=True)
class Verdict:
    """The largest error of an exported file, max|difference| / max|reference|, and its bound."""

    is_equal: bool
    error: float
    bound: float
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; a NaN or infinite error becomes None."""
        return asdict(self) | {"error": self.error if math.isfinite(self.error) else None}


def check_artefact(path: Path) -> None:
    """Refuse a file that is missing or cannot be run.

    Raises:
        InputError: if so.
    """
    if _kind(path) not in FORMATS:
        raise InputError(
            f"{path} cannot be verified: give a file with one of the suffixes {' '.join(FORMATS)}"
            f"{suggest(_kind(path), FORMATS)}"
        )
    if not is_file(path):
        raise InputError(f"there is no file {str(path)!r}: write it with refold convert")


def judge(subject: Subject, path: Path, *, allow_growth: bool) -> Verdict:
    """Compare an exported file with the network it came from, on several inputs.

    A file that a runtime runs is judged in its own precision; the others in float64.
    """
    import refold
    from refold.exporting import runtime_of

    is_half = _is_half(path)
    if (runtime := runtime_of(path)) is not None:
        call, sizes = _open(path, runtime)
        _require_sizes(subject, path, sizes)
        return _judge_in_runtime(subject, path, call, is_half=is_half)
    if _kind(path) == ".pt2":
        candidate = build(str(path)).model
        if is_half:  # it takes and gives what the network does: the casts are inside
            return _judge_in_runtime(subject, path, _calling(candidate), is_half=True)
    else:
        candidate = _deploy_form(subject, path, allow_growth=allow_growth)
        candidate = candidate.half() if is_half else candidate
    proof = refold.verify(subject.model, candidate, subject.example_inputs)
    return Verdict(bool(proof), proof.max_rel_error, proof.tolerance, str(proof))


def _kind(path: Path) -> str:
    return path.suffix.lower()


def _deploy_form(subject: Subject, path: Path, *, allow_growth: bool) -> nn.Module:
    """Return the folded network with the weights of the file, not with its own."""
    import refold

    folded = refold.reparameterize(subject.model, subject.example_inputs, allow_growth=allow_growth)
    refold.load_checkpoint(folded, path)
    return folded


def _is_half(path: Path) -> bool:
    """Say whether a file computes in float16 for a network that does not, as `--half` writes it."""
    from refold.exporting import PRECISION, read_provenance

    return read_provenance(path).get(PRECISION) == "float16"


def _calling(candidate: nn.Module) -> Callable[[tuple[Tensor, ...]], list[Tensor]]:
    from refold.equivalence import run, tensor_leaves

    return lambda inputs: tensor_leaves(run(candidate, inputs))


def _judge_in_runtime(
    subject: Subject,
    path: Path,
    call: Callable[[tuple[Tensor, ...]], list[Tensor]],
    *,
    is_half: bool,
) -> Verdict:
    from refold.equivalence import runtime_rounding
    from refold.exporting import halved, runtime_of

    runtime = runtime_of(path)
    written = halved(copy.deepcopy(subject.model)) if is_half else None
    found = runtime_rounding(subject.model, call, subject.example_inputs, written)
    error, bound = found.error or 0.0, found.bound
    if found.note:
        return Verdict(False, error, bound, f"not equal: {found.note}")
    verdict = "equal" if found.is_within else "not equal"
    return Verdict(
        found.is_within, error, bound,
        f"{verdict}{' in float16' if is_half else ''}: largest error {error:.1e} in "
        f"{runtime.name if runtime else 'torch'}, "
        f"{found.reference_error:.1e} in torch itself (bound {bound:.1e})",
    )  # fmt: skip


def _require_sizes(subject: Subject, path: Path, sizes: Sizes) -> None:
    """Refuse to compare on inputs of a size that the file does not take.

    Raises:
        InputError: saying which it takes, and how to give them.
    """
    from refold.exporting import size_text, takes

    given = [tuple(x.shape) for x in subject.example_inputs]
    wanted = list(sizes.values())
    if len(given) == len(wanted) and all(map(takes, wanted, given)):
        return
    text, own = (", ".join(map(size_text, shapes)) for shapes in (wanted, given))
    batches = {shape[0] for shape in wanted if shape and shape[0] is not None}
    asked = ["x".join(map(str, shape[1:])) for shape in wanted if None not in shape[1:]]
    cure = "give the network that it was made of"
    if len(asked) == len(given) == len(wanted):
        cure = " ".join(f"--input-size {size}" for size in asked)
        cure = f"give {cure}" + "".join(f" --batch {size}" for size in sorted(batches))
    raise InputError(f"{path.name} takes {text}, and {subject.name} was run on {own}: {cure}")


def _open(
    path: Path, runtime: Runtime
) -> tuple[Callable[[tuple[Tensor, ...]], list[Tensor]], Sizes]:
    from refold.exporting import open_file

    try:
        return open_file(path)
    except RefoldError:
        raise
    except Exception as error:
        raise InputError(
            f"{path} cannot be opened by {runtime.name}: write it with refold convert"
        ) from error
