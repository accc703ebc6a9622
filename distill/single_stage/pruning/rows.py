"""The rows of `prune`: parted to learn from and to judge; and what a pruned model gets back from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from onnx import ModelProto
from torch import Tensor, nn

from distill.distillation.settings import DistillSettings
from distill.documents import plain
from distill.prune import recalibrate
from distill.runtime.folder import digest, sources, versions
from distill.single_stage.inputs import Inputs, Take, logits_of, named_inputs, parameters_of
from distill.single_stage.judge import Judge, require_finite_answers
from distill.single_stage.options import shown
from distill.single_stage.pruning.outcome import CHECKPOINT, Quality
from distill.single_stage.pruning.request import PruneRequest
from distill.state_dicts import hash_tensors
from distill.tasks.rows import LABELS, RowsTask, count_rows, label_name, moved, read_rows, tensor_of
from distill.training.lesson import Lesson, Loss
from distill.training.loop import fit
from distill.training.taps import Answers, Tap
from distill.types import Array, Progress

_ENOUGH = 200  # rows from which on a fifth is kept from learning, to judge by


@dataclass(frozen=True)
class Samples:
    """Samples by input name, the unpruned model's answers to them [rows, …], and labels where there are some.

    `train_rows` and `test_rows` are row numbers, the same where there are few. `source_name` is what messages call the
    samples.
    """

    source_name: str
    inputs: Inputs
    tensors: dict[str, Tensor]
    answers: Tensor
    labels: Array | None
    train_rows: Tensor
    test_rows: Tensor


@dataclass(frozen=True)
class JudgedRows:
    """Rows as a task to learn, and the judge of what a model answers to those that judge."""

    samples: Samples
    task: RowsTask
    judge: Judge
    batch_size: int

    @classmethod
    def of(cls, samples: Samples, core: ModelProto, request: PruneRequest) -> JudgedRows:
        """Tell what the unpruned model's output holds by its graph. Raises UserError where nothing does."""
        judge = Judge.of(
            core,
            samples.answers.numpy(),
            samples.labels,
            request.answers,
            source_name=samples.source_name,
            input_shapes={tuple(tensor.shape[1:]) for tensor in samples.tensors.values()},
            judging_rows=samples.test_rows.numpy(),
        )
        task = RowsTask(
            tensors=samples.tensors,
            call=samples.inputs.call,
            take=samples.inputs.take,
            reference=samples.answers,
            output=judge.comparison.output,
            truth=judge.labels,
            train_rows=samples.train_rows,
            test_rows=samples.test_rows,
        )
        return cls(samples, task, judge, request.options.batch_size)

    def quality(self, model: nn.Module) -> Quality:
        """Compare a model's answers with the unpruned one's, on the rows that judge."""
        samples, comparison = self.samples, self.judge.comparison
        judging = {name: value[samples.test_rows] for name, value in samples.tensors.items()}
        after = _answers(model, samples.inputs, judging, self.batch_size).numpy()
        counts_changes = comparison.counts_changes
        return Quality(
            rows=len(after),
            labelled=not counts_changes,
            before=None if counts_changes else comparison.value(comparison.before),
            after=None if counts_changes else comparison.value(after),
            drop=comparison.drop(after),
            apart=len(samples.train_rows) < len(samples.answers),
            measure=comparison.name,
            judged=self.judge.note,
            remark=comparison.remark(after, ("the unpruned model", "the pruned model")),
        )


def read_samples(request: PruneRequest, model: nn.Module, take: Take) -> Samples:
    """Read samples and labels, and run the unpruned model on all of them.

    Raises:
        UserError: names, types, shapes or values that do not fit the model.
    """
    options = request.options
    assert options.data is not None
    source_name, by_name = f"--data {shown(options.data)}", parameters_of(model)
    arrays = read_rows(options.data, next(iter(by_name), "x"))
    key = label_name(arrays, options.labels, by_name if options.labels is None else ())
    if key is None and LABELS in arrays:
        key = LABELS  # the forward of transformers takes them, too, to compute its own loss
    total = count_rows(arrays, source_name, fewest=2)
    tensors = {name: tensor_of(source_name, name, value) for name, value in arrays.items() if name != key}
    inputs = named_inputs(model, [*tensors], take)
    tensors = {name: tensors[name] for name in inputs.names}
    answers = _answers(model, inputs, tensors, options.batch_size)
    require_finite_answers(answers.numpy(), "the model's", source_name)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(options.seed))
    judging = total // 5 if total >= _ENOUGH else 0
    train_rows, test_rows = order[judging:], order[:judging] if judging else order
    return Samples(source_name, inputs, tensors, answers, None if key is None else arrays[key], train_rows, test_rows)


def _answers(model: nn.Module, inputs: Inputs, tensors: dict[str, Tensor], size: int) -> Tensor:
    """Return a model's outputs [rows, …] on the CPU."""
    device = _device_of(model)
    parts = torch.split(torch.arange(len(next(iter(tensors.values())))), size)
    examples = (inputs.call({name: value[part] for name, value in tensors.items()}) for part in parts)
    return torch.cat([logits_of(model, moved(example, device), inputs.take).cpu() for example in examples])


@dataclass(frozen=True)
class Recovery:
    """The rows that a pruned model recovers on, and how it learns from them.

    A training goes on from what it left in the folder `work` when it was killed; without one it begins anew.
    """

    task: RowsTask
    settings: DistillSettings
    seed: int
    progress: Progress | None
    work: Path | None = None

    def recovered(self, model: nn.Module, *, epochs: int, step: int | None = None) -> nn.Module:
        """Return a copy with batch-norm statistics of the rows, which learnt what the unpruned model answers.

        ``step`` is the number of the pruning step that it comes after; None after the last.

        Raises:
            UserError: the loss is no number any more.
        """
        device = _device_of(model)
        batches = self.task.batches(self.settings.batch_size, self.seed)
        model = recalibrate(model, (moved(batch.inputs, device) for batch in batches), progress=self.progress)
        if not epochs:
            return model
        task, settings, seed = self.task, replace(self.settings, epochs=epochs), self.seed + (step or 0)
        with torch.enable_grad():
            trained, _ = fit(
                model,
                task,
                settings,
                seed=seed,
                device=device,
                lesson=Lesson(lambda index, batch, view: Answers(task.reference_logits(batch)), self.loss),
                title="distilling" if step is None else f"distilling after step {step + 1}",
                section="prune",
                checkpoint=self._checkpoint(model, settings, seed, device),
                progress=self.progress,
            )
        return trained.to(device)

    def _checkpoint(self, model: nn.Module, settings: DistillSettings, seed: int, device: torch.device) -> Path | None:
        """Return where a training keeps its state: a file that is named by all that decides what it makes."""
        if self.work is None:
            return None
        self.work.mkdir(exist_ok=True)
        task = self.task
        labels = {} if task.truth is None else {"labels": torch.as_tensor(task.truth)}
        rows = {"answers": task.reference, "train": task.train_rows, "test": task.test_rows, **labels}
        start = (repr(model), repr(task.output), *map(hash_tensors, (model.state_dict(), task.tensors, rows)))
        code = (sources("distill.training", "distill.distillation", "distill.tasks.rows"), versions())
        return self.work / f"{digest(start, plain(settings), seed, str(device), code)}{CHECKPOINT}"

    @property
    def loss(self) -> Loss:
        """What compares a pruned model's answers with the unpruned one's, and with labels where there are some."""
        settings = self.settings if self.task.truth is not None else replace(self.settings, weight=1.0)
        if self.task.output.kind == "numbers":
            return _NumbersLoss(self.task, settings.weight)
        return settings.effective_loss


@dataclass(frozen=True)
class _NumbersLoss:
    """(1 - weight)·hard + weight·squared error against the teacher's numbers, in units of their variance."""

    task: RowsTask
    weight: float
    taps: ClassVar[tuple[Tap, ...]] = ()

    def __call__(self, student: Answers, teacher: Answers, labels: Tensor, hard: Tensor) -> Tensor:
        return (1 - self.weight) * hard + self.weight * self.task.loss(student.logits, teacher.logits)


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
