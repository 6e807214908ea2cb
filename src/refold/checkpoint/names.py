"""Translate the names of weights: repositories and timm spell networks differently."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from functools import cache

from refold.checkpoint.families import merged_names
from refold.graph import NEW_CONV

# timm's networks are RepVGG's with the stem beside the stages; only these have such a stem.
_TIMM_STEM = re.compile(r"stem\.(conv_kxk|reparam_conv)")
_GATE = re.compile(r"(^|\.)repmlp_block\.gp\.fc1\.weight$")  # RepMLPNet alone has it
_STAGE = re.compile(r"^stages\.(\d+)\.")
# One spelling for every part of a block, however its repository calls it.
_LONE = re.compile(
    r"(?P<branch>(?P<prefix>(.*\.)?)(rbr_conv\.0|lkb_origin)\.)conv\.(?P<role>weight|bias)$"
)
_PARTS = [
    (re.compile(rf"(^|\.){pattern}"), rf"\g<1>{name}")
    for pattern, name in (
        (r"conv_kxk\.(?=\d+\.(conv|bn)\.)", "rbr_conv."),
        (r"conv_kxk\.(?=(conv|bn)\.)", "rbr_dense."),
        (r"conv_1x1\.(?=(conv|bn)\.)", "rbr_1x1."),
        (r"conv_scale\.(?=(conv|bn)\.)", "rbr_scale."),
        (r"(rbr_skip|identity)\.(?=\w+$)", "rbr_identity."),
        (r"(attn\.fc1|se\.reduce)\.(?=\w+$)", "se.down."),
        (r"(attn\.fc2|se\.expand)\.(?=\w+$)", "se.up."),
    )
]


@cache
def _folded(names: tuple[str, ...]) -> re.Pattern[str]:
    # The engine numbers its own name in a block of timm, which has an empty `reparam_conv`.
    return re.compile(rf"(^|\.)({'|'.join(names)}|{NEW_CONV}_\d+)\.(?=\w+$)")


def is_timm_net(keys: Iterable[str]) -> bool:
    """Say whether these are the weights of a whole RepVGG or MobileOne as timm names them."""
    return any(_TIMM_STEM.match(key) for key in keys)


def is_repmlpnet(keys: Iterable[str]) -> bool:
    """Say whether these are the weights of a RepMLPNet, in whatever form."""
    return any(map(_GATE.search, keys))


def common_names(keys: Iterable[str]) -> dict[str, str]:
    """Map names that all spellings of a network share to the given ones.

    Where two of the given names would become one, all stay as they are.

    Examples:
        >>> list(common_names(["stem.conv_kxk.conv.weight", "stages.0.1.identity.bias"]))
        ['stage0.rbr_dense.conv.weight', 'stage1.1.rbr_identity.bias']
        >>> common_names(["stage1.0.rbr_reparam.bias"])
        {'stage1.0.reparam_conv.bias': 'stage1.0.rbr_reparam.bias'}
    """
    names = list(keys)
    timm = is_timm_net(names)
    common = {common_name(name, timm): name for name in names}
    common = {_moved(name, common): key for name, key in common.items()}
    return common if len(common) == len(names) else dict(zip(names, names, strict=True))


def _moved(name: str, names: Container[str]) -> str:
    """Return the name as if a lone convolution that was folded where it stands stood in front.

    A block of one branch is a convolution with a norm to the engine, which folds such in place.
    """
    found = _LONE.match(name)
    if found is None or not is_folded_in_place(found["branch"], names):
        return name
    return f"{found['prefix']}{NEW_CONV}.{found['role']}"


def is_folded_in_place(branch: str, names: Container[str]) -> bool:
    """Say whether a branch, its name with the dot, has a bias in the place of its norm."""
    return f"{branch}conv.bias" in names and f"{branch}bn.running_mean" not in names


def common_name(key: str, timm_net: bool) -> str:
    """Return a name in the spelling that all share; see `common_names`."""
    for pattern, name in _PARTS:
        key = pattern.sub(name, key)
    key = _folded(merged_names()).sub(rf"\g<1>{NEW_CONV}.", key)
    if not timm_net:
        return key
    if key.startswith("stem."):
        return "stage0." + key[len("stem.") :]
    if key.startswith("head.fc."):
        return "linear." + key[len("head.fc.") :]
    return _STAGE.sub(lambda found: f"stage{int(found[1]) + 1}.", key)
