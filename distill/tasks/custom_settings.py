"""The ``data`` section of data that a function of the user's makes. Imports no torch."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.tasks.settings import STRICT, DataSettings, TestShare


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CustomSettings(DataSettings):
    """The user's own data, made by a function."""

    loader: ClassVar[str] = "custom:load_custom"

    source: str = Field(pattern=":", description="Your function: pkg.mod:function or ./file.py:function.")
    test: TestShare = None
    args: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments for your function.")
