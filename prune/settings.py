"""What the user may choose about pruning. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Le, Lt
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

ImportanceName = Literal["magnitude", "group_norm", "taylor", "bn_scale", "random"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class PruneSettings:
    """How many channels go, and how they are chosen."""

    ratio: Annotated[float, Ge(0), Lt(1)] = Field(
        default=0.3,
        description="Share of the channels to remove; 0.3 removes 30 % of them. "
        "As a layer's input and output both shrink, about 1 - (1 - ratio)^2 of the parameters go.",
    )
    round_to: Annotated[int, Ge(1)] = Field(
        default=8,
        description="Widths that are cut are cut to a multiple of this, the nearest to what was asked. "
        "A layer narrower than this is left as it is. 1: any width.",
    )
    importance: ImportanceName = Field(
        default="taylor",
        description="What a channel is worth: taylor (loss change, first order; needs data), group_norm (L2 norm of "
        "all weights that go with it), magnitude (L1 norm of its own filters), bn_scale (batch-norm factor), random.",
    )
    without_batches: Literal["refuse", "group_norm"] = Field(
        default="refuse",
        description="What importance: taylor does when there are no batches or no loss: refuse, or use group_norm.",
    )
    global_: bool = Field(
        default=True,
        description="True: layers of one pattern compete for the channels that stay (isomorphic pruning, "
        "arXiv 2407.04616). False: every layer loses the same share.",
    )
    max_ratio: Annotated[float, Ge(0), Lt(1)] = Field(default=0.7, description="No layer loses more than this share.")
    steps: Annotated[int, Ge(1), Le(10)] = Field(
        default=1,
        description="Remove the channels in this many equal steps, with the importance computed anew in each.",
    )
    batches: Annotated[int, Ge(1)] = Field(
        default=50, description="Batches of data that importance: taylor averages over."
    )

    @model_validator(mode="after")
    def _ratio_is_reachable(self) -> PruneSettings:
        if self.ratio > self.max_ratio:
            raise ValueError(
                f"ratio={self.ratio} is above max_ratio={self.max_ratio}, so it cannot be reached; "
                "lower ratio or raise max_ratio"
            )
        return self
