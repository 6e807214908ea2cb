"""The training loop: one step in Accelerate's processes and precision, and what surrounds it."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from refold.errors import DivergedError, RefoldError, TrainingError, one_line
from refold.sources.guest import place_of
from refold.training.data.loader import Batch, TrainOrder
from refold.training.loop.captured import CapturedStep, set_rates
from refold.training.loop.collectives import total, union
from refold.training.loop.evaluation import MAIN, Judged, judge
from refold.training.loop.feed import Feed
from refold.training.loop.learner import BatchOutcome, Learner
from refold.training.loop.norms import unsync_norms
from refold.training.loop.penalties import Penalty
from refold.training.loop.progress import Clock, Progress, Reporter
from refold.training.loop.readback import Readback
from refold.training.loop.run_folder import RunFolder
from refold.training.loop.saves import BEST, LAST, Saves
from refold.training.loop.schedule import rate
from refold.training.loop.state import Parts
from refold.training.recipes.recipe import Recipe
from refold.training.seeds import seed_of, seeded
from refold.training.settings import Habits
from refold.training.stopping import Ears, Stopped


@dataclass(frozen=True)
class _Said:
    """What a step gave, not read yet: values of each piece of its batch, and which step it was."""

    values: list[Readback]
    epoch: int
    step: int
    number: int
    lr: float


@dataclass
class Engine:
    """Everything that a run needs, ready to start.

    Args:
        recipe: how to train.
        habits: how to behave.
        accelerator: Accelerate's; it knows the processes, the device and the precision.
        wrapped: the learner as Accelerate wraps it.
        optimizer: as Accelerate wraps it.
        average: timm's moving average of the network; None for none.
        parts: what has a state.
        penalties: what is added to the loss.
        order: of the images.
        batches: for training.
        judged: batches for validation.
        classes: how many.
        folder: of the run.
        saves: its checkpoints.
        reporter: receives progress.
    """

    recipe: Recipe
    habits: Habits
    accelerator: Any
    wrapped: nn.Module
    optimizer: Any
    average: Any
    parts: Parts
    penalties: list[Penalty]
    order: TrainOrder
    batches: Feed
    judged: Feed
    classes: int
    folder: RunFolder
    saves: Saves
    reporter: Reporter

    def __post_init__(self) -> None:
        self._clock, self._saved_at = Clock(), time.monotonic()
        self._asked: int | None = None  # the number of the signal
        self._last: dict[str, float] = {}
        self._unread: list[_Said] = []
        # A step is read after the next one has been launched, where a device computes by itself.
        self._late = 1 if self.accelerator.device.type == "cuda" else 0
        captures = self.habits.cuda_graph
        self._captured = CapturedStep(self._whole_step, self.recipe.model) if captures else None

    @property
    def learner(self) -> Learner:
        """The network with its loss, unwrapped."""
        return self.parts.learner

    @property
    def done(self) -> int:
        """How many steps of the run are done."""
        return self.parts.position.done

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done, or enough of them without a better one."""
        return self.parts.position.epoch >= self.recipe.epochs or self._gave_up

    @property
    def _gave_up(self) -> bool:
        position, patience = self.parts.position, self.recipe.patience
        if patience is None or position.best_epoch is None:
            return False
        since = position.epoch - position.best_epoch
        return position.epoch < self.recipe.epochs and since >= patience

    # -- the run ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Train until the last epoch is done.

        Raises:
            DivergedError: when the loss becomes NaN or infinite.
            TrainingError: when a checkpoint cannot be written.
            Stopped: when asked to stop, after the step is finished and saved.
        """
        position = self.parts.position
        self._clock, self._saved_at = Clock(), time.monotonic()
        with Ears() as ears:
            while not self.is_finished:
                # Of fewer images than before an epoch may have no step left.
                self.order.at(position.epoch, min(position.step, self.order.steps))
                self.wrapped.train()
                for step in self._steps():
                    self._after_step(step, ears)
                self._after_epoch()

    def _steps(self) -> Iterator[int]:
        """Train on the rest of an epoch; yield the number of each finished step."""
        position = self.parts.position
        pieces: list[Batch] = []
        for piece in self.batches:
            pieces.append(piece)
            if len(pieces) == self.recipe.accumulate:
                self._train(pieces)
                pieces = []
                position.step, position.done = position.step + 1, position.done + 1
                yield position.step

    # -- one step ---------------------------------------------------------------------------------

    def _train(self, pieces: list[Batch]) -> None:
        position, recipe, number = self.parts.position, self.recipe, self.done
        lr = recipe.optimizer.lr * self._share()
        set_rates(self.parts.optimizer, lr)
        # Drop-out and the like draw what they would draw had the run never stopped.
        torch.manual_seed(seed_of(recipe.seed, "step", number, self.accelerator.process_index))
        ready = (self._mixed(piece, number, at) for at, piece in enumerate(pieces))
        captured = self._captured
        outcomes = self._step(ready) if captured is None else [captured(*next(ready))]
        values = [Readback(outcome) for outcome in outcomes]
        self._unread.append(_Said(values, position.epoch + 1, position.step + 1, number, lr))
        position.unreadable = sorted(
            {*position.unreadable, *(index for piece in pieces for index in piece.unreadable)}
        )
        self._read_all(but=self._late if self._last else 0)

    def _read_all(self, but: int = 0) -> None:
        """Read what the steps gave, but the latest ones.

        Raises:
            DivergedError: when the loss of a step is NaN or infinite.
        """
        position, batch = self.parts.position, self.recipe.batch_size
        while len(self._unread) > but:
            said = self._unread.pop(0)
            loss, right, answers = self._summed(said.values)
            if not math.isfinite(loss):
                raise DivergedError(self._diverged(said, loss))
            position.loss += loss * batch
            position.images += batch
            position.right, position.answers = position.right + right, position.answers + answers
            self._last = {"loss": loss, "lr": said.lr}

    def _step(self, pieces: Iterable[tuple[Tensor, Tensor]]) -> list[BatchOutcome]:
        """Change the weights once, by all pieces of a batch; nothing is read from the device."""
        outcomes = [self._learn(images, targets) for images, targets in pieces]
        if self.recipe.clip is not None:
            self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.learner.network)
        return outcomes

    def _whole_step(self, images: Tensor, targets: Tensor) -> BatchOutcome:
        """Change the weights by a batch of one piece."""
        return self._step([(images, targets)])[0]

    def _learn(self, images: Tensor, targets: Tensor) -> BatchOutcome:
        """Add the gradients of a piece of the batch."""
        with self.accelerator.accumulate(self.wrapped), self._compile_errors():
            with self._first_errors(images):
                outcome = BatchOutcome(*self.wrapped(images, targets))
            loss = outcome.loss
            for penalty in self.penalties:
                loss = loss + self.parts.penalised(penalty)
            self.accelerator.backward(loss)
        return BatchOutcome(*(value.detach() for value in outcome))

    @contextmanager
    def _first_errors(self, images: Tensor) -> Generator[None]:
        """Say plainly that a network does not run in training mode, in a process's first step.

        Raises:
            TrainingError: instead of torch's own error.
        """
        try:
            yield
        except (ValueError, RuntimeError, TypeError, IndexError) as error:
            known = isinstance(error, (RefoldError, torch.OutOfMemoryError))
            if known or self._last or self.habits.compile:
                raise
            shape = " x ".join(map(str, images.shape))
            raise TrainingError(
                f"{self.recipe.model} does not train on a batch of {shape}{place_of(error)}: "
                f"{one_line(error)}; choose another batch_size or augment.size, or mend the network"
            ) from error

    @contextmanager
    def _compile_errors(self) -> Generator[None]:
        """Say plainly that torch.compile failed, where it was asked for."""
        if not self.habits.compile:
            yield
            return
        from torch._dynamo.exc import TorchDynamoException

        try:
            yield
        except TorchDynamoException as error:
            raise TrainingError(
                f"torch.compile cannot compile {self.recipe.model} here ({one_line(error)}): leave "
                "out --compile"
            ) from error

    def _mixed(self, piece: Batch, number: int, at: int) -> tuple[Tensor, Tensor]:
        """Return images and targets, mixed with each other where the recipe says so."""
        images, targets = piece.images, piece.targets
        mix = self.recipe.mix
        if not mix.mixup and not mix.cutmix:
            return images, targets
        from torchvision.transforms import v2

        makers = ((v2.MixUp, mix.mixup), (v2.CutMix, mix.cutmix))
        mixers = [kind(alpha=x, num_classes=self.classes) for kind, x in makers if x]
        place = (self.recipe.seed, "mix", number, at, self.accelerator.process_index)
        with seeded(*place):
            chosen = mixers[int(torch.randint(len(mixers), ()))]
            return chosen(images, targets)

    def _summed(self, values: list[Readback]) -> tuple[float, int, int]:
        """Return mean loss, right answers and answers of a step, of all processes."""
        rows = [value.read() for value in values]
        own = torch.stack(rows).sum(0)
        own[0] /= len(rows) * self.accelerator.num_processes
        loss, right, answers = total(self.accelerator, own).tolist()
        return loss, int(right), int(answers)

    def _share(self) -> float:
        position, steps = self.parts.position, self.order.steps
        number = position.epoch * steps + position.step
        return rate(self.recipe.schedule, number, self.recipe.epochs * steps)

    def _diverged(self, said: _Said, loss: float) -> str:
        last = self.saves.named(LAST)
        kept = f"the checkpoint before it is {last}" if last else "there is no checkpoint before it"
        return (
            f"the loss of step {said.step} of epoch {said.epoch} is {loss}: the "
            f"training has diverged, or an image or a weight is not finite; {kept}; try a lower "
            f"optimizer.lr (it was {said.lr:.3g} at step {said.number}), a longer schedule.warmup "
            "or clip"
        )

    # -- between steps ----------------------------------------------------------------------------

    def _after_step(self, step: int, ears: Ears) -> None:
        position, steps, done = self.parts.position, self.order.steps, self.done
        self._clock.tick(self.recipe.batch_size)
        is_noted = done % self.habits.log_steps == 0
        if is_noted:
            self._read_all()
        self.reporter.step(self._progress(done))
        if self.folder.writes and is_noted:
            record = {"kind": "step", "step": done, "epoch": position.epoch + 1, **self._last}
            self._measure(record, self._last)
        due = self.habits.save_steps and done % self.habits.save_steps == 0
        late = time.monotonic() - self._saved_at > 60 * self.habits.save_minutes
        # All processes save or none: clocks differ, and a signal may reach one of them only.
        wishes = total(self.accelerator, torch.tensor([float(ears.asked), float(late)]))
        asked, late = (wishes > 0).tolist()
        if step < steps and (asked or due or late):
            self._save((LAST,))
        self._asked = (ears.number or signal.SIGTERM) if asked else None
        if self._asked and step < steps:
            raise Stopped(self._asked)

    def judge_start(self) -> None:
        """Judge the network before its first step: what the weights that it brings are worth."""
        if self.done or self.folder.start() is not None:
            return
        metrics = self.judge(self.parts.network()).metrics
        with self._writing():
            self.folder.measure({"kind": "start", "epoch": 0, "step": 0, "judged": metrics})
        losses = [f"loss {x:.4f}" for name, x in metrics.items() if name == "loss"]
        shares = [f"{name} {x:.2%}" for name, x in metrics.items() if name != "loss"]
        said = ", ".join(shares + losses)
        self.reporter.note(f"before the first step: {said}")

    def _is_better(self, main: float, loss: float) -> bool:
        """Say whether an epoch is the best so far, and note it; of equal ones the lower loss is."""
        position = self.parts.position
        rank = (main, -loss)
        before = (position.best, -(math.inf if position.best_loss is None else position.best_loss))
        if position.best is not None and rank <= before:
            return False
        position.best, position.best_loss = main, None if math.isinf(loss) else loss
        position.best_epoch = position.epoch + 1
        return True

    def _after_epoch(self) -> None:
        self._read_all()
        position, task = self.parts.position, self.recipe.task
        found = self.judge(self.parts.network())
        better = self._is_better(found.metrics[MAIN[task]], found.metrics.get("loss", math.inf))
        record = {
            "kind": "epoch",
            "epoch": position.epoch + 1,
            "step": position.done,
            "train_loss": position.loss / max(position.images, 1),
            "train_accuracy": position.right / max(position.answers, 1),
            **{f"val_{name}": value for name, value in found.metrics.items()},
            "best": position.best,
            "images_per_second": self._clock.speed,
        }
        # Before the checkpoint: a run resumed from it measures only what follows.
        self._measure(record, {name: x for name, x in record.items() if isinstance(x, float)})
        position.begin_epoch()
        self._save((LAST, BEST) if better else (LAST,))
        self.reporter.epoch(record)
        if self._gave_up:
            self.reporter.note(
                f"no epoch since the {position.best_epoch}. was better: stopped before all "
                f"{self.recipe.epochs} were done, as patience is {self.recipe.patience}"
            )
        if self._asked and not self.is_finished:
            raise Stopped(self._asked)

    def _measure(self, record: dict[str, Any], numbers: dict[str, float]) -> None:
        """Write what was measured, here and on the tracker's board.

        Raises:
            TrainingError: when the disk is full.
        """
        with self._writing():
            self.folder.measure(record)
            self.accelerator.log(numbers, step=record["step"])

    @contextmanager
    def _writing(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"the measurements up to step {self.done} could not be written to "
                f"{self.folder.path} ({error.strerror or error}); {self.saves.standing()}; make "
                "room and pass --resume to continue"
            ) from error

    def judge(self, network: nn.Module) -> Judged:
        """Evaluate a network on the validation images."""
        network.eval()
        with self.accelerator.autocast(), self._compile_errors():
            return judge(network, self.judged, self.recipe.task, self.classes)

    def _save(self, pointers: tuple[str, ...]) -> None:
        self._read_all()
        position = self.parts.position
        position.unreadable = union(self.accelerator, position.unreadable)
        snapshot = self.parts.snapshot()
        if self.accelerator.is_main_process:
            with self._writing():
                self.folder.settle()
            self.saves.write(snapshot, self.done, pointers)
        self.accelerator.wait_for_everyone()
        self._saved_at = time.monotonic()

    def _progress(self, done: int) -> Progress:
        position, steps = self.parts.position, self.order.steps
        left = self.recipe.epochs * steps - done
        speed = self._clock.speed
        return Progress(
            epoch=position.epoch + 1,
            epochs=self.recipe.epochs,
            step=position.step,
            steps=steps,
            loss=position.loss / max(position.images, 1),
            accuracy=position.right / max(position.answers, 1),
            rate=self._last["lr"],
            speed=speed,
            left=left * self.recipe.batch_size / speed if speed else 0.0,
        )

    def rehearse(self) -> float:
        """Take one step, discard it, and return its seconds."""
        self.wrapped.train()
        steps = self._steps()
        start = time.monotonic()
        next(steps)
        return time.monotonic() - start

    def best_network(self) -> nn.Module:
        """Return the network with the weights of its best epoch, plain and in evaluation mode."""
        snapshot = self.saves.read(BEST)
        network = self.parts.network()
        if snapshot is not None:
            network.load_state_dict(snapshot.network)
        else:  # the best one was lost after the last epoch: that is what there is
            self.parts.position.best_epoch = self.parts.position.epoch
        unsync_norms(network)
        if self.recipe.channels_last:
            network.to(memory_format=torch.contiguous_format)
        return network.eval()
