"""The widths of a pruned model as plain data, and their way back onto a freshly built one. No pickle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from distill.errors import UserError
from distill.prune.attention.heads import attributes_of
from distill.prune.attention.stand_ins import is_stand_in, stand_in_
from distill.prune.depth.skipped import skip_blocks_, skipped_of
from distill.prune.modules import set_tensor
from distill.prune.record import SkippedBlock
from distill.state_dicts import twin
from distill.wording import first_of

FORMAT = 1


class ModuleWidths(TypedDict):
    """A layer's width attributes and the shapes of its tensors, by their names."""

    attributes: dict[str, int | float | list[int]]
    shapes: dict[str, list[int]]


class Structure(TypedDict):
    """The widths of a pruned model as data that JSON can hold; modules that hold no tensor of their own are left out.

    ``skipped`` are blocks that went, ``stand_ins`` the names of modules that were exchanged for ones that run narrower.
    """

    format: int
    modules: dict[str, ModuleWidths]
    skipped: list[SkippedBlock]
    stand_ins: list[str]


# The attributes that follow a layer's widths, by the class that defines them.
_ATTRIBUTES: tuple[tuple[type[nn.Module], tuple[str, ...]], ...] = (
    (_ConvNd, ("in_channels", "out_channels", "groups")),
    (nn.Linear, ("in_features", "out_features")),
    (_BatchNorm, ("num_features",)),
    (_InstanceNorm, ("num_features",)),
    (nn.GroupNorm, ("num_groups", "num_channels")),
    (nn.LayerNorm, ("normalized_shape",)),
    (nn.RMSNorm, ("normalized_shape",)),
    (nn.PReLU, ("num_parameters",)),
    (nn.Embedding, ("num_embeddings", "embedding_dim")),
    (nn.RNNBase, ("input_size", "hidden_size")),
)


def structure_of(model: nn.Module) -> Structure:
    """Describe every layer's width attributes and tensor shapes."""
    modules: dict[str, ModuleWidths] = {}
    for name, module in model.named_modules():
        shapes = {key: list(tensor.shape) for key, tensor in _tensors(module).items()}
        attributes = _attributes(module)
        if shapes or attributes:
            modules[name] = {"attributes": attributes, "shapes": shapes}
    stand_ins = [name for name, module in model.named_modules() if is_stand_in(module)]
    return {"format": FORMAT, "modules": modules, "skipped": skipped_of(model), "stand_ins": stand_ins}


def apply_structure(model: nn.Module, structure: Mapping[str, Any]) -> nn.Module:
    """Return a copy of a freshly built, unpruned model with the widths of ``structure``, ready for load_state_dict.

    Tensors keep their leading entries, dtype, device and ``requires_grad``; values come from the weights loaded next.

    Raises:
        UserError: the structure is not one of this model's: another module tree, or a size beyond the model's.
    """
    return apply_structure_(twin(model), structure)


def apply_structure_(model: nn.Module, structure: Mapping[str, Any]) -> nn.Module:
    """Do as ``apply_structure`` in place, and return the same model. A refused structure leaves it unchanged."""
    if not isinstance(structure, Mapping):
        raise UserError(f"structure: must be what structure_of returned, is {type(structure).__name__}")
    skipped, stand_ins = _listed(structure, "skipped"), _listed(structure, "stand_ins")
    # A refused structure leaves the model as it is: a copy is tried first.
    wanted = _checked(_exchanged_(twin(model), skipped, stand_ins), structure)
    _exchanged_(model, skipped, stand_ins)
    for name, entry in wanted.items():
        module = model.get_submodule(name)
        for key, value in entry["attributes"].items():
            setattr(module, key, tuple(value) if isinstance(value, list) else value)
        for key, tensor in _tensors(module).items():
            shape = tuple(entry["shapes"][key])
            if tensor.shape != shape:
                set_tensor(module, key, tensor.detach()[tuple(slice(size) for size in shape)].clone())
    return model


def _exchanged_(model: nn.Module, skipped: Sequence[SkippedBlock], stand_ins: Sequence[str]) -> nn.Module:
    """Put in place of a fresh model's modules what stands there in the pruned one."""
    skip_blocks_(model, skipped)
    names = {name for name, _ in model.named_modules()}
    for name in stand_ins:
        # Not by get_submodule: it looks attributes up, and a property of a class is code, too.
        if not isinstance(name, str) or name not in names:
            raise UserError(f"the structure is that of another model: stand_ins has {name!r}, which the model has not")
        stand_in_(model, name)
    return model


def _listed(structure: Mapping[str, Any], key: str) -> list[Any]:
    values = structure.get(key, [])
    if not isinstance(values, list | tuple):
        raise UserError(f"the structure's {key} must be a list, is {type(values).__name__}")
    return list(values)


def _checked(model: nn.Module, structure: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the structure's modules once all of them fit the model."""
    if structure.get("format") != FORMAT or not isinstance(structure.get("modules"), Mapping):
        raise UserError(f"structure format={structure.get('format')!r}: this version reads format {FORMAT}")
    wanted: Mapping[str, Any] = structure["modules"]
    have: Mapping[str, Any] = structure_of(model)["modules"]
    strangers = sorted(set(wanted) ^ set(have))
    if strangers:
        raise UserError(
            f"the structure is that of another model: {first_of(map(repr, strangers), 3)} on one side only; "
            "build the model with the arguments that it had when it was pruned"
        )
    for name, entry in wanted.items():
        mine = have[name]
        for part in ("shapes", "attributes"):
            sizes = entry.get(part) if isinstance(entry, Mapping) else None
            if not isinstance(sizes, Mapping) or set(sizes) != set(mine[part]):
                raise UserError(f"the structure is that of another model: layer {name!r} holds other tensors there")
            for key, size in mine[part].items():
                if not _is_within(sizes[key], size):
                    place = f"{name}.{key} of shape" if part == "shapes" else f"{name}.{key} ="
                    raise UserError(
                        f"the structure asks for {place} {str(sizes[key])[:60]}, the model has {size}; "
                        "a structure only narrows the model that it was taken from"
                    )
    return wanted


def _is_within(value: Any, whole: Any) -> bool:
    """Tell whether a size, or each of several, is the whole model's or smaller; a scale, any number."""
    if isinstance(whole, list):
        fits = isinstance(value, list) and len(value) == len(whole)
        return fits and all(map(_is_within, value, whole))
    if type(value) is type(whole) and value == whole:
        return True
    if isinstance(whole, float):
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return type(value) is int and 0 < value < whole


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the module's own parameters and buffers, without those of its children."""
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return {name: tensor for name, tensor in own if not isinstance(tensor, torch.nn.UninitializedParameter)}


def _attributes(module: nn.Module) -> dict[str, int | float | list[int]]:
    names = (name for kind, names in _ATTRIBUTES if isinstance(module, kind) for name in names)
    values = {name: getattr(module, name) for name in names}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()} | attributes_of(module)
