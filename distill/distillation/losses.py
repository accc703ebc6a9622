"""Distillation losses: pure functions of answers, and the settings of each.

A loss is a frozen dataclass of its settings. It declares what it listens to besides the logits (``taps``) and is called
in one way, ``loss(student, teacher, labels, hard)``, as ``training.lesson.Loss`` says. So a new one is one class and a
line in ``LOSSES``, which makes the configuration offer it.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Gt, Le
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from distill.bounds import SETTINGS, Share
from distill.training.lesson import Loss
from distill.training.taps import Answers, Tap

Temperature = Annotated[float, Gt(0), Le(100)]


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


def of_section(name: str) -> Any:
    """Return a field of a loss that is ``distill.NAME`` unless the loss says something else."""
    return Field(default=None, description=f"of this loss alone; where it is left out, distill.{name}")


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Kd:
    """(1 − weight)·hard + weight·τ²·KL(teacher ‖ student), a scalar; τ is the temperature.

    Weight 0 is training without a teacher. Source: as ``soft_targets``.
    """

    name: Literal["kd"] = "kd"
    temperature: Temperature = of_section("temperature")
    weight: Share = of_section("weight")
    taps: ClassVar[tuple[Tap, ...]] = ()

    def __call__(self, student: Answers, teacher: Answers, labels: Tensor, hard: Tensor) -> Tensor:
        """Return the loss of a batch."""
        soft = soft_targets(student.logits, teacher.logits, self.temperature)
        return (1 - self.weight) * hard + self.weight * soft


LOSSES: dict[str, type[Loss]] = {"kd": Kd}
