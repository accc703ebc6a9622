"""What every distillation loss must do, whichever it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torch.nn import functional as F

from distill.config.loading import schema
from distill.distillation.losses import LOSSES
from distill.distillation.settings import DistillSettings
from distill.training.taps import Answers
from distill.types import Array


def fields_of(kind: Any) -> dict[str, Any]:
    """Return the fields of a loss's settings, as pydantic knows them."""
    return dict(kind.__pydantic_fields__)


NAMES = list(LOSSES)
WEIGHTED = [name for name, kind in LOSSES.items() if "weight" in fields_of(kind)]


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def kd_oracle(student: Array, teacher: Array, hard: float, temperature: float, weight: float) -> float:
    log_p, log_q = log_softmax(teacher / temperature), log_softmax(student / temperature)
    divergence = float((np.exp(log_p) * (log_p - log_q)).sum(1).mean())
    return (1 - weight) * hard + weight * temperature**2 * divergence


# What each loss has to agree with: float64, written apart from it.
ORACLES: dict[str, Callable[[Array, Array, float, float, float], float]] = {"kd": kd_oracle}


def logits(low: float = -30, high: float = 30) -> st.SearchStrategy[tuple[Array, Array]]:
    shapes = st.tuples(st.integers(1, 5), st.integers(2, 6))
    elements = st.floats(low, high, width=32)
    return shapes.flatmap(
        lambda shape: st.tuples(
            arrays(np.float64, shape, elements=elements), arrays(np.float64, shape, elements=elements)
        )
    )


def loss_of(name: str, *, t: float = 4.0, weight: float = 1.0) -> Any:
    """Return a loss as a section with a temperature and a weight sets it; what it cannot do without is its example."""
    required = {key: field.examples[0] for key, field in fields_of(LOSSES[name]).items() if field.is_required()}
    section: Any = {"loss": {"name": name, **required}, "temperature": t, "weight": weight}
    return DistillSettings(**section).effective_loss


def call(
    name: str, student: Tensor, teacher: Tensor, hard: float = 0.0, *, t: float = 4.0, weight: float = 1.0
) -> Tensor:
    """Call a loss; what it taps is the logits again, and a row's label is its largest of the teacher's."""
    value: Tensor = heard(loss_of(name, t=t, weight=weight), student, teacher, teacher.argmax(1), torch.tensor(hard))
    return value


def heard(loss: Any, student: Tensor, teacher: Tensor, labels: Tensor, hard: Tensor) -> Any:
    mine, theirs = (Answers(logits, (logits,) * len(loss.taps)) for logits in (student, teacher))
    return loss(mine, theirs, labels, hard)


def test_the_configuration_offers_exactly_the_losses_there_are() -> None:
    offered = schema()["$defs"]["DistillSettings"]["properties"]["loss"]["anyOf"][0]["enum"]
    assert offered == NAMES
    assert all(loss_of(name).name == name for name in NAMES)


@pytest.mark.parametrize("name", ORACLES)
@settings(max_examples=60, deadline=None)
@given(pair=logits(), hard=st.floats(0, 10), t=st.floats(0.5, 20), weight=st.floats(0, 1))
def test_agrees_with_a_float64_oracle(
    name: str, pair: tuple[Array, Array], hard: float, t: float, weight: float
) -> None:
    student, teacher = (torch.from_numpy(one).float() for one in pair)
    expected = ORACLES[name](student.double().numpy(), teacher.double().numpy(), hard, t, weight)
    assert float(call(name, student, teacher, hard, t=t, weight=weight)) == pytest.approx(expected, rel=2e-4, abs=2e-3)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(pair=logits(), seed=st.integers(0, 9))
def test_the_order_of_the_batch_does_not_matter(name: str, pair: tuple[Array, Array], seed: int) -> None:
    student, teacher = (torch.from_numpy(one).float() for one in pair)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(student)))
    assert float(call(name, student[order], teacher[order])) == pytest.approx(
        float(call(name, student, teacher)), rel=1e-4, abs=1e-4
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_is_finite_at_extreme_logits(name: str, kind: torch.dtype) -> None:
    extreme = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, 0.0, 0.0]]).to(kind)
    for student, teacher in ((extreme, -extreme), (extreme, extreme.flip(0)), (extreme, extreme)):
        leaf = student.clone().requires_grad_()
        value = call(name, leaf, teacher, 1.0, weight=0.9)
        value.backward()
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert torch.isfinite(value)
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_flows_into_the_teacher(name: str) -> None:
    student, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    call(name, student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("name", WEIGHTED)
def test_weight_zero_is_training_without_a_teacher(name: str) -> None:
    student, target = torch.randn(8, 5, requires_grad=True), torch.arange(8) % 5
    hard = F.cross_entropy(student, target)
    (expected,) = torch.autograd.grad(hard, student, retain_graph=True)
    value = heard(loss_of(name, weight=0.0), student, 100 * torch.randn(8, 5), target, hard)
    (found,) = torch.autograd.grad(value, student)
    assert torch.equal(value, hard)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_learning_from_it_brings_the_student_to_the_teacher(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(16, 4, generator=generator)
    before = float(call(name, torch.zeros(16, 4), teacher))
    student = torch.zeros(16, 4, requires_grad=True)
    for _ in range(200):
        (gradient,) = torch.autograd.grad(call(name, student, teacher), student)
        student = (student - 4 * gradient).detach().requires_grad_()
    assert float(call(name, student.detach(), teacher)) < 0.05 * before
    assert torch.equal(student.argmax(1), teacher.argmax(1))
