"""What the ``data`` sections of all families have in common. Imports no torch.

A family's own keys are a subclass beside its task: ``image_settings``, ``table_settings``, ``custom_settings``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from annotated_types import Gt, Lt
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid")
Fraction = Annotated[float, Gt(0), Lt(1)]
TestShare = Annotated[
    Fraction | None,
    Field(description="Share of the samples for the test where the data have no such split. Default 0.2, at least 10."),
]
PositiveLabel = Annotated[
    str | None,
    Field(
        description="Two classes: the label that f1 counts as positive. Default: the last one (breast-cancer: "
        "malignant)."
    ),
]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataSettings:
    """Where the data come from, how they are split, and what a model is judged by."""

    loader: ClassVar[str] = ""
    """``module:function`` below ``distill.tasks``: what makes the task of these settings."""

    source: str | None = Field(
        default=None,
        description="digits, breast-cancer, fashion-mnist, cifar10, csv, imagefolder, or a function of yours: "
        "pkg.mod:function or ./file.py:function.",
    )
    validation: Fraction | None = Field(
        default=None,
        description="Share of the samples for validation where the data have no such split. "
        "Default 0.1, at least 10 samples (digits 0.15; fashion-mnist 1/12, which is 5,000 images).",
    )
    metric: str | None = Field(
        default=None,
        description="The metric that the budget is stated in, or a function of yours of logits and class numbers: "
        "./file.py:function. Default: accuracy.",
    )

    @property
    def shares(self) -> Mapping[str, float | None]:
        """Return the share that the user chose for each split which may have to be cut off train."""
        return {"validation": self.validation, "test": getattr(self, "test", None)}

    def conflicts(self) -> list[str]:
        """Say which fields do not go together; a family adds its own."""
        if sum(share or 0.0 for share in self.shares.values()) < 1:
            return []
        return [
            " and ".join(f"{split}={share}" for split, share in self.shares.items()) + " leave nothing for training"
        ]

    @model_validator(mode="after")
    def _fields_fit_together(self) -> DataSettings:
        problems = self.conflicts()
        if problems:
            raise ValueError("; ".join(problems))
        return self
