"""PyTorch callables among what is timed: `eager:./models.py:make`, `compiled:package.module:function`, `timm:NAME`."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from distill.benchmarks.onnx_file.facts import Facts
from distill.benchmarks.records import Model
from distill.benchmarks.timing.jobs import ArmSpec
from distill.types import Feed

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

    def arm(self, feeds: Feed, device: str) -> ArmSpec:
        """Return it as something to be timed, in a process of its own that is told what to run."""
        command = (sys.executable, "-m", "distill.benchmarks.timing.torch_process")
        spec = {"reference": self.reference, "form": self.form, "device": device}
        return ArmSpec(Path(self.reference), feeds, command, spec)

    def described(self) -> Model:
        """Describe it as far as that can be done from outside: it has no file and no nodes."""
        facts = Facts(f"{self.form} {self.reference}", self.reference, "", 0, 0, 0, 0, None, [], [])
        return Model(facts, {}, 0.0, 0, f"{PROVIDER} {self.form}", 0.0, None, finite=True)
