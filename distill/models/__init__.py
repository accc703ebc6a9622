"""Models by name: the built-in ones, and references to everybody else's.

A reference is a built-in name, ``timm:NAME``, ``torchvision:NAME``, ``package.module:function`` or
``./file.py:function``.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from distill.errors import UserError
from distill.models.depthwise import DepthwiseCNN
from distill.models.mlp import MLP
from distill.models.resnet import ResNet
from distill.references.loading import cause, load_reference
from distill.state import load_state

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet": ResNet,
    "resnet8": partial(ResNet, blocks=(1, 1, 1)),
    "resnet20": partial(ResNet, blocks=(3, 3, 3)),
    "resnet56": partial(ResNet, blocks=(9, 9, 9)),
    "wide-resnet20": partial(ResNet, blocks=(3, 3, 3), widths=(64, 128, 256)),
    "depthwise": DepthwiseCNN,
    "mlp": MLP,
}

_VISION_FIX = (
    "the installed torchvision was built for another torch; install the pair that belongs together, for a CPU build: "
    "pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu"
)


def build(reference: str, args: Mapping[str, Any], facts: Mapping[str, Any], *, field: str, seed: int) -> nn.Module:
    """Build a model with freshly drawn weights.

    Args:
        reference: see the module's own words.
        args: keyword arguments from the configuration.
        facts: what the task knows (``classes``, ``channels``, …); given to parameters of that name which ``args``
            leaves out.
        field: the configuration's field, for messages.
        seed: of the weights.

    Raises:
        UserError: no such model, or it refused its arguments.
    """
    factory = _factory(reference, field)
    known = {name: facts[name] for name in _parameters(factory) if name in facts}
    if reference.startswith("timm:"):
        known = {"num_classes": facts["classes"], "in_chans": facts.get("channels", 3)}
    elif reference.startswith("torchvision:"):
        known = {"num_classes": facts["classes"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = factory(**{**known, **args})
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(f"{field}.model={reference!r} with args={dict(args)}: {cause(error)}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{field}.model={reference!r}: returned {type(model).__name__}, must return a torch.nn.Module")
    _require_storable(model, f"{field}.model={reference!r}")
    return model


def _require_storable(model: nn.Module, where: str) -> None:
    """Refuse what safetensors cannot keep, or what has no values yet."""
    kind = type(model).__name__
    lazy = [name for name, value in model.named_parameters() if isinstance(value, UninitializedParameter)]
    if lazy:
        raise UserError(
            f"{where}: {kind} has uninitialized parameters ({lazy[0]}); give lazy layers their sizes, or call the "
            "model once in its factory"
        )
    state = model.state_dict().items()
    apart = [f"{name} is a {type(value).__name__}" for name, value in state if not isinstance(value, Tensor)]
    if apart:
        raise UserError(
            f"{where}: the state of {kind} holds more than tensors ({apart[0]}), which only a pickle could keep; make "
            "it an argument of the factory"
        )


def load_weights(model: nn.Module, path: Path, *, field: str) -> nn.Module:
    """Load a state dict from safetensors, or from a checkpoint that torch reads with ``weights_only=True``.

    A checkpoint may hold the state dict under ``state_dict``, ``model`` or ``model_state_dict``, and its keys may
    carry the ``module.`` of DistributedDataParallel. The model itself is changed and returned.

    Raises:
        UserError: no such file, not weights, or weights of another model.
    """
    where = f"{field}.weights={path}"
    if not path.is_file():
        raise UserError(f"{where}: no such file")
    state = _read_state(path, where)
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state.get(key), dict):
            state = state[key]
    strange = [f"{name} is a {type(value).__name__}" for name, value in state.items() if not isinstance(value, Tensor)]
    strange += [f"{name!r} is no parameter's name" for name in state if not isinstance(name, str)]
    if strange:
        raise UserError(f"{where}: {strange[0]}; must be a state dict, names to tensors, such as model.state_dict()")
    state = {name.removeprefix("module."): value for name, value in state.items()}
    expected = model.state_dict()
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    shapes = [
        f"{name} is {tuple(state[name].shape)}, the model has {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if missing or extra or shapes:
        parts = [
            f"missing: {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}" if missing else "",
            f"unknown: {', '.join(extra[:3])}{' …' if len(extra) > 3 else ''}" if extra else "",
            "; ".join(shapes[:3]),
        ]
        raise UserError(f"{where}: weights of another model ({'; '.join(p for p in parts if p)})")
    bad = [name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        raise UserError(f"{where}: {bad[0]} holds values that are not finite")
    load_state(model, state)
    return model


def _read_state(path: Path, where: str) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{where}: not a safetensors file ({error})") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle that is refused and a broken file raise many types
        raise UserError(
            f"{where}: not a checkpoint of plain tensors, and nothing else is unpickled; save it again with "
            "torch.save(model.state_dict(), path) or as safetensors"
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"{where}: holds {type(state).__name__}, must hold a state dict")
    return state


def _factory(reference: str, field: str) -> Callable[..., nn.Module]:
    if reference.startswith("timm:"):
        return _timm(reference.removeprefix("timm:"), field)
    if reference.startswith("torchvision:"):
        return _torchvision(reference.removeprefix("torchvision:"), field)
    if ":" in reference:
        return load_reference(reference, field=f"{field}.model")
    if reference not in MODELS:
        near = difflib.get_close_matches(reference, MODELS, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UserError(
            f"{field}.model={reference!r}: no such model{hint} Built in: {', '.join(MODELS)}; or timm:NAME, "
            "torchvision:NAME, package.module:function, ./file.py:function"
        )
    return MODELS[reference]


def _timm(name: str, field: str) -> Callable[..., nn.Module]:
    timm = _vision_package("timm", field)
    if name not in timm.list_models() and name.split(".")[0] not in timm.list_models():
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        raise UserError(f"{field}.model='timm:{name}': timm has no such model; near: {', '.join(near) or 'none'}")
    return partial(timm.create_model, name)


def _torchvision(name: str, field: str) -> Callable[..., nn.Module]:
    _vision_package("torchvision", field)
    from torchvision import models

    if name not in models.list_models():
        near = difflib.get_close_matches(name, models.list_models(), 3)
        raise UserError(
            f"{field}.model='torchvision:{name}': torchvision has no such model; near: {', '.join(near) or 'none'}"
        )
    return partial(models.get_model, name)


def _vision_package(name: str, field: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"{field}.model: {error.name} is not installed; pip install timm torchvision") from error
    except (RuntimeError, ImportError, OSError, AttributeError) as error:
        raise UserError(f"{field}.model: {name} does not load ({error}); {_VISION_FIX}") from error


def _parameters(factory: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(factory).parameters)
    except (TypeError, ValueError):
        return []
