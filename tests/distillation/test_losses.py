from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.distillation.losses import soft_targets


def random_logits(seed: int, rows: int = 6, classes: int = 5) -> torch.Tensor:
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.5, 20))
def test_a_divergence_is_never_negative_and_zero_for_equal_distributions(seed: int, temperature: float) -> None:
    student, teacher = random_logits(seed), random_logits(seed + 1)
    assert float(soft_targets(student, teacher, temperature)) > 0
    # A constant added to a row of logits is the same distribution.
    assert float(soft_targets(teacher + 7, teacher, temperature)) == pytest.approx(0, abs=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), temperature=st.floats(1, 10))
def test_the_factor_is_the_squared_temperature(seed: int, temperature: float) -> None:
    student, teacher = random_logits(seed), random_logits(seed + 1)
    scaled = soft_targets(student / temperature, teacher / temperature, 1.0)
    assert float(soft_targets(student, teacher, temperature)) == pytest.approx(
        float(scaled) * temperature**2, rel=1e-3, abs=1e-4
    )


def test_a_high_temperature_pulls_logits_together_at_one_strength() -> None:
    """For T → ∞ the gradient tends to (z − v) / (N·C), with logits centred: Hinton et al. 2015, equation 4."""
    student, teacher = random_logits(0).double(), random_logits(1).double()
    student, teacher = (one - one.mean(1, keepdim=True) for one in (student, teacher))
    expected = (student - teacher) / student.numel()
    for temperature in (50.0, 100.0):
        leaf = student.float().requires_grad_()
        soft_targets(leaf, teacher.float(), temperature).backward()
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad.double(), expected, rtol=0.2, atol=0.01)


def test_half_precision_inputs_give_what_full_precision_gives() -> None:
    student, teacher = random_logits(0).half(), random_logits(1).half()
    assert torch.equal(soft_targets(student, teacher, 3.0), soft_targets(student.float(), teacher.float(), 3.0))
