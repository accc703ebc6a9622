"""What a model answers to a batch: its logits, and the inner tensors that a loss listens to."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.tasks.base import Batch, Trainable
from distill.training.forward import forward

Part = Literal["output", "attention"]


@dataclass(frozen=True)
class Tap:
    """A pair of modules, by their names in student and teacher, and what of them is compared.

    ``attention`` is the weights that an attention module returns beside its output, [B, heads, queries, keys].
    """

    student: str
    teacher: str
    part: Part = "output"


@dataclass(frozen=True)
class Answers:
    """What one model answered to a batch, float32: logits [B, C], and a tensor for each tap, in the taps' order."""

    logits: Tensor
    tapped: tuple[Tensor, ...] = ()

    def to(self, device: torch.device) -> Answers:
        """Return the same answers on a device."""
        return Answers(self.logits.to(device), tuple(tensor.to(device) for tensor in self.tapped))


def answer(
    model: nn.Module,
    task: Trainable,
    batch: Batch,
    device: torch.device,
    taps: Sequence[tuple[str, Part]] = (),
    *,
    title: str = "model",
) -> Answers:
    """Return what a model answers; of a tapped module that is called several times, the last call counts.

    ``taps`` are names of modules of this model, and what of each is tapped; ``title`` opens the message of an error.

    Raises:
        UserError: as ``forward``; or a module is not there, was not called, or returned no tensor to tap.
    """
    heard: dict[tuple[str, Part], Any] = {}
    with ExitStack() as hooks:
        for tap in taps:
            _listen(_module(model, tap[0], title), tap, heard, hooks)
        logits = forward(model, task, batch, device, title=title)
    return Answers(logits.float(), tuple(_tensor(heard, tap, title) for tap in taps))


def _listen(module: nn.Module, tap: tuple[str, Part], heard: dict[tuple[str, Part], Any], hooks: ExitStack) -> None:
    attention = tap[1] == "attention"

    def ask_for_weights(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return args, {**kwargs, "need_weights": True, "average_attn_weights": False}

    def hear(module: nn.Module, args: Any, output: Any) -> None:
        heard[tap] = output
        if attention or not isinstance(output, Tensor):
            parts = output if isinstance(output, tuple | list) else (output,)
            heard[tap] = next(iter(parts[int(attention) :]), None)

    if attention and isinstance(module, nn.MultiheadAttention):
        hooks.enter_context(module.register_forward_pre_hook(ask_for_weights, with_kwargs=True))
    hooks.enter_context(module.register_forward_hook(hear))


def _module(model: nn.Module, name: str, title: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if name not in modules or not name:
        near = difflib.get_close_matches(name, modules, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(list(modules)[1:13])}"
        raise UserError(f"distill.loss: {title}: {type(model).__name__} has no module {name!r}{hint}")
    return modules[name]


def _tensor(heard: Mapping[tuple[str, Part], Any], tap: tuple[str, Part], title: str) -> Tensor:
    name, part = tap
    if tap not in heard:
        raise UserError(f"distill.loss: {title}: module {name!r} is not called; tap one that is")
    if not isinstance(heard[tap], Tensor):
        mend = "a transformers model does with attn_implementation: eager in its args" if part == "attention" else ""
        raise UserError(
            f"distill.loss: {title}: module {name!r} returns no {part} that is a tensor; "
            f"{mend or 'tap a module inside it'}"
        )
    value: Tensor = heard[tap]
    return value.float()
