"""Is a cut model what it should be? Checked by running it, since a dependency graph can be wrong without an error."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.prune.examples import Example, at_batch, reason, tensors_in
from distill.prune.graph import Member, column_mask

# Norms that mix channels. Without the removed channels their statistics are others, which is no mistake.
_MIXING = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
_TOLERANCE = 1e-3

Shapes = list[tuple[str, tuple[int, ...]]]


@torch.no_grad()
def output_shapes(model: nn.Module, example: Example, logits: Callable[[Any], Tensor]) -> Shapes:
    """Return the shapes of the logits and of every tensor in the output, at batch 1 and at batch 2.

    Raises:
        UserError: the model does not run at one of them.
    """
    shapes: Shapes = []
    for batch in (1, 2):
        args, kwargs = at_batch(example, batch)
        try:
            output = model(*args, **kwargs)
            shapes.append(("logits", tuple(logits(output).shape)))
        except Exception as error:
            raise UserError(f"the model does not run on its example input at batch {batch}: {reason(error)}") from error
        shapes += [(name, tuple(tensor.shape)) for name, tensor in tensors_in(output)]
    return shapes


def problem_with(
    pruned: nn.Module, masked: nn.Module, example: Example, logits: Callable[[Any], Tensor], shapes: Shapes
) -> str | None:
    """Return what is wrong with a cut model, or None.

    It must run at batch 1 and 2, keep every output's shape, and compute what ``masked`` does: the model before the
    cut, in which nothing reads the channels that went. Norms that mix channels are bypassed in both for the last.
    """
    try:
        found = output_shapes(pruned, example, logits)
    except UserError as error:
        return f"with fewer of its channels {error}"
    for (name, before), (_, after) in zip(shapes, found, strict=True):
        if before != after:
            return f"the shape of {name} changes from {before} to {after}"
    with torch.no_grad(), _without_mixing_norms(pruned), _without_mixing_norms(masked):
        args, kwargs = at_batch(example, 2)
        expected = list(tensors_in(masked(*args, **kwargs)))
        actual = list(tensors_in(pruned(*args, **kwargs)))
    for (name, want), (_, got) in zip(expected, actual, strict=True):
        if not want.is_floating_point():
            continue
        scale = float(want.abs().max()) if want.numel() else 0.0
        tolerance = max(_TOLERANCE, 16 * torch.finfo(want.dtype).eps) * max(scale, 1e-6)
        error_now = float((want - got).abs().max()) if want.numel() else 0.0
        # Bypassed norms may let values overflow; what is not finite says nothing.
        if scale < float("inf") and not error_now <= tolerance:
            return f"{name} does not follow from its remaining channels (it reads the removed ones in another way)"
    return None


@torch.no_grad()
def masked_copy(model: nn.Module, consumers: Sequence[Member]) -> nn.Module:
    """Return a copy in which the consumers' weights for the channels that go are zero; same shapes as the model."""
    result = copy.deepcopy(model)
    for member in consumers:
        twin = Member(member.name, result.get_submodule(member.name), member.side, member.indices, member.roots)
        if isinstance(twin.module, nn.modules.conv._ConvNd | nn.Linear):
            weight, where = column_mask(twin)
            weight[where] = 0
    return result


@contextmanager
def _without_mixing_norms(model: nn.Module) -> Iterator[None]:
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, _MIXING):
                handle = module.register_forward_hook(lambda _module, inputs, _output: inputs[0])
                stack.callback(handle.remove)
        yield
