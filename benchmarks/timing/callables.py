"""PyTorch callables among what is timed: `eager:./models.py:make`, `compiled:package.module:function`, `timm:NAME`."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from distill.benchmarks.onnx_file.facts import Facts
from distill.benchmarks.records import Model

_FORMS = ("eager", "compiled")
_REFERENCE = re.compile(
    r"(?:(eager|compiled):)?((?:timm|torchvision|transformers):.+|(?:[^:]+\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*)$"
)
PROVIDER = "torch"


@dataclass(frozen=True)
class TorchCallable:
    """A function that returns a model or another callable on tensors, and how it is run."""

    reference: str
    form: str = "eager"

    @classmethod
    def named(cls, word: str | Path) -> TorchCallable | None:
        """Read what a user wrote; None for a file, which a Path is, and whatever is there, however it is called.

        A pattern of the shell may name a stranger's file.
        """
        match = None if isinstance(word, Path) or os.path.lexists(word) else _REFERENCE.match(word)
        return cls(match.group(2), match.group(1) or "eager") if match else None

    @property
    def command(self) -> tuple[str, ...]:
        """Return what starts the process that it lives in."""
        return (sys.executable, "-m", "distill.benchmarks.timing.torch_arm")

    def spec(self, device: str) -> dict[str, str]:
        """Write what the process needs to know."""
        return {"reference": self.reference, "form": self.form, "device": device}

    def described(self) -> Model:
        """Describe it as far as that can be done from outside: it has no file and no nodes."""
        facts = Facts(f"{self.form} {self.reference}", self.reference, "", 0, 0, 0, 0, None, [], [])
        return Model(facts, {}, 0.0, 0, f"{PROVIDER} {self.form}", 0.0, None, finite=True)
