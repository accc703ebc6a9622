"""Where a model attends, and which tensors of it are sized by its heads. Told by structure, not by class.

A site is a module with Linear children for queries, keys and values (or one for all three), an integer attribute that
says how many heads there are, and an output projection: its own, or one beside it under the same parent.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import signature
from typing import Literal

from torch import Tensor, nn

from distill.errors import UserError
from distill.prune.attention.stand_ins import is_stand_in
from distill.prune.modules import holders

HEADS = (
    *("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads"),
    *("num_kv_heads", "num_key_value_heads"),
)
HEAD_DIM = ("head_dim", "attention_head_size", "head_size", "dim_head", "dim_per_head", "d_head", "d_k", "d_v")
INNER = ("attn_dim", "all_head_size", "all_head_dim", "inner_dim", "kv_dim")
# These name the model's width in one attention and all heads together in another: see ``follows_heads``.
EITHER = ("dim", "embed_dim", "hidden_size", "d_model", "n_embd")
SCALE = ("scale", "scaling")

_PREFIX, _SUFFIX = r"(?:to|w|lin|linear|fc|proj)_?", r"_?(?:proj|projection|lin|linear|layer|dense|fc|w)"
_ROLE = re.compile(rf"^(?:{_PREFIX})?(q|k|v|query|key|value|queries|keys|values)(?:{_SUFFIX})?$")
_FUSED = re.compile(r"qkv|query_key_value|c_attn|in_proj", re.IGNORECASE)
_OUTPUT = re.compile(r"^(?:o|out|output|proj|projection|dense|wo|w_o|fc|to_out)(?:_|\.|$)|(?:o|out|c)_(?:proj|lin)$")
_NORM = re.compile(r"^(?:q|k|query|key)_?(?:norm|ln|layer_?norm)$")
_ROTARY = re.compile(r"rotary|rope|rotate_half|freqs_cis|position_embeddings|^cos$")
# Tensors with an entry a head, and where.
_PER_HEAD = {"relative_position_bias_table": -1, "logit_scale": 0, "attention_biases": 0}
_POSITION_MLP = re.compile(r"(?:cpb|position_bias|meta)_?mlp$")

By = Literal["channels", "heads"]


@dataclass(frozen=True)
class Slot:
    """An axis of a tensor that the attention sizes.

    ``roles`` names its equal parts, one after another: ("q", "k", "v") for a fused projection.
    """

    module: str
    tensor: str
    axis: int
    by: By
    roles: tuple[str, ...] = ("",)


@dataclass(frozen=True, eq=False)
class Site:
    """An attention: ``heads * head_dim`` channels, in the order in which the ``output`` projection reads them.

    ``problem`` says why it cannot be cut; ``fixed_dim`` why it can only lose whole heads.
    """

    name: str
    module: nn.Module
    heads: int
    head_dim: int
    projections: tuple[tuple[str, tuple[str, ...]], ...]
    output: str
    slots: tuple[Slot, ...]
    problem: str | None
    fixed_dim: str | None

    @property
    def width(self) -> int:
        """Channels of all heads together."""
        return self.heads * self.head_dim


def sites(model: nn.Module) -> Iterator[Site]:
    """Yield every attention of the model, those that cannot be cut too."""
    shares = holders(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            yield _multihead(name, module, shares)
        else:
            site = _written_out(model, name, module, shares)
            if site is not None:
                yield site


def site_of(model: nn.Module, name: str) -> Site:
    """Return the named attention.

    Raises:
        UserError: there is none, or it cannot be cut.
    """
    for site in sites(model):
        if site.name == name:
            if site.problem:
                raise UserError(f"attention {name!r} cannot be cut: {site.problem}")
            return site
    raise UserError(f"the model has no attention {name!r}")


def follows_heads(module: nn.Module, attribute: str) -> bool:
    """Tell whether an attribute that may name either width is that of the heads.

    Attention that reads such an attribute while it runs splits or joins its heads with it: its input says its own
    width. One that nothing reads keeps saying what the module was built with.
    """
    for kind in type(module).__mro__:
        if kind is nn.Module:
            break
        for name, function in vars(kind).items():
            code = getattr(function, "__code__", None)
            if code is not None and name not in ("__init__", "extra_repr") and attribute in code.co_names:
                return True
    return False


def _multihead(name: str, module: nn.MultiheadAttention, shares: Counter[int]) -> Site:
    fused = ("q", "k", "v")
    slots = [Slot(name, "in_proj_weight", 0, "channels", fused), Slot(_join(name, "out_proj"), "weight", 1, "channels")]
    if module.in_proj_bias is not None:
        slots.append(Slot(name, "in_proj_bias", 0, "channels", fused))
    problem = None
    if module.in_proj_weight is None:
        problem = "its queries, keys and values come from inputs of other widths (kdim, vdim)"
    elif module.bias_k is not None or module.add_zero_attn:
        problem = "it adds keys and values of its own (add_bias_kv, add_zero_attn)"
    elif not name:
        problem = "an nn.MultiheadAttention alone cannot be exchanged in place; put it into another module"
    elif "in_proj_weight" not in module._parameters or "weight" not in module.out_proj._parameters:
        problem = "a weight of it is computed (a parametrization); remove it first"
    elif any(shares[id(p)] > 1 for p in module.parameters()):
        problem = "it shares a weight with another layer"
    elif type(module) is not nn.MultiheadAttention and not is_stand_in(module):
        problem = f"{type(module).__name__} is a class of its own, whose forward is not known"
    dim = module.out_proj.in_features // module.num_heads
    output = _join(name, "out_proj")
    return Site(name, module, module.num_heads, dim, ((name, fused),), output, tuple(slots), problem, None)


def _written_out(model: nn.Module, name: str, module: nn.Module, shares: Counter[int]) -> Site | None:
    """Describe attention made of Linear layers; None if the module is something else."""
    linears = {key: child for key, child in module.named_children() if isinstance(child, nn.Linear)}
    projections = _projections(linears)
    if projections is None:
        return None
    queries = linears[projections[0][0]]
    width = queries.out_features // len(projections[0][1])
    heads = _attribute(module, HEADS)
    dim = _attribute(module, HEAD_DIM)
    problem = _mismatch(linears, projections, width, heads, dim)
    heads = heads or (width // dim if dim else 1)
    output, missing = _output(model, name, module, width, {key for key, _ in projections})
    problem = problem or missing
    gate = linears.get("gate")
    if gate is not None and gate.out_features == width:
        projections.append(("gate", ("",)))
    slots, unknown = _slots(name, module, projections, heads, width)
    slots += [Slot(output, "weight", 1, "channels")]
    problem = problem or unknown or _why_not(model, module, slots, shares)
    named = tuple((_join(name, key), roles) for key, roles in projections)
    return Site(name, module, heads, width // heads, named, output, tuple(slots), problem, _fixed_dim(module))


def _projections(linears: dict[str, nn.Linear]) -> list[tuple[str, tuple[str, ...]]] | None:
    """Return the layers that make queries, keys and values, queries first."""
    fused = [key for key, layer in linears.items() if _FUSED.search(key) and layer.out_features % 3 == 0]
    if len(fused) == 1:
        return [(fused[0], ("q", "k", "v"))]
    by_role = {match[1][0]: key for key in linears if (match := _ROLE.match(key.lower()))}
    return [(by_role[role], (role,)) for role in "qkv"] if len(by_role) == 3 else None


def _mismatch(
    linears: dict[str, nn.Linear], projections: list[tuple[str, tuple[str, ...]]], width: int, heads: int, dim: int
) -> str | None:
    if len(projections) == 3:
        _, keys, values = (linears[key].out_features for key, _ in projections)
        if keys != values:
            return f"its keys have {keys} channels and its values {values}"
        if keys != width:
            return f"queries have {width} channels, keys and values {keys} (grouped-query attention)"
    if not heads and not dim:
        return "no attribute of it says how many heads it has"
    if width % (heads or dim) or (heads and dim and heads * dim != width):
        return f"its attributes do not make its {width} channels (heads {heads or '?'}, dimensions {dim or '?'})"
    return None


def _output(model: nn.Module, name: str, module: nn.Module, width: int, used: set[str]) -> tuple[str, str | None]:
    """Return the projection that reads the heads, or why it cannot be told."""
    own = {_join(name, key): child for key, child in _linears(module) if key not in used and key.count(".") <= 1}
    fitting = [key for key, layer in own.items() if layer.in_features == width]
    if not fitting and name:
        parent = name.rpartition(".")[0]
        beside = {_join(parent, key): layer for key, layer in _linears(model.get_submodule(parent))}
        fitting = [key for key, x in beside.items() if not key.startswith(name + ".") and x.in_features == width]
    if len(fitting) > 1:
        stem = name.rpartition(".")[0] if not any(key in own for key in fitting) else name
        fitting = [key for key in fitting if _OUTPUT.search(key[len(stem) :].lstrip("."))] or fitting
    if len(fitting) == 1:
        return fitting[0], None
    # The name of some layer, so that the group can be shown; nothing is cut.
    return _join(name, next(iter(used))), "its output projection cannot be told from its other layers"


def _slots(
    name: str, module: nn.Module, projections: list[tuple[str, tuple[str, ...]]], heads: int, width: int
) -> tuple[list[Slot], str | None]:
    """Return what has to be narrowed before the output projection, and what is not understood."""
    slots = [
        Slot(_join(name, key), tensor, 0, "channels", roles)
        for key, roles in projections
        for tensor, value in module.get_submodule(key).named_parameters(recurse=False)
        if isinstance(value, Tensor)
    ]
    seen = {key for key, _ in projections}
    for path, owner in module.named_modules():
        if path.partition(".")[0] in seen:
            continue
        if _POSITION_MLP.search(path):
            last = max(key for key, _ in _linears(owner))
            layer = owner.get_submodule(last)
            slots += [Slot(_join(name, path, last), key, 0, "heads") for key, _ in layer.named_parameters()]
        tensors = {**owner._parameters, **owner._buffers}
        for key, value in tensors.items():
            if value is None or not value.is_floating_point():
                continue
            if key in _PER_HEAD and value.shape[_PER_HEAD[key]] == heads:
                slots.append(Slot(_join(name, path), key, _PER_HEAD[key], "heads"))
            elif not path and key in ("q_bias", "k_bias", "v_bias") and value.shape == (width,):
                slots.append(Slot(name, key, 0, "channels", (key[0],)))
            elif (not path or isinstance(owner, nn.Embedding)) and _counts_heads(value, heads):
                return slots, f"{_join(path, key)} may have an entry for each head, and it is not known which"
    return slots, None


def _counts_heads(value: Tensor, heads: int) -> bool:
    """Tell a tensor that may have an entry a head. Buffers that are more than a list are masks and coordinates."""
    return heads in value.shape and heads > 1 and (isinstance(value, nn.Parameter) or value.numel() == heads)


def _why_not(model: nn.Module, module: nn.Module, slots: list[Slot], shares: Counter[int]) -> str | None:
    for slot in slots:
        owner = model.get_submodule(slot.module)
        value = getattr(owner, slot.tensor)
        if slot.tensor not in owner._parameters and slot.tensor not in owner._buffers:
            return f"{slot.tensor} of {slot.module} is computed (a parametrization); remove it first"
        if shares[id(value)] > 1:
            return f"{slot.module} shares its weight with another layer"
        if isinstance(owner, nn.Linear) and "weight" not in owner._parameters:
            return f"the weight of {slot.module} is computed (a parametrization); remove it first"
    if any("alibi" in name for name in signature(module.forward).parameters):
        return "its positions are biases that differ from head to head (ALiBi), made outside of it"
    return None


def _fixed_dim(module: nn.Module) -> str | None:
    for key, child in module.named_children():
        if _NORM.match(key) and not isinstance(child, nn.Identity):
            return f"{key} normalises over the dimensions of a head"
    names = [*signature(module.forward).parameters, *vars(module), *(name for name, _ in module.named_children())]
    if any(map(_ROTARY.search, names)):
        return "rotary position embeddings turn its dimensions in pairs"
    return None


def _attribute(module: nn.Module, names: tuple[str, ...]) -> int:
    """Return the first of the attributes that is a positive integer; 0 if there is none."""
    values = (getattr(module, name, None) for name in names)
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0), 0)


def _linears(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    return ((name, child) for name, child in module.named_modules() if isinstance(child, nn.Linear))


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)
