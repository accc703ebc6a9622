"""How a model is trained: the settings that every section with training shares."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.bounds import SETTINGS, Count, LearningRate, PartialShare


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class TrainSettings:
    """How a model is trained."""

    epochs: Count = Field(default=20, description="passes over the training split")
    batch_size: Count = Field(default=128, description="samples a step")
    learning_rate: LearningRate = Field(
        default=0.1, description="peak of the schedule: linear warm-up, then half a cosine to zero"
    )
    weight_decay: PartialShare = Field(
        default=5e-4, description="on weights of two and more dimensions; biases and norms have none"
    )
    optimizer: Literal["sgd", "adamw"] = Field(default="sgd", description="sgd has Nesterov momentum 0.9")
    warmup: PartialShare = Field(default=0.1, description="share of the steps that warms up")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="auto is bf16 autocast on a GPU that has it, else fp32"
    )
    select: Literal["last", "best"] = Field(
        default="last", description="which epoch's weights are kept; best is by the validation metric"
    )
