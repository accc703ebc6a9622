"""The process that times a PyTorch callable: an arm of `runner.py` that lives by itself, so that no thread is shared.

The model's `spec` is `reference` (what `distill.references` makes a model, or any callable on tensors, from), `form`
(`eager` or `compiled`), `device`, and `inputs` with `names` like any arm's. On a GPU calls are timed by CUDA events.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from distill.benchmarks import runner
from distill.documents import Json
from distill.errors import UserError
from distill.references.models import build


class TorchArm(runner.Arm):
    """A PyTorch callable in eager or compiled form; it answers to the same requests as a file."""

    def open(self) -> float:
        """Build the model and move it to its device; returns the seconds that it took."""
        torch.set_num_threads(self.threads)
        feeds = runner.load_feeds(self.spec["inputs"], self.spec["names"])
        begin = time.perf_counter()
        device = torch.device(self.spec["device"])
        try:
            model: Any = build(self.spec["reference"], callables=True)
        except UserError as error:
            raise runner.RunnerError("callable", str(error)) from error
        if isinstance(model, torch.nn.Module):
            if "train" not in vars(model):  # an exported program is always in evaluation
                model = model.eval()
            model = model.to(device)
        if self.spec["form"] == "compiled":
            model = torch.compile(model)
        seconds = time.perf_counter() - begin
        tensors = [torch.from_numpy(np.ascontiguousarray(value)).to(device) for value in feeds.values()]
        self.device = device
        self.seen.clear()

        def call() -> Any:
            with torch.inference_mode():
                return model(*tensors)

        self.call = self.whole = call
        return seconds

    def turn(self) -> list[float]:
        """Take one turn; on a GPU by its own clock, since a call returns before the work is done."""
        if self.device.type != "cuda":
            return super().turn()
        return runner.summed_up(event_times(self.call, self.calls), [True] * self.calls, self.seen)

    def end(self) -> dict[str, Json]:
        """Let go of the model; say whether its outputs were finite."""
        finite = all(bool(value.isfinite().all()) for value in tensors_of(self.call()) if value.is_floating_point())
        del self.call, self.whole
        gc.collect()
        return {"finite": finite, "end_to_end_s": None, "calls": dict(self.seen)}


def event_times(call: Callable[[], object], count: int) -> list[float]:
    """Time calls on the GPU by pairs of events, in seconds."""
    event: Any = torch.cuda.Event
    marks = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(count)]
    for begin, end in marks:
        begin.record()
        call()
        end.record()
        end.synchronize()
    return [begin.elapsed_time(end) / 1000 for begin, end in marks]


def tensors_of(value: Any) -> list[torch.Tensor]:
    """List the tensors in a model's output, in dicts, tuples and data classes too."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for inner in value.values() for tensor in tensors_of(inner)]
    if isinstance(value, list | tuple):
        return [tensor for inner in value for tensor in tensors_of(inner)]
    return []


if __name__ == "__main__":
    runner.serve(TorchArm)
