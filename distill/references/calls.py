"""What a model's own forward raises, as one line: what it was called with, which layer failed, and what mends it."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distill.references.functions import cause
from distill.references.unwrapping import dtype_name, not_finite

if TYPE_CHECKING:
    from torch import Tensor, nn

_DTYPES = re.compile(
    r"same dtype|scalar type|different dtype|Input type|not implemented for '(Half|BFloat16|Double|Long|Int|Byte|Bool)'"
    r"|result type|expected .* dtype",
    re.IGNORECASE,
)
_DEVICES = re.compile(r"same device|expected device|not compiled with CUDA|meta tensor|No CUDA GPUs|two devices")
_INDEX = re.compile(r"index out of range in self|Expected tensor for argument #1 'indices'")


def described(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Say what a model is called with: type and shape of each tensor, such as ``float32 [2, 4], mask=int64 [2, 9]``."""
    return ", ".join(
        f"{f'{name}=' if name in kwargs else ''}{dtype_name(value)} {list(value.shape)}"
        for name, value in _tensors(args, kwargs).items()
    )


def why_call_failed(error: BaseException, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Explain what a call of a model raised; it reads behind the model's name."""
    name, layer = failed_layer(error, model)
    raised = f"{cause(error)}{in_layer(name, layer)}; {_mend(error, model, args, kwargs, layer)}"
    return f"{type(model).__name__} was called with {described(args, kwargs)} and raised {raised}"


def failed_layer(error: BaseException | None, model: nn.Module) -> tuple[str, nn.Module]:
    """Return the innermost module of a model that an error was raised in, with its name; the model where none was."""
    names = {id(module): name for name, module in model.named_modules()}
    for link in chain(error):
        frames = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(link.__traceback__)]
        inside: list[Any] = [module for module in frames if names.get(id(module))]
        if inside:
            return names[id(inside[-1])], inside[-1]
    return "", model


def in_layer(name: str, layer: nn.Module) -> str:
    """Name a layer of a model behind what it did; empty for the model itself."""
    return f" in its layer {name!r}, {layer}" if name else ""


def chain(error: BaseException | None) -> list[BaseException]:
    """Return an error and those that it was raised from, or while they were handled."""
    links: list[BaseException] = []
    while error is not None and error not in links:
        links.append(error)
        error = error.__cause__ or error.__context__
    return links


def _mend(
    error: BaseException, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], layer: nn.Module
) -> str:
    text = str(error)
    signature = _unmet_signature(model, args, kwargs) if isinstance(error, TypeError) else None
    if signature is not None:
        return signature
    if _INDEX.search(text):
        size = getattr(layer, "num_embeddings", None)
        most = f" from 0 to {size - 1}" if size else ""
        return f"an embedding takes whole numbers{most}, of type int64: check the rows, or its num_embeddings"
    if _DEVICES.search(text):
        stray = next(_strays(model), None)
        named = f"{stray} is on another device: " if stray else ""
        return f"{named}make tensors on the device of the inputs, or keep them by register_buffer; call no .cuda()"
    if _DTYPES.search(text):
        return _mend_dtype(model, args, kwargs)
    return "it has to take what the data give"


def _mend_dtype(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    import torch

    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.dtype != torch.float32:
            stored = f"its weights are {dtype_name(weight)} ({name})"
            return f"{stored}, and float32 is wanted: return model.float() where it is made"
    for name, value in _tensors(args, kwargs).items():
        if value.dtype != torch.float32:
            return (
                f"{name} is {dtype_name(value)}: if forward wants decimal numbers give float32 rows, as "
                "x.astype('float32') makes them, and int64 where it wants whole ones"
            )
    return "every input is float32: if forward wants whole numbers give int64 rows, or cast inside forward"


def _unmet_signature(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Say how forward wants to be called, where this call does not fit its parameters."""
    try:
        wanted = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return None
    try:
        wanted.bind(*args, **kwargs)
    except TypeError:
        kinds = {parameter.kind for parameter in wanted.parameters.values()}
        named = {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}
        by_name = "it takes them by name: " if kinds <= named else ""
        return (
            f"forward{wanted} does not take {len(args)} inputs by position and {list(kwargs) or 'none'} by name; "
            f"{by_name}have `inputs(batch)` of the data return a dict of names and tensors, or name the arrays so"
        )
    return None


def _strays(model: nn.Module) -> Iterator[str]:
    """Name tensors that modules hold as plain attributes, on another device than the CPU: `to` does not move them."""
    import torch

    for place, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, torch.Tensor) and value.device.type != "cpu":
                yield f"{place}.{key}".lstrip(".") + f" ({value.device})"


def why_not_finite(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Say what makes a model answer NaN before it has learnt: a weight, or an input; None where neither does."""
    weight = not_finite(model)
    if weight is not None:
        return f"its weight {weight}; give other weights"
    for name, value in _tensors(args, kwargs).items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            return f"{name} holds NaN or infinities; look at the data"
    return None


def _tensors(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a call, by what messages call them."""
    import torch

    inputs = {**{f"input {number}": value for number, value in enumerate(args)}, **kwargs}
    return {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
