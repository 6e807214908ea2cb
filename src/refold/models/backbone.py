"""What all networks here share: a row of modules, the maps after some of them, and a head.

The names of the methods and attributes are timm's, so that code written for its models finds them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

from torch import Tensor, nn

from refold.errors import InputError
from refold.folding import reparameterize


@dataclass(frozen=True)
class Feature:
    """One feature map.

    Args:
        module: path of the module whose output it is.
        channels: how many it has.
        reduction: how many pixels of the image one of its pixels covers, along an axis.
    """

    module: str
    channels: int
    reduction: int


class FeatureInfo:
    """The feature maps that a network returns, asked as timm's are.

    Examples:
        >>> info = FeatureInfo([Feature("stem", 8, 2), Feature("body", 16, 4)], (1,))
        >>> info.channels(), info.reduction(), info.module_name(), len(info)
        ([16], [4], ['body'], 2)
    """

    def __init__(self, features: Sequence[Feature], out_indices: Sequence[int]) -> None:
        self.features = tuple(features)
        self.out_indices = tuple(out_indices)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def chosen(self) -> list[Feature]:
        """The maps that are returned."""
        return [self.features[index] for index in self.out_indices]

    def channels(self) -> list[int]:
        """Return the channels of each map."""
        return [feature.channels for feature in self.chosen]

    def reduction(self) -> list[int]:
        """Return how far each map is reduced."""
        return [feature.reduction for feature in self.chosen]

    def module_name(self) -> list[str]:
        """Return the path of the module that makes each map."""
        return [feature.module for feature in self.chosen]

    def pick(self, indices: int | Sequence[int] | None) -> FeatureInfo:
        """Return the same with other maps chosen: all, the last `n`, or those of these indices.

        Raises:
            InputError: when an index is out of range, or comes twice.
        """
        count = len(self)
        if indices is None:
            return FeatureInfo(self.features, range(count))
        wanted = range(count - indices, count) if isinstance(indices, int) else list(indices)
        found = [index + count if index < 0 else index for index in wanted]
        if not found or len(set(found)) < len(found) or not all(0 <= at < count for at in found):
            raise InputError(
                f"out_indices {indices} must be different numbers from {-count} to {count - 1}, or "
                f"how many of the {count} maps to return"
            )
        return FeatureInfo(self.features, sorted(found))


class Backbone(nn.Module):
    """A network that runs modules in a row, then a head.

    A subclass makes its modules, names the row by `_set_body`, and has a `gap` and the classifier,
    or a `forward_head` of its own.

    Args:
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        image_size: height and width that the network was made for.

    Attributes:
        classifier_path: path of the last linear layer.
    """

    classifier_path: ClassVar[str] = "linear"
    head_names: ClassVar[tuple[str, ...]] = ("gap", "linear")

    def __init__(
        self, num_classes: int, in_chans: int, image_size: tuple[int, int] = (224, 224)
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans = num_classes, in_chans
        self.features_only = False
        self.default_cfg: dict[str, Any] = {
            "input_size": (in_chans, *image_size), "num_classes": num_classes,
            "classifier": self.classifier_path,
        }  # fmt: skip

    def _finish(
        self, features: Sequence[Feature], body: Sequence[str], *, bias: bool = True
    ) -> None:
        """Add a pool and a classifier after the last map; see `_set_body`."""
        self.gap = nn.AdaptiveAvgPool2d(1)
        classifier = make_classifier(features[-1].channels, self.num_classes, bias=bias)
        self.add_module(self.classifier_path, classifier)
        self._set_body(body, features)

    def _set_body(self, paths: Sequence[str], features: Sequence[Feature]) -> None:
        """Name the modules that run in a row, and the maps after some of them."""
        self.body = tuple(paths)
        self.feature_info = FeatureInfo(features, range(len(features)))
        self.num_features = features[-1].channels

    # -- what it computes -------------------------------------------------------------------------

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map."""
        for path in self.body:
            x = self.get_submodule(path)(x)
        return x

    def forward_maps(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps that `feature_info` has chosen."""
        wanted, maps = set(self.feature_info.module_name()), list[Tensor]()
        for path in self.body:
            x = self.get_submodule(path)(x)
            if path in wanted:
                maps.append(x)
        return maps

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of a feature map, or what the classifier reads."""
        x = cast(nn.Module, self.gap)(x).flatten(1)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Any:
        """Return logits (N, num_classes), or feature maps after `as_features`.

        Shape:
            (N, in_chans, H, W).
        """
        if self.features_only:
            return self.forward_maps(x)
        return self.forward_head(self.forward_features(x))

    # -- its classifier ---------------------------------------------------------------------------

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer; an Identity where there is none."""
        return self.get_submodule(self.classifier_path)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a fresh one."""
        old = self.get_classifier()
        width = getattr(old, "in_features", self.num_features)
        biased = getattr(old, "bias", old) is not None
        fresh = make_classifier(cast(int, width), num_classes, bias=biased)
        weight = getattr(old, "weight", None)
        above, _, name = self.classifier_path.rpartition(".")
        setattr(self.get_submodule(above), name, fresh if weight is None else fresh.to(weight))
        self.num_classes = self.default_cfg["num_classes"] = num_classes

    # -- its plain form ---------------------------------------------------------------------------

    def deployed(self, example: Tensor) -> nn.Module:
        """Return the form that deploys, from eval mode, as another module.

        Args:
            example: an image; its values do not matter.
        """
        return reparameterize(self, example)

    # -- its feature maps -------------------------------------------------------------------------

    def as_features(self, out_indices: int | Sequence[int] | None = None) -> Self:
        """Make it return feature maps, in place: what only the head needed is removed.

        Args:
            out_indices: which maps, counted from 0 or from the end; all where None, the last ones
                where an int.

        Raises:
            InputError: when an index is out of range, or comes twice.
        """
        self.feature_info = self.feature_info.pick(out_indices)
        last = self.body.index(self.feature_info.module_name()[-1]) + 1
        for path in (*self.head_names, *reversed(self.body[last:])):
            above, _, name = path.rpartition(".")
            delattr(self.get_submodule(above), name)
        self.body, self.features_only = self.body[:last], True
        self.num_classes = self.default_cfg["num_classes"] = 0
        return self


def make_classifier(width: int, num_classes: int, *, bias: bool = True) -> nn.Module:
    """Return the last linear layer; an Identity where there are no classes.

    Examples:
        >>> make_classifier(8, 0)
        Identity()
    """
    return nn.Linear(width, num_classes, bias) if num_classes else nn.Identity()


def strides(depth: int, first: int = 2) -> list[int]:
    """Return the strides of a stage's blocks: only the first one may reduce the map.

    Examples:
        >>> strides(3)
        [2, 1, 1]
    """
    return [first] + [1] * (depth - 1)


class Trunk:
    """Builds the row of modules of a network, and counts channels and reduction on the way.

    Args:
        net: the network.
        channels: of its input.

    Examples:
        >>> net = Backbone(10, 3)
        >>> trunk = Trunk(net, 3)
        >>> for channels, stride in trunk.stage("stage1", 2, 8):
        ...     trunk.append(nn.Conv2d(channels, 8, 1, stride))
        >>> trunk.finish()
        >>> net.feature_info.channels(), net.feature_info.reduction()
        ([8], [2])
    """

    def __init__(self, net: Backbone, channels: int) -> None:
        self.net, self.channels, self.reduction = net, channels, 1
        self.row, self.maps, self._stack = list[str](), list[Feature](), nn.Sequential()

    def run(self, *paths: str, stride: int = 1) -> None:
        """Put modules of the network next in the row."""
        self.row.extend(paths)
        self.reduction *= stride

    def map(self, path: str, channels: int, stride: int = 1) -> None:
        """Put a module next in the row whose output is a feature map: the last one of its size."""
        self.run(path, stride=stride)
        self.channels = channels
        if self.maps and self.maps[-1].reduction == self.reduction:
            self.maps.pop()
        self.maps.append(Feature(path, channels, self.reduction))

    def stage(self, name: str, depth: int, out: int, first: int = 2) -> Iterator[tuple[int, int]]:
        """Begin a stage, and yield input channels and stride of each block to `append`."""
        self._stack = nn.Sequential()
        self.net.add_module(name, self._stack)
        for stride in strides(depth, first):
            yield self.channels, stride
            self.channels = out
        self.map(name, out, first)

    def append(self, block: nn.Module) -> None:
        """Put a block next in the stage."""
        self._stack.append(block)

    def finish(self, *, bias: bool = True) -> None:
        """Add the pool and the classifier, whose bias may be left out."""
        self.net._finish(self.maps, self.row, bias=bias)


def init_convs(model: nn.Module) -> None:
    """Start convolutions normal, of variance 2 / (kernel area x output channels)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
