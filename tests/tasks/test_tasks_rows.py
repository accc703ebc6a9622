"""Rows by input name are a task: what `prune` learns from, whatever the outputs hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distill.distillation.settings import DistillSettings
from distill.outputs import Output
from distill.tasks.base import Trainable
from distill.tasks.rows import RowsTask
from distill.training.loop import fit

X = torch.from_numpy(np.random.default_rng(0).normal(size=(240, 8)).astype(np.float32))


def make(columns: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(8, columns)


def task_of(output: Output, columns: int = 3, truth: Any = None) -> RowsTask:
    with torch.no_grad():
        reference: Tensor = make(columns)(X)
    return RowsTask(
        tensors={"x": X},
        call=lambda tensors: ((tensors["x"],), {}),
        take=lambda values: values,
        reference=reference,
        output=output,
        truth=truth,
        train_rows=torch.arange(40, 240),
        test_rows=torch.arange(40),
    )


@pytest.fixture
def task() -> RowsTask:
    return task_of(Output("classes"))


def test_it_has_what_training_needs(task: RowsTask) -> None:
    members = [name for name in vars(Trainable) if not name.startswith("_")]
    assert [name for name in members if not hasattr(task, name)] == []
    assert tuple(task.data) == ("train", "validation")


def test_samples_are_the_rows_of_the_split(task: RowsTask) -> None:
    batch = task.data["validation"].fetch(torch.tensor([3, 0, 3]), None)
    (inputs,), keywords = task.inputs(batch)
    assert torch.equal(inputs, X[[3, 0, 3]])
    assert not keywords
    assert torch.equal(task.target(batch), task.reference[[3, 0, 3]].argmax(1))


def test_shuffled_batches_leave_no_row_alone(task: RowsTask) -> None:
    sizes = [len(batch.reference) for batch in task.batches(199, seed=0)]
    assert sizes == [199]
    (first,), (again,), (other,) = (list(task.batches(200, seed)) for seed in (0, 0, 1))
    assert torch.equal(first.reference, again.reference)
    assert not torch.equal(first.reference, other.reference)


@pytest.mark.parametrize(("output", "columns"), [(Output("classes"), 3), (Output("binary"), 1), (Output("numbers"), 2)])
def test_the_products_training_learns_what_the_other_model_answers(output: Output, columns: int) -> None:
    task = task_of(output, columns, truth=None if output.kind != "numbers" else make(columns)(X).detach().numpy())
    settings = DistillSettings(epochs=40, batch_size=16, optimizer="adamw", learning_rate=0.05)
    start = nn.Linear(8, columns)
    trained, record = fit(start, task, settings, seed=0, device=torch.device("cpu"))
    assert record.curves["validation"][-1] > 0.9
    with torch.no_grad():
        assert trained(X).shape == task.reference.shape
