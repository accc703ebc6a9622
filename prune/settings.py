"""What the user may choose about pruning. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from distill.bounds import SETTINGS, Count, PartialShare
from distill.prune.goals import GOALS, Goal
from distill.prune.scores.importance import DEFAULT, ImportanceName, described

_DEFAULT_RATIO = 0.3


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class PruneSettings:
    """How much goes, and how it is chosen. At most one of ratio, macs, parameters and speedup says how much."""

    ratio: PartialShare | None = Field(
        default=None,
        description="Share of the channels to remove; 0.3 removes 30 % of them, and is what is done when nothing is "
        "asked for. As a layer's input and output both shrink, about 1 - (1 - ratio)^2 of the parameters go.",
    )
    macs: Annotated[float, Gt(0), Le(1)] | None = Field(
        default=None, description="Share of the multiply-accumulates to leave; 0.5 halves them."
    )
    parameters: Annotated[float, Gt(0), Le(1)] | None = Field(
        default=None, description="Share of the parameters to leave; 0.5 halves them."
    )
    speedup: Annotated[float, Ge(1), Le(1e6)] | None = Field(
        default=None,
        description="How many times as fast the exported model has to be on the target, measured; 2.0 halves the time.",
    )
    round_to: Count = Field(
        default=8,
        description="Widths that are cut are cut to a multiple of this, the nearest to what was asked. "
        "A layer narrower than this is left as it is. 1: any width.",
    )
    importance: ImportanceName = Field(default=DEFAULT, description=f"What a channel is worth: {described()}.")
    without_batches: Literal["refuse", "group_norm"] = Field(
        default="refuse",
        description="What an importance that needs data does when there are no batches or no loss: refuse, or use "
        "group_norm.",
    )
    global_: bool = Field(
        default=True,
        description="True: layers of one pattern compete for the channels that stay (isomorphic pruning, "
        "arXiv 2407.04616); with gauss_newton all layers do, by the MACs, parameters or time that they save. "
        "False: every layer loses the same share.",
    )
    max_ratio: PartialShare = Field(default=0.7, description="No layer loses more than this share.")
    heads: bool = Field(
        default=True, description="Remove heads of attention, too (head dimensions where there are few heads)."
    )
    depth: Literal["auto", "off"] = Field(
        default="auto",
        description="For speedup: whole residual blocks or transformer layers go where that loses less than narrower "
        "layers at the same speed, by the loss on the batches. Other goals remove channels only.",
    )
    steps: Annotated[int, Ge(1), Le(10)] = Field(
        default=1,
        description="Remove the channels in this many equal steps, with the importance computed anew in each.",
    )
    batches: Count = Field(default=50, description="Batches of data that the importance averages over.")

    @model_validator(mode="after")
    def _one_goal(self) -> PruneSettings:
        amounts = [f"{name}={getattr(self, name):g}" for name in GOALS if getattr(self, name) is not None]
        if len(amounts) > 1:
            raise ValueError(f"{' and '.join(amounts)}: give one of them, the rest follows from it")
        if self.ratio is not None and self.ratio > self.max_ratio:
            raise ValueError(
                f"ratio={self.ratio} is above max_ratio={self.max_ratio}, so it cannot be reached; "
                "lower ratio or raise max_ratio"
            )
        return self

    @property
    def goal(self) -> Goal:
        """What is asked for: a ratio where no field says it."""
        return next((goal for name, goal in GOALS.items() if getattr(self, name) is not None), GOALS["ratio"])

    @property
    def amount(self) -> float:
        """How much of the goal is asked for; a low max_ratio lowers what is the default."""
        amount = getattr(self, self.goal.name)
        return min(_DEFAULT_RATIO, self.max_ratio) if amount is None else float(amount)

    @property
    def is_idle(self) -> bool:
        """Whether the unpruned model is what is asked for."""
        return self.amount == self.goal.idle
