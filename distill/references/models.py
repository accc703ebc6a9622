"""One way to build a model: from a reference, from a function that makes it, or from the module itself."""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from distill.errors import UserError
from distill.references.libraries import LIBRARIES, OF_TASK, OF_WEIGHTS, Arguments
from distill.references.loading import call_user, cause, label, load_reference
from distill.references.objects import PREFIX, held_object

if TYPE_CHECKING:
    from torch import nn

FORMS = "timm:NAME, torchvision:NAME, transformers:NAME, package.module:function or ./file.py:function"


def build(
    reference: str | Callable[..., Any],
    arguments: Arguments | None = None,
    *,
    field: str = "",
    builtin: Mapping[str, Callable[..., Any]] | None = None,
    facts: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Build a model.

    Args:
        reference: what makes it; a function is called, and a module is taken as it is.
        arguments: the function's keywords.
        field: the configuration's field or the option, for messages.
        builtin: functions by name, for references without a colon.
        facts: what the task knows (``classes``, ``channels``, …); given to parameters of that name which ``arguments``
            leaves out.
        seed: of the weights.

    Raises:
        UserError: there is no such package, file or function, it fails, or it returns no module.
    """
    from torch import nn

    model = make(reference, arguments, field=field, builtin=builtin, facts=facts, seed=seed)
    if not isinstance(model, nn.Module):
        raise returns_another(model, reference, field)
    return model


def make(
    reference: str | Callable[..., Any],
    arguments: Arguments | None = None,
    *,
    field: str = "",
    builtin: Mapping[str, Callable[..., Any]] | None = None,
    facts: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> Any:
    """Return what a reference makes, as ``build`` does, whatever it is."""
    import torch

    where = label(reference, field)
    if isinstance(reference, torch.nn.Module):
        return reference
    if isinstance(reference, str) and reference.startswith(PREFIX):
        value = held_object(reference, where)
        if isinstance(value, torch.nn.Module):  # a run builds it again for every stage, and changes what it built
            return call_user(copy.deepcopy, f"{where}: copying it", value)
    factory = _factory(reference, where, field, builtin or {})
    keywords = {**_from_task(reference, factory, facts or {}), **(arguments or {})}
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        try:
            return factory(**keywords)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        except (Exception, SystemExit) as error:  # it runs whatever the user wrote
            call = ", ".join(f"{key}={value!r}" for key, value in keywords.items()) or "no arguments"
            raise UserError(f"{where}: called with {call[:200]} it raised {cause(error)}") from error


def returns_another(model: object, reference: object, field: str = "") -> UserError:
    """Return the error that what a reference made is no module."""
    kind = type(model).__name__
    return UserError(f"{label(reference, field)}: returns {kind}; it must return a torch.nn.Module")


def recipe(reference: str, arguments: Arguments, model: nn.Module) -> tuple[str, dict[str, Any]]:
    """Return the reference and arguments that build such a model again without its first weights.

    One of transformers is described by its whole configuration, so that nothing has to be fetched.
    """
    kind = reference.partition(":")[0]
    if kind == "transformers":
        config: Any = model.config
        return f"transformers:{config.model_type}", dict(config.to_diff_dict())
    return reference, {key: value for key, value in arguments.items() if key not in OF_WEIGHTS.get(kind, ())}


def require_storable(model: nn.Module, reference: object, field: str = "") -> None:
    """Refuse what safetensors cannot keep, what has no values yet, and what cannot be changed.

    Raises:
        UserError: the model is TorchScript, or has lazy parameters or a state that is no tensor.
    """
    import torch

    where, kind = label(reference, field), type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError(f"{where}: is TorchScript, whose layers are fixed; name the nn.Module that it was made from")
    lazy = [name for name, value in model.named_parameters() if torch.nn.parameter.is_lazy(value)]
    if lazy:
        raise UserError(
            f"{where}: {kind} has uninitialized parameters ({lazy[0]}); give lazy layers their sizes, or call the "
            "model once in its factory"
        )
    state = model.state_dict().items()
    strange = [f"{name} is a {type(value).__name__}" for name, value in state if not isinstance(value, torch.Tensor)]
    if strange:
        raise UserError(
            f"{where}: the state of {kind} holds more than tensors ({strange[0]}), which only a pickle could keep; "
            "make it an argument of the factory"
        )


def _factory(
    reference: str | Callable[..., Any], where: str, field: str, builtin: Mapping[str, Callable[..., Any]]
) -> Callable[..., Any]:
    if isinstance(reference, str):
        kind, colon, name = reference.partition(":")
        if not colon and reference in builtin:
            return builtin[reference]
        if not colon or not kind or not name:
            near = difflib.get_close_matches(reference, builtin, 1)
            hint = f"; did you mean {near[0]}?" if near else "."
            names = f" Built in: {', '.join(builtin)}; or" if builtin else " Write"
            raise UserError(f"{where}: no such model{hint}{names} {FORMS}")
        if kind in LIBRARIES:
            return partial(_of_library, LIBRARIES[kind], name)
    return load_reference(reference, field=field)


def _of_library(library: Callable[[str, Arguments], Any], name: str, /, **arguments: Any) -> Any:
    return library(name, arguments)


def _from_task(reference: object, factory: Callable[..., Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that a task's facts settle: by the library's names for them, or a function's parameters."""
    kind = reference.partition(":")[0] if isinstance(reference, str) else ""
    if kind in OF_TASK:
        return {name: facts[fact] for name, fact in OF_TASK[kind].items() if fact in facts}
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    return {name: facts[name] for name in parameters if name in facts}
