"""How to train, as data: a recipe is a small YAML file whose every key is known and checked."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _none_in_words(cls, values: Any) -> Any:
        """Take `none` for no value, and YAML's `no` and `off`, which are false, as well."""
        if not isinstance(values, dict):
            return values
        rows = cast("dict[str, Any]", values)
        return {name: None if _means_none(cls, name, x) else x for name, x in rows.items()}


def _means_none(kind: type[BaseModel], name: str, value: Any) -> bool:
    field = kind.model_fields.get(name)
    if field is None or type(None) not in get_args(field.annotation):
        return False
    return value is False or (isinstance(value, str) and value.lower() in ("none", "null"))


class Optimizer(_Strict):
    """What changes the weights.

    Args:
        name: sgd, or any name that timm's factory knows.
        lr: learning rate at its highest.
        momentum: of sgd.
        nesterov: of sgd.
        factors: of the learning rate, by pattern: `{"layer1*": 0.1, "fc": 10}`; the last that
            matches a part or a weight holds.
        options: others of timm's optimizer, by name.
    """

    name: str = "sgd"
    lr: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    factors: dict[str, float] = {}
    options: dict[str, Any] = {}

    @field_validator("factors")
    @classmethod
    def _positive(cls, values: dict[str, float]) -> dict[str, float]:
        for pattern, factor in values.items():
            if not 0 < factor < float("inf"):
                raise ValueError(f"{pattern!r}: {factor} is not a factor; freeze what must stay")
        return values


class Schedule(_Strict):
    """How the learning rate goes over the run.

    Args:
        kind: its course after the warm-up.
        milestones: where `steps` lowers it, as shares of the run.
        factor: by which `steps` lowers it.
        power: of `poly`.
        final: the share of the rate at the end of `cosine`.
        warmup: share of the run in which it rises.
        warmup_from: the share of the rate to rise from.
        flat: stay at `warmup_from` during the warm-up instead of rising.
    """

    kind: Literal["cosine", "steps", "poly", "constant"] = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    factor: float = Field(default=0.1, gt=0, le=1)
    power: float = Field(default=0.9, gt=0)
    final: float = Field(default=0.0, ge=0, le=1)
    warmup: float = Field(default=0.0, ge=0, lt=1)
    warmup_from: float = Field(default=0.0, ge=0, le=1)
    flat: bool = False


class Decay(_Strict):
    """Weight decay, and what it leaves alone.

    Args:
        value: how much.
        norms: whether scales and shifts of norms decay; "identity" for the scales of RepVGG's
            identity branches alone, as its authors train.
        biases: whether biases of convolutions and linear layers decay.
        depthwise: whether depthwise kernels decay.
        custom_l2: decay what a RepVGG block's two kernels add up to, instead of each of them.
    """

    value: float = Field(default=1e-4, ge=0)
    norms: bool | Literal["identity"] = False
    biases: bool = False
    depthwise: bool = True
    custom_l2: bool = False


class Slimming(_Strict):
    """Network slimming: an L1 penalty on the scales of the norms, which makes channels die.

    Args:
        l1: how much.
        gamma: what the scales start at; None leaves them.
    """

    l1: float = Field(default=1e-4, ge=0)
    gamma: float | None = None


class Distill(_Strict):
    """A trained network to learn from, beside the labels.

    Args:
        teacher: a MODEL.
        checkpoint: its weights; None where it brings them.
        options: of the model.
        temperature: that softens the answers of both.
        weight: of the teacher in the loss; the labels have the rest.
    """

    teacher: str
    checkpoint: str | None = None
    options: dict[str, Any] = {}
    temperature: float = Field(default=4.0, gt=0)
    weight: float = Field(default=0.5, gt=0, le=1)


class Loss(_Strict):
    """What is made small.

    Args:
        name: its name; `am_softmax` and `arcface` are for embeddings.
        smoothing: of the labels.
        scale: of the cosines; None for the loss's own.
        margin: None for the loss's own.
        auxiliary: the weight of the logits that a network returns beside its main ones.
    """

    name: Literal["cross_entropy", "bce", "am_softmax", "arcface"] = "cross_entropy"
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    scale: float | None = None
    margin: float | None = None
    auxiliary: float = Field(default=0.4, ge=0)


class Augment(_Strict):
    """What is done to the images.

    Args:
        size: their side; None for that of the run which the weights come from, else the data's own,
            else 224.
        crop: a part of random size brought to `size`, the whole moved by up to `pad` pixels, or
            neither.
        pad: pixels that "pad" adds on each side.
        scale: the smallest and the largest share of the area that "resized" takes.
        flip: mirror half of them.
        shift: move by up to this share of the side.
        rotate: turn by up to so many degrees, where `shift` is given.
        jitter: of brightness, contrast and saturation.
        auto: a policy of torchvision.
        erase: how often a rectangle is erased.
        centre: the share of the side that "resized" judges by.
        mean: that is taken off each channel; None for that run's, else the data's.
        std: that each channel is divided by; None for that run's, else the data's.
    """

    size: int | None = Field(default=None, gt=0)
    crop: Literal["resized", "pad", "none"] = "resized"
    pad: int = Field(default=4, ge=0)
    scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = True
    shift: float = Field(default=0.0, ge=0, le=1)
    rotate: float = Field(default=0.0, ge=0)
    jitter: float = Field(default=0.0, ge=0)
    auto: Literal["autoaugment", "randaugment", "trivial"] | None = None
    erase: float = Field(default=0.0, ge=0, le=1)
    centre: float = Field(default=0.875, gt=0, le=1)
    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None

    @field_validator("scale")
    @classmethod
    def _shares(cls, values: tuple[float, float]) -> tuple[float, float]:
        if not 0 < values[0] <= values[1] <= 1:
            raise ValueError("give two shares of the area, the smaller one first")
        return values


class Mix(_Strict):
    """Mixing of two images and of their labels.

    Args:
        mixup: the parameter of the distribution of shares; 0 for none.
        cutmix: the same for rectangles; where both are given, each batch has one of them.
    """

    mixup: float = Field(default=0.0, ge=0)
    cutmix: float = Field(default=0.0, ge=0)


class Deploy(_Strict):
    """How the plain form is made at the end.

    Args:
        remove_residuals: write residuals as plain chains, which adds parameters and multiply-adds.
        allow_growth: merge also where the result needs more multiply-adds.
        files: the formats it is written in, as `deploy.onnx` and so on.
    """

    remove_residuals: bool = False
    allow_growth: bool = False
    files: tuple[Literal["safetensors", "onnx", "xml", "pt2", "pte", "tflite"], ...] = (
        "safetensors",
        "onnx",
    )


class Recipe(_Strict):
    """A whole recipe.

    Args:
        name: what it is called.
        source: where it was published.
        aims: the accuracies that were published with it.
        task: what the network is for.
        data: the data set that it is for, in words.
        model: a MODEL.
        options: of the model.
        checkpoint: weights to start from: a file, or the folder of a run; None for none.
        pretrained: start from the weights that a zoo has published.
        freeze: patterns of what does not train, by name: "layer1*".
        restore_norms: whether convolutions of a network that was folded or pruned get norms first,
            which change nothing yet.
        freeze_norms: whether norms keep their statistics, scales and shifts.
        block: what its convolutions become: a registered block; None to leave them.
        block_options: of that block.
        gamma: what the last scale of each branch starts at; None for the block's own.
        epochs: passes over the images.
        patience: stop after so many epochs without a better one; None to do them all.
        batch_size: images of one step, of all processes together.
        accumulate: pieces that a process takes its share of a batch in, one after another.
        ema: decay of the moving average of the weights, which is judged and deployed; None for
            none.
        precision: of the arithmetic.
        distill: a teacher; None for none.
        channels_last: whether tensors lie in memory with the channels of a pixel side by side,
            which many plain networks train faster with.
        clip: the largest norm of the gradients; None for any.
        sync_norms: whether norms see the batches of all processes.
        seed: of everything random.
    """

    name: str
    source: str = ""
    aims: str = ""
    task: Literal["classify", "embed", "segment"] = "classify"
    data: str = ""
    model: str
    options: dict[str, Any] = {}
    checkpoint: str | None = None
    pretrained: bool = False
    restore_norms: bool = False
    freeze: tuple[str, ...] = ()
    freeze_norms: bool = False
    block: str | None = None
    block_options: dict[str, Any] = {}
    gamma: float | None = None
    epochs: int = Field(gt=0)
    patience: int | None = Field(default=None, gt=0)
    batch_size: int = Field(gt=0)
    accumulate: int = Field(default=1, gt=0)
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    decay: Decay = Decay()
    slimming: Slimming | None = None
    loss: Loss = Loss()
    distill: Distill | None = None
    augment: Augment = Augment()
    mix: Mix = Mix()
    deploy: Deploy = Deploy()
    ema: float | None = Field(default=None, gt=0, lt=1)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    clip: float | None = Field(default=None, gt=0)
    sync_norms: bool = True
    seed: int = 0

    @field_validator("precision", mode="before")
    @classmethod
    def _precision_in_full(cls, value: Any) -> Any:
        """Take `no`, which YAML reads as false, for fp32: so was it called once."""
        return "fp32" if value is False or value == "no" else value

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        if self.checkpoint is not None and self.pretrained:
            raise ValueError("give either checkpoint or pretrained")
        if self.freeze_norms and self.block is not None:
            raise ValueError(
                "freeze_norms does not go with block: the new branches start at a norm's zero"
            )
        if (self.loss.name in ("am_softmax", "arcface")) != (self.task == "embed"):
            raise ValueError(
                "the losses am_softmax and arcface, and only they, are for task: embed"
            )
        if self.task != "classify" and self.distill is not None:
            raise ValueError("distill is for task: classify")
        if self.task != "classify" and (self.mix.mixup or self.mix.cutmix):
            raise ValueError("mix is for task: classify")
        return self
