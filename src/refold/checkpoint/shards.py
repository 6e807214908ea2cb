"""A checkpoint in several files: the index beside them says which tensor lies where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from refold.checkpoint.kinds import some
from refold.errors import CheckpointError

SUFFIX = ".index.json"


_HELD = ("model.safetensors", "pytorch_model.bin")
"""What Hugging Face's libraries call the weights in a folder."""


def weights_in(folder: Path) -> Path | None:
    """Return the weights of a folder that `save_pretrained` wrote; None for any other."""
    for name in _HELD:
        for file in (folder / name, folder / f"{name}{SUFFIX}"):
            if file.is_file():
                return file
    return None


def is_index(file: Path) -> bool:
    """Say whether a file is called as an index is."""
    return file.name.endswith(SUFFIX) and file.is_file()


def shards_of(index: Path) -> dict[Path, list[str]]:
    """Return the files that an index lists, with the names of the tensors to take from each.

    Args:
        index: such as `model.safetensors.index.json`, as Hugging Face's libraries write it.

    Raises:
        CheckpointError: when it is no index, or lists a file that is elsewhere or missing.
    """
    try:
        found: Any = json.loads(index.read_text())["weight_map"]
        pairs = cast("dict[str, Any]", dict(found))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"checkpoint {index} is no index of weights: it must hold a weight_map, from the names "
            "of tensors to the files beside it"
        ) from error
    shards: dict[Path, list[str]] = {}
    for tensor, name in pairs.items():
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise CheckpointError(f"checkpoint {index} lists {name!r}, which is no file beside it")
        shards.setdefault(index.parent / name, []).append(tensor)
    if not shards:
        raise CheckpointError(f"checkpoint {index} lists no weights")
    if missing := [path.name for path in shards if not path.is_file()]:
        raise CheckpointError(
            f"checkpoint {index} lists {some(missing)}, which is not beside it: copy or download "
            "all files"
        )
    return shards


def parts_of(shard: Path, content: object, names: list[str]) -> dict[str, Any]:
    """Return the tensors of one of the files.

    Raises:
        CheckpointError: when some are not in it.
    """
    held = cast("dict[str, Any]", content) if isinstance(content, dict) else {}
    if missing := [name for name in names if name not in held]:
        raise CheckpointError(
            f"checkpoint {shard} lacks {some(missing)}, which its index says is there: the files "
            "are of different models, or incomplete"
        )
    return {name: held[name] for name in names}
