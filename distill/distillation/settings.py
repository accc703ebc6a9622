"""The section `distill`: how a student learns from its teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, PlainSerializer
from pydantic.dataclasses import dataclass
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from distill.bounds import SETTINGS, AnyCount, Share
from distill.distillation.losses import LOSSES, Temperature
from distill.documents import Json
from distill.training.lesson import Loss
from distill.training.settings import TrainSettings


class _ByName:
    """Reads a loss: its name, or a mapping of its name and settings.

    As a union that the name decides, so that errors tell of one loss; the brackets mark a branch, which is no key.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {f"[{kind.__name__}]": handler.generate_schema(kind) for kind in LOSSES.values()}
        union = core_schema.tagged_union_schema(choices, discriminator=_kind_of)
        return core_schema.no_info_before_validator_function(_as_mapping, union)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> Json:
        return {"anyOf": [{"enum": list(LOSSES)}, handler(schema)]}


def _as_mapping(loss: object) -> object:
    fields = {"name": loss} if isinstance(loss, str) else {"name": "kd", **loss} if isinstance(loss, Mapping) else loss
    if isinstance(fields, tuple(LOSSES.values())) or (isinstance(fields, Mapping) and fields.get("name") in [*LOSSES]):
        return fields
    raise PydanticCustomError("unknown_loss", "must be {names}", {"names": " or ".join(map(repr, LOSSES))})


def _kind_of(loss: Any) -> str:
    return f"[{(LOSSES[loss['name']] if isinstance(loss, Mapping) else type(loss)).__name__}]"


def _shortest(loss: Any) -> Json:
    """Return a loss as a configuration writes it: what is as it would be anyway is left out."""
    defaults = {name: field.get_default(call_default_factory=True) for name, field in loss.__pydantic_fields__.items()}
    fields = {name: getattr(loss, name) for name, default in defaults.items() if getattr(loss, name) != default}
    return {"name": loss.name, **fields} if fields else loss.name


if TYPE_CHECKING:
    AnyLoss = Loss
else:
    AnyLoss = Annotated[Union[tuple(LOSSES.values())], _ByName(), PlainSerializer(_shortest)]  # noqa: UP007


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class DistillSettings(TrainSettings):
    """How the student learns from the teacher's soft logits."""

    loss: AnyLoss = Field(
        default_factory=LOSSES["kd"],
        description="kd: (1 - weight)*hard + weight*T^2*KL; or a mapping of a name and the loss's settings",
    )
    temperature: Temperature = Field(
        default=4.0, description="softens both distributions; 1 leaves them as they are, 2 to 8 is usual"
    )
    weight: Share = Field(default=0.9, description="share of the soft loss; 0 is training without a teacher")
    views: AnyCount = Field(
        default=8,
        description="augmented views that repeat in turn, so that the teacher answers once for each; 0: a new view "
        "every epoch, with the teacher in the loop",
    )
    control: bool = Field(
        default=True, description="also train the student without the teacher for the same steps, to compare"
    )

    @property
    def effective_loss(self) -> Loss:
        """Return the loss, with this section's temperature and weight where it leaves them out."""
        return dataclasses.replace(self.loss, **{name: getattr(self, name) for name in self.left_to_section})  # type: ignore[type-var]

    @property
    def left_to_section(self) -> tuple[str, ...]:
        """Return which of temperature and weight act on the loss: it has them, and leaves them out."""
        return tuple(name for name in ("temperature", "weight") if getattr(self.loss, name, 0) is None)
