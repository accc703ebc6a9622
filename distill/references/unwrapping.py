"""What users wrap around a module is taken off; a model whose layers or values are out of reach is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import MethodType
from typing import TYPE_CHECKING

from distill.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

_QUANTIZERS = re.compile(
    r"torch(\.ao)?\.nn\.(\w+\.)*quantized|torchao|bitsandbytes|auto_?gptq|gptqmodel|awq|hqq|(optimum\.)?quanto"
)
_PACKED = {"weight", "qweight", "weight_packed", "weight_int8", "weight_quantized"}  # names of weights as integers
_FLOAT_WANTED = "give the float model that it was made from; distill makes the integers itself"


def plain_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the module inside torch.compile and DataParallel."""
    from distill.state_dicts import twin

    return unwrapped(twin(_inside(model)))


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside torch.compile, DataParallel and DistributedDataParallel; its own parts alike, in place.

    A compiled ``forward`` gives way to what was compiled: that of a copy would go on using the weights of this module.
    """
    plain = _inside(model)
    for module in plain.modules():  # goes into a module's parts after the module, so into those without wrappers
        for name, part in module._modules.items():
            if part is not None:
                module._modules[name] = _inside(part)
        module._compiled_call_impl = None
        _plain_forward(module)
    return plain


def _inside(module: nn.Module) -> nn.Module:
    from torch import nn

    while "_orig_mod" in module._modules or isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        module = module.get_submodule("_orig_mod" if "_orig_mod" in module._modules else "module")
    return module


def _plain_forward(module: nn.Module) -> None:
    """Give a module the ``forward`` that was compiled, where one was: on the module itself, or in its class."""
    compiled = vars(module).get("forward", type(module).forward)
    original = getattr(compiled, "_torchdynamo_orig_callable", None)
    if original is None:
        return
    on_itself = "forward" in vars(module)
    vars(module).pop("forward", None)
    # A compiled bound method does not tell what it is bound to, but has the name of the class's own.
    if not on_itself:
        module.forward = MethodType(original, module)
    elif getattr(original, "__qualname__", "") != type(module).forward.__qualname__:
        module.forward = original


def require_plain(model: nn.Module, subject: str) -> None:
    """Refuse a model whose layers cannot be changed, or whose weights have no values or are not plain floats.

    Raises:
        UserError: a part of the model is TorchScript, an exported program, sharded over processes or quantised; or a
            tensor is lazy, sparse or on the meta device. ``subject`` opens the message.
    """
    for name, module in model.named_modules():
        why = _why_fixed(module) or next(_why_no_float(module, f"{name}." if name else ""), None)
        if why is not None:
            part = f"its part {name!r} ({type(module).__name__}) " if name else ""
            raise UserError(f"{subject}: {part}{why}")


def _why_fixed(module: nn.Module) -> str | None:
    import torch

    mend = "name the nn.Module that it was made from"
    if isinstance(module, torch.jit.ScriptModule):
        return f"is TorchScript, whose layers are fixed; {mend}"
    if isinstance(module, torch.fx.GraphModule) and "train" in vars(module):  # such a one refuses train() and eval()
        return f"is an exported program, whose layers are fixed; {mend}"
    bases = {kind.__name__ for kind in type(module).__mro__}
    if bases & {"FullyShardedDataParallel", "FSDPModule"}:
        return "is sharded by FSDP; gather its full state dict, and give the module that was sharded with these weights"
    if _QUANTIZERS.match(type(module).__module__) and not bases & {"FloatFunctional", "FXFloatFunctional"}:
        return f"is quantised already, by {type(module).__module__.partition('.')[0]}; {_FLOAT_WANTED}"
    if bases & {"FakeQuantizeBase", "ObserverBase"}:
        return f"was put in by torch to prepare quantisation; {_FLOAT_WANTED}"
    return None


def _why_no_float(module: nn.Module, place: str) -> Iterator[str]:
    import torch

    tensors = {**module._parameters, **module._buffers}
    for key, value in tensors.items():
        name, kind = f"{place}{key}", type(value)
        if value is None:
            continue
        if torch.nn.parameter.is_lazy(value):
            yield (
                f"has uninitialized parameters ({name} of {type(module).__name__}); give lazy layers their sizes, or "
                "call the model once in its factory"
            )
        elif value.is_meta:
            yield (
                f"has no values: {name} is on the device meta; build it without torch.device('meta'), or call "
                "to_empty(device='cpu') and load weights in the function that makes it"
            )
        elif kind.__name__ == "DTensor":
            yield f"is sharded over processes ({name} is a DTensor); call full_tensor() on its weights first"
        elif value.is_quantized or _holds_integers(module, key, value):
            yield f"is quantised already: {name} is {dtype_name(value)}; {_FLOAT_WANTED}"
        elif value.layout != torch.strided:
            yield f"has a weight of layout {str(value.layout).removeprefix('torch.')} ({name}); store it dense"
        elif kind not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer) and kind.__module__.startswith("torchao"):
            yield f"is quantised already: {name} is a {kind.__name__} of torchao; {_FLOAT_WANTED}"


def _holds_integers(module: nn.Module, key: str, value: Tensor) -> bool:
    """Say whether a tensor is a layer's weights as integers: a parameter of them, or what a quantiser calls so."""
    import torch

    if value.ndim < 2 or value.dtype not in (torch.int8, torch.uint8, torch.int32, torch.int16):
        return False
    return key in module._parameters or key in _PACKED


def dtype_name(value: Tensor) -> str:
    """Return a tensor's type as users write it: float32, int64, ..."""
    return str(value.dtype).removeprefix("torch.")


def not_finite(model: nn.Module) -> str | None:
    """Name the first tensor of a model that holds NaN, or a trained one that holds infinities; None where none does.

    What is not trained may hold infinities, as masks do.
    """
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if not value.is_floating_point():
            continue
        bad = int((~value.isfinite() if value.requires_grad else value.isnan()).sum())
        if bad:
            return f"{name} holds {'NaN' if bool(value.isnan().any()) else 'infinities'} ({bad} of {value.numel()})"
    return None
