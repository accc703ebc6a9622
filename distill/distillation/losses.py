"""Distillation losses: pure functions of logits.

Every entry of ``LOSSES`` is called in one way, ``loss(student, teacher, hard, settings)``, so that a new one is one
function and one line.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return τ²·KL(softmax(teacher/τ) ‖ softmax(student/τ)), averaged over the batch, a scalar in nats.

    The factor τ² keeps the gradient's size when τ changes. Computed in float32 whatever comes in: fp16 logits of a
    sure teacher overflow the exponential.

    Args:
        student: logits [B, C].
        teacher: logits [B, C]; no gradient flows into them.
        temperature: τ > 0.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """
    log_student = F.log_softmax(student.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.detach().float() / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean") * temperature**2


def kd(student: Tensor, teacher: Tensor, hard: Tensor, temperature: float, weight: float) -> Tensor:
    """Return (1 − weight)·hard + weight·τ²·KL(teacher ‖ student), a scalar.

    Args:
        student: logits [B, C].
        teacher: logits [B, C].
        hard: the task's own loss on the labels, a scalar.
        temperature: τ > 0.
        weight: in [0, 1]; 0 is training without a teacher.

    Source: as ``soft_targets``.
    """
    return (1 - weight) * hard + weight * soft_targets(student, teacher, temperature)


Loss = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]

LOSSES: dict[str, Loss] = {"kd": kd}
