"""Zeros in weights: N of M along the inputs (2:4) or a share of all, chosen, kept through training, and counted.

What it buys, and what not. TensorRT runs 2:4 weights on the sparse tensor cores of GPUs since Ampere, when it is asked
to (``trtexec --sparsity=enable``, ``trt_sparsity_enable`` of onnxruntime's provider; NVIDIA's "Accelerating Inference
with Sparsity", developer.nvidia.com/blog, 2021). Any zeros make a file smaller once it is compressed. No kernel of
onnxruntime's CPU provider skips them: there the model is as slow as before.

The model that comes back holds plain weights with zeros in them, and the hooks of ``distill.prune.sparse.zeros`` that
keep them zero.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from distill.errors import UserError
from distill.prune.modules import Example, Loss, copied, eval_mode, explained, holders, hooked, inside
from distill.prune.record import by_reason
from distill.prune.sparse.saliency import SALIENCIES, SaliencyName, saliency
from distill.prune.sparse.zeros import Pattern, in_groups, keep_zeros_, read_pattern, sparse_weights

_IGNORED = "ignored"
NO_FASTER = (
    "onnxruntime's CPU kernels compute with the zeros: expect no speed there. 2:4 is faster on TensorRT with sparsity "
    "enabled, on GPUs since Ampere; anywhere else zeros save bytes of a compressed file only"
)


@dataclass(frozen=True)
class SparseRecord:
    """What became zero. ``layers`` maps each sparse weight to its share of zeros, ``left`` each other to the reason.

    ``zeros`` and ``weights`` count the sparse weights only. ``stored_bytes`` are those of the state dict's tensors;
    ``zipped_bytes_before`` and ``zipped_bytes_after`` the same deflated as gzip and zip do.
    """

    pattern: str
    importance: str
    scope: str
    weights: int
    zeros: int
    layers: dict[str, float]
    left: dict[str, str]
    stored_bytes: int
    zipped_bytes_before: int
    zipped_bytes_after: int
    warnings: tuple[str, ...] = ()

    @property
    def share_achieved(self) -> float:
        """Share of zeros among the sparse weights."""
        return self.zeros / self.weights


def sparsify(
    model: nn.Module,
    pattern: Pattern = "2:4",
    *,
    importance: SaliencyName = "magnitude",
    scope: Literal["global", "layer"] = "global",
    ignore: Sequence[str] = (),
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
    limit: int = 8,
) -> tuple[nn.Module, SparseRecord]:
    """Return a copy with zeros in the weights of its Conv, Linear and attention layers, and a record.

    The zeros stay through training (``keep_zeros_``). Sparsify last: widths that change afterwards break the masks.

    Args:
        model: any module; it is not changed.
        pattern: ``"2:4"`` and the like: of every M weights of consecutive inputs, at equal output and kernel position,
            the N most important stay; a layer whose inputs are no multiple of M is left. A number in (0, 1): the share
            of zeros. Of equally important weights the first stay in the former, the last in the latter.
        importance: magnitude is |w|; wanda |w|·‖x‖ with the norm of the weight's input over the batches (Sun et al.
            2023, arXiv 2306.11695); taylor Σ_b (w·∂L_b/∂w)² (Molchanov et al. 2019, arXiv 1906.10771).
        scope: for a share: global lets all weights compete, layer takes the same share of each weight tensor.
        ignore: names of modules that are left, with all in them; ``first_and_last`` names two that often are.
        batches: for wanda (args, kwargs) of the model, for taylor what the loss takes.
        loss: (model, batch) -> scalar, for taylor.
        limit: batches that are read.

    Raises:
        UserError: a pattern, a name or data that cannot be used, or no weight that can be sparse.
    """
    groups = _require_usable(pattern, importance, scope)
    work = copied(model, to_be="made sparse")
    chosen, left = _choose(work, groups, ignore)
    scores = saliency(work, importance, chosen, batches, loss, limit)
    unseen = "its input was not seen by a hook" if importance == "wanda" else "the loss does not depend on it"
    left |= dict.fromkeys([name for name in chosen if name not in scores], unseen)
    if not scores:
        why = "; ".join(by_reason(left)) or "it has no Conv or Linear layer"
        raise UserError(f"no weight of the model can be sparse: {why}")
    plain, zipped = stored_bytes(work)
    masks = _masks(scores, groups, pattern, scope)
    keep_zeros_(work, masks)
    shares = {name: 1 - float(mask.float().mean()) for name, mask in masks.items()}
    return work, SparseRecord(
        pattern=str(pattern),
        importance=importance,
        scope="group" if groups else scope,
        weights=sum(mask.numel() for mask in masks.values()),
        zeros=sum(int((~mask).sum()) for mask in masks.values()),
        layers=shares,
        left=left,
        stored_bytes=plain,
        zipped_bytes_before=zipped,
        zipped_bytes_after=stored_bytes(work)[1],
        warnings=_warnings(shares, left),
    )


def _require_usable(pattern: Pattern, importance: str, scope: str) -> tuple[int, int] | None:
    """Return N and M of the pattern, None for a share, once the options fit each other."""
    if importance not in SALIENCIES:
        raise UserError(f"importance={importance!r}: must be one of {', '.join(SALIENCIES)}")
    groups = read_pattern(pattern)
    if importance == "wanda" and groups is None and scope == "global":
        raise UserError("importance='wanda' ranks weights within a layer only; use scope='layer'")
    return groups


def first_and_last(model: nn.Module, example: Example) -> tuple[str, str]:
    """Return the names of the Conv or Linear layers that are called first and last, for ``ignore``.

    Raises:
        UserError: the model does not run, or has no such layer.
    """
    called: list[str] = []
    handles = (
        module.register_forward_pre_hook(lambda _module, _args, name=name: called.append(name))
        for name, module in model.named_modules()
        if isinstance(module, _ConvNd | nn.Linear)
    )
    runs = explained("the model does not run on its example input")
    with hooked(handles), eval_mode(model), torch.no_grad(), runs:
        model(*example[0], **example[1])
    if not called:
        raise UserError("the model calls no Conv or Linear layer")
    return called[0], called[-1]


def stored_bytes(model: nn.Module) -> tuple[int, int]:
    """Return the bytes of the state dict's tensors, as they are and deflated (level 6, as gzip and zip do)."""
    plain = zipped = 0
    squeeze = zlib.compressobj(6)
    for tensor in model.state_dict().values():
        if isinstance(tensor, Tensor):
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            plain += len(data)
            zipped += len(squeeze.compress(data))
    return plain, zipped + len(squeeze.flush())


def _choose(
    model: nn.Module, groups: tuple[int, int] | None, ignore: Sequence[str]
) -> tuple[dict[str, nn.Parameter], dict[str, str]]:
    """Return the weights that can be sparse, and why others are left."""
    chosen, left, ignored = {}, {}, inside(model, ignore)
    shares = holders(model)
    for name, module, weight in sparse_weights(model):
        why = _why_left(module, weight, groups)
        if name.rpartition(".")[0] in ignored:
            why = _IGNORED
        elif shares[id(weight)] > 1:
            why = "it is shared with another layer"
        if why:
            left[name] = why
        else:
            chosen[name] = weight
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd | nn.Linear) and module._parameters.get("weight") is None:
            left[f"{name}.weight"] = "it is computed (a parametrization); remove that first"
    return chosen, left


def _why_left(module: nn.Module, weight: nn.Parameter, groups: tuple[int, int] | None) -> str | None:
    if not weight.is_floating_point() or not torch.isfinite(weight).all():
        return "its values are not finite floating-point numbers"
    if groups is None:
        return None
    if isinstance(module, _ConvTransposeNd):
        return "transposed convolutions have no sparse kernels"
    if weight.shape[1] % groups[1]:
        return f"its {weight.shape[1]} inputs are no multiple of {groups[1]}"
    return None


def _masks(
    scores: Mapping[str, Tensor], groups: tuple[int, int] | None, pattern: Pattern, scope: str
) -> dict[str, Tensor]:
    """Return the masks: True stays."""
    if groups:
        return {name: keep_largest(score, *groups) for name, score in scores.items()}
    share = float(pattern)
    if scope == "layer":
        return {name: drop_smallest([score], share)[0] for name, score in scores.items()}
    return dict(zip(scores, drop_smallest([*scores.values()], share), strict=True))


def keep_largest(scores: Tensor, keep: int, size: int) -> Tensor:
    """Return the mask of the ``keep`` largest of every ``size`` consecutive inputs of scores [out, in, …]."""
    rows = in_groups(scores, size)
    order = rows.argsort(dim=2, descending=True, stable=True)
    mask = torch.zeros_like(rows, dtype=torch.bool).scatter_(2, order.narrow(2, 0, keep), True)
    return mask.flatten(1, 2)


def drop_smallest(scores: Sequence[Tensor], share: float) -> list[Tensor]:
    """Return masks that are False at the smallest scores of all tensors together: round(share · number) of them."""
    flat = torch.cat([score.flatten() for score in scores])
    flat = flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat
    mask = torch.ones_like(flat, dtype=torch.bool)
    number = round(share * len(flat))
    if number:
        limit = flat.kthvalue(number).values
        mask[flat < limit] = False
        equal = (flat == limit).nonzero().flatten()
        mask[equal[: number - int((~mask).sum())]] = False
    parts = torch.split(mask, [score.numel() for score in scores])
    return [part.reshape(score.shape) for part, score in zip(parts, scores, strict=True)]


def _warnings(shares: Mapping[str, float], left: Mapping[str, str]) -> tuple[str, ...]:
    empty = [name for name, share in shares.items() if share == 1]
    warnings = [NO_FASTER]
    unasked = {name: why for name, why in left.items() if why != _IGNORED}
    if unasked:
        warnings.append(f"left dense: {'; '.join(by_reason(unasked))}")
    if empty:
        warnings.append(f"nothing is left of {', '.join(empty)}: lower the share, or use scope='layer'")
    return tuple(warnings)
