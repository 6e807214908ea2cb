"""A training step as one CUDA graph: launched whole, where launching its parts takes longest.

Warm-up on a side stream, static inputs and one graph are torch's own recipe for a whole step
(docs.pytorch.org, "CUDA semantics", CUDA graphs).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from refold.errors import InputError, TrainingError, one_line
from refold.training.loop.learner import BatchOutcome
from refold.training.recipes.recipe import Recipe
from refold.training.settings import Habits

Step = Callable[[Tensor, Tensor], BatchOutcome]
"""From images and targets on the device to what the batch gave; the weights have changed."""

HOW = ("lr", "capturable", "fused", "foreach")
"""What of an optimizer's groups says how this run computes, whatever a checkpoint has."""

_WARM_UP = 3


class CudaGraph:
    """What `CapturedStep` needs of a device; tests have another one."""

    def __init__(self) -> None:
        self._graph, self._aside = torch.cuda.CUDAGraph(), torch.cuda.Stream()

    def warm_up(self, step: Callable[[], BatchOutcome]) -> BatchOutcome:
        """Run a step on a side stream, where what it allocates once does not end in the graph."""
        here = torch.cuda.current_stream()
        self._aside.wait_stream(here)
        with torch.cuda.stream(self._aside):
            outcome = step()
        here.wait_stream(self._aside)
        return outcome

    def capture(self, step: Callable[[], BatchOutcome]) -> BatchOutcome:
        """Note what a step launches; nothing is computed yet.

        The mode lets other threads, such as the loader's, go on calling CUDA.
        """
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            return step()

    def replay(self) -> None:
        """Compute what was noted."""
        self._graph.replay()


class CapturedStep:
    """A step that is captured as a graph once it is warm; the first steps count as any other.

    A batch of another size, type or layout runs without the graph.

    Args:
        step: what is captured: forward and backward pass, optimizer and moving average. It must not
            read a number back from the device.
        name: of the network, for messages.
    """

    def __init__(self, step: Step, name: str) -> None:
        self._step, self._name = step, name
        self._graph = CudaGraph()
        self._done = 0
        self._given: tuple[Tensor, Tensor] | None = None
        self._outcome: BatchOutcome | None = None

    def __call__(self, images: Tensor, targets: Tensor) -> BatchOutcome:
        """Take one step; what it returns holds until the next one.

        Raises:
            TrainingError: when the step cannot be captured.
        """
        given = self._given = self._given or (images.clone(), targets.clone())
        if not all(map(_alike, given, (images, targets))):
            return self._step(images, targets)
        given[0].copy_(images)
        given[1].copy_(targets)
        if self._done < _WARM_UP:
            self._done += 1
            return self._graph.warm_up(lambda: self._step(*given))
        if self._outcome is None:
            self._outcome = self._capture(given)
        self._graph.replay()
        return self._outcome

    def _capture(self, given: tuple[Tensor, Tensor]) -> BatchOutcome:
        try:
            return self._graph.capture(lambda: self._step(*given))
        except RuntimeError as error:
            raise TrainingError(
                f"a step of {self._name} cannot be captured as a CUDA graph ({one_line(error)}): "
                "leave out --cuda-graph (Habits(cuda_graph=False))"
            ) from error


def _alike(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


def check_capturable(recipe: Recipe, habits: Habits, device: torch.device, processes: int) -> None:
    """Refuse what a CUDA graph of the whole step cannot do.

    Raises:
        InputError: with what to change.
    """
    refused = {
        f"this run is on {device.type}, and CUDA graphs are an NVIDIA GPU's": device.type != "cuda",
        f"{processes} processes share each step": processes > 1,
        "precision: fp16 reads back from the GPU whether gradients overflowed, so take bf16": (
            recipe.precision == "fp16"
        ),
        f"accumulate is {recipe.accumulate}, which must be 1": recipe.accumulate > 1,
        "--recompute puts random numbers back within the step": habits.recompute,
        "--compile makes graphs of its own": habits.compile,
    }
    for reason, applies in refused.items():
        if applies:
            raise InputError(
                f"--cuda-graph (Habits(cuda_graph=True)) captures a whole step, but {reason}; "
                "change that, or leave it out"
            )


def make_capturable(optimizer: torch.optim.Optimizer, name: str, device: torch.device) -> None:
    """Have an optimizer compute on the device alone, its learning rates being tensors; in place.

    Raises:
        InputError: when it reads numbers on the host.
    """
    for group in optimizer.param_groups:
        if isinstance(optimizer, torch.optim.SGD):
            group["fused"] = True
        elif "capturable" in group:
            group["capturable"] = True
        else:
            raise InputError(
                f"optimizer.name {name!r} computes in part on the host, which --cuda-graph "
                "(Habits(cuda_graph=True)) cannot capture: choose sgd, adam, adamw, nadam, radam "
                "or rmsprop, or leave it out"
            )
        group["lr"] = torch.tensor(float(group["lr"]), device=device)


def set_rates(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group, in place where a graph reads it."""
    for group in optimizer.param_groups:
        rate = lr * group.get("factor", 1.0)  # none in older checkpoints
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
