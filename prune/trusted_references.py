"""Whether what a file names may build a model: a file never chooses code.

Followed are names that timm, torchvision or transformers register, and functions that the caller names as well. What a
file says to a library's model are numbers, and words out of a closed list: a path, a name on a hub, or a switch that
fetches or runs something is none of them.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules import module as registration
from torch.nn.parameter import is_lazy

from distill.errors import UserError
from distill.prune.modules import hooked
from distill.references.libraries import LIBRARIES, OF_WEIGHTS, package

Arguments = Mapping[str, Any]

_LARGEST = 2**24  # of a whole number: no size of a layer, a picture or a vocabulary is beyond it
# Of what tables over pairs of positions are made, which are computed before any parameter is counted.
_LARGEST_SIDE, _LARGEST_WINDOW = 3072, 64
_LONGEST, _DEEPEST = 2**12, 3  # of lists
_OBJECT_BYTES = 2**13  # that a tensor of a few numbers takes with its module, on the generous side
# What a library resolves by name where an architecture leaves a choice, and nothing else does.
_WORDS = """
    relu relu2 relu6 leaky_relu prelu elu celu selu gelu gelu_new gelu_fast gelu_tanh gelu_pytorch_tanh gelu_python
    gelu_accurate quick_gelu silu swish mish sigmoid tanh linear identity laplace hard_sigmoid hard_swish hard_mish
    hardswish gated-gelu gated-silu
    batchnorm batchnorm2d layernorm layernorm2d groupnorm groupnorm1 rmsnorm rmsnorm2d layer_norm no_norm
    avg max avgmax catavgmax fast avg_max token map first last mean cls cls_index attn early late
    absolute relative_key relative_key_query p2c c2p block_sparse original_full bi uni
    full_attention sliding_attention chunked_attention linear_attention attention global local lsh
    default dynamic yarn longrope llama3 none
    bottleneck basic preactivation same valid deep deep_tiered stem
    float64 float32 float16 bfloat16 regression single_label_classification multi_label_classification
    """
# What transformers writes into every description of a model and no architecture depends on.
_DESCRIPTIVE = ("model_type", "transformers_version", "architectures", "_name_or_path")
_LABELS = ("id2label", "label2id")
# How it rotates positions, for all layers or for those of a kind.
_ROTATION = """
    rope_type rope_theta factor original_max_position_embeddings attention_factor beta_fast beta_slow low_freq_factor
    high_freq_factor short_factor long_factor partial_rotary_factor mscale mscale_all_dim truncate
    full_attention sliding_attention
    """
_OF_WEIGHTS = frozenset(name for names in OF_WEIGHTS.values() for name in names)


def approved(reference: object, arguments: object, trust: str | Iterable[str], *, file: Path) -> tuple[str, Arguments]:
    """Return the reference that a file names, as the caller wrote it in ``trust`` where they did, and its arguments.

    Raises:
        UserError: neither a library registers the reference nor the caller names it, or an argument is none that a file
            may say to a library's model.
    """
    if not isinstance(reference, str) or not isinstance(arguments, Mapping):
        raise UserError(f"{file}: is damaged (its reference or arguments are none); prune again")
    trusted = (trust,) if isinstance(trust, str) else trust
    named = next((spelling for spelling in trusted if _spelled(spelling) == _spelled(reference)), None)
    kind, _, name = reference.partition(":")
    registered = kind in LIBRARIES and _registers(kind, name)
    if named is None and not registered:
        raise UserError(
            f"{file}: says that {_short(reference)} makes the model, and a file never chooses code; if you know what "
            f"that does, say so yourself: load({str(file.parent)!r}, trust={_short(reference)})"
        )
    if kind in LIBRARIES:
        return named or reference, _checked(kind, name if registered else None, arguments, file)
    return named or reference, arguments


@contextmanager
def at_most(size: int, file: Path) -> Iterator[None]:
    """Refuse to build, in the meantime, a module whose tensors take more than ``size`` bytes.

    They are counted before they are filled, so that no memory is taken.

    Raises:
        UserError: they take more.
    """
    total = 0

    def count(module: nn.Module, name: str, tensor: Any) -> None:
        nonlocal total
        if tensor is None or is_lazy(tensor):
            return
        total += max(_OBJECT_BYTES, tensor.numel() * tensor.element_size())
        if total > size:
            raise UserError(
                f"{file}: its arguments make a model of more than {size / 2**30:.1f} GiB, far from what its weights "
                "hold; it is damaged"
            )

    hooks = (
        registration.register_module_parameter_registration_hook(count),
        registration.register_module_buffer_registration_hook(count),
    )
    with hooked(hooks):
        yield


def _spelled(reference: str) -> tuple[str, str]:
    """Spell a reference in one way; a file may be written in several."""
    place, _, name = reference.rpartition(":")
    return (os.path.abspath(os.path.expanduser(place)) if place.endswith(".py") else place), name


def _registers(kind: str, name: str) -> bool:
    library = package(kind)
    if kind == "timm":
        return name in library.list_models() or name in library.list_models(pretrained=True)
    if kind == "torchvision":
        return name in library.models.list_models()
    return name in library.CONFIG_MAPPING and library.CONFIG_MAPPING[name].__module__.startswith("transformers.")


def _checked(kind: str, name: str | None, arguments: Arguments, file: Path) -> Arguments:
    """Return arguments that the architecture has, and that are plain; a model that is not registered takes none."""
    checked = {key: value for key, value in arguments.items() if key not in _DESCRIPTIVE}
    allowed: Arguments = {} if name is None else _architecture(kind, name)
    for key, value in checked.items():
        why = _objection(key, value, allowed)
        if why:
            raise UserError(
                f"{file}: arguments of {kind}:{name}: {why}; to build such a model, name a function of your own that "
                f'makes it: load({str(file.parent)!r}, "./file.py:function")'
            )
    if kind == "torchvision" and name is not None:
        # Some fetch weights of a part unless they are told not to.
        checked |= {key: None for key in OF_WEIGHTS[kind] if key in allowed}
    return checked


def _architecture(kind: str, name: str) -> Arguments:
    """Return what a registered architecture takes, with its defaults where they tell more.

    Arguments of the classes that make it count, not those of what fetches, reads or wraps them.
    """
    library = package(kind)
    if kind == "transformers":
        family = library.CONFIG_MAPPING[name]
        return {**dict.fromkeys(inspect.signature(family.__init__).parameters), **family().to_dict()}
    of_timm = kind == "timm"
    function = library.model_entrypoint(name.split(".")[0]) if of_timm else library.models.get_model_builder(name)
    home = function.__module__
    classes = (value for value in list(vars(sys.modules[home]).values()) if isinstance(value, type))
    makers = [kind.__init__ for kind in classes if issubclass(kind, nn.Module) and kind.__module__ == home]
    makers += [] if of_timm else [function]
    names = (name for maker in makers for name in inspect.signature(maker).parameters)
    return dict.fromkeys(name for name in names if name not in ("self", "args", "kwargs"))


def _objection(key: Any, value: Any, allowed: Arguments, depth: int = 0) -> str:
    """Say what keeps an argument from being one that a file may set, and a plain one; nothing where it is."""
    if key not in allowed or (depth == 0 and key in _OF_WEIGHTS):
        return f"{_short(key)} is none that a file may set"
    if value == allowed[key] or (key in _LABELS and _is_labels(value)):
        return ""
    if isinstance(value, Mapping) and depth < _DEEPEST:
        inner = allowed[key] if isinstance(allowed[key], Mapping) else {}
        inside = dict.fromkeys(_ROTATION.split()) | dict(inner)
        return next(filter(None, (_objection(name, value[name], inside, depth + 1) for name in value)), "")
    why = _not_plain(value) or _too_wide(key, value)
    return why and f"{key}={_short(value)} {why}"


def _too_wide(key: Any, value: Any) -> str:
    """Say that a picture or a window of attention is larger than any that an architecture is known to need."""
    word = str(key).lower()
    most = _LARGEST_WINDOW if "window_size" in word else _LARGEST_SIDE if "image" in word or "img" in word else _LARGEST
    sides = value if isinstance(value, list) else [value]
    wide = [side for side in sides if isinstance(side, int) and not isinstance(side, bool) and side > most]
    return f"is beyond {most}" if wide else ""


def _not_plain(value: Any, depth: int = 0) -> str:
    if value is None or isinstance(value, bool | float):
        return ""
    if isinstance(value, int):
        return "" if abs(value) <= _LARGEST else f"is beyond {_LARGEST}"
    if isinstance(value, str):
        is_listed = value in _WORDS.split() or (value.startswith("stage") and value[5:].isdecimal())
        return "" if is_listed else "is a word that no architecture is known to need"
    if isinstance(value, list) and depth < _DEEPEST and len(value) <= _LONGEST:
        return next(filter(None, (_not_plain(entry, depth + 1) for entry in value)), "")
    return "is neither a number, nor a word, nor a list of them"


def _is_labels(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(label, str | int) for label in value.values())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
