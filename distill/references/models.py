"""One way to build a model: from a reference, from a function that makes it, or from the module itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from distill.errors import UserError
from distill.references.functions import call_user, cause, label, load_reference
from distill.references.libraries import LIBRARIES, OF_TASK, OF_WEIGHTS, Arguments, require_name
from distill.references.objects import PREFIX, held_object
from distill.references.unwrapping import plain_copy, require_plain, unwrapped
from distill.wording import did_you_mean, nearest_names

if TYPE_CHECKING:
    from torch import nn

FORMS = "timm:NAME, torchvision:NAME, transformers:NAME, package.module:function or ./file.py:function"


def build(
    reference: str | nn.Module | Callable[..., Any],
    arguments: Arguments | None = None,
    *,
    field: str = "",
    builtin: Mapping[str, Callable[..., Any]] | None = None,
    facts: Arguments | None = None,
    seed: int | None = None,
    callables: bool = False,
) -> nn.Module:
    """Build a model.

    Args:
        reference: what makes it; a function is called, and a module is copied.
        arguments: the function's keywords.
        field: the configuration's field or the option, for messages.
        builtin: functions by name, for references without a colon.
        facts: what the task knows (``classes``, ``channels``, …); given to parameters of that name which ``arguments``
            leaves out.
        seed: of the weights.
        callables: whether a function of tensors will do in place of a module, and a model is taken as it is.

    Raises:
        UserError: there is no such package, file or function, it fails, or it returns no module that can be used.
    """
    import torch

    subject = label(reference, field)
    value: Any = reference
    if isinstance(reference, str) and reference.startswith(PREFIX):
        value = held_object(reference, subject)
    if isinstance(value, torch.nn.Module):  # a run builds it again for every stage, and changes what it built
        require_plain(value, subject)
        copied: nn.Module = call_user(plain_copy, f"{subject}: copying it", value)
        return copied
    factory = _factory(reference, subject, field, builtin or {})
    keywords = {**_from_task(reference, factory, facts or {}), **(arguments or {})}
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model: nn.Module = _called(factory, keywords, subject)
    if callables and callable(model):
        return model
    if not isinstance(model, torch.nn.Module):
        raise UserError(f"{subject}: returns {_no_module(model)}")
    require_plain(model, subject)
    # What inference_mode made cannot be trained; a copy can.
    return plain_copy(model) if any(value.is_inference() for value in model.parameters()) else unwrapped(model)


def _no_module(value: Any) -> str:
    """Say what a function returned in place of a module, and how to mend it."""
    import torch

    kind, must = type(value).__name__, "it must return a torch.nn.Module"
    if isinstance(value, type):
        return f"the class {value.__name__}; {must}, such as {value.__name__}()"
    if isinstance(value, torch.export.ExportedProgram):
        return f"{kind}, whose layers are fixed; {must}: the one that it was made from"
    if isinstance(value, tuple | list) and any(isinstance(part, torch.nn.Module) for part in value):
        return f"{kind}; {must}: the one in it"
    if isinstance(value, Mapping) and any(isinstance(part, torch.Tensor) for part in value.values()):
        return f"{kind} of tensors; {must}, which loads them with load_state_dict"
    return f"{kind}; {must}" + ("; a function of tensors has no layers to change" if callable(value) else "")


def _called(factory: Callable[..., Any], keywords: Arguments, subject: str) -> Any:
    try:
        return factory(**keywords)
    except UserError as error:
        raise UserError(f"{subject}: {error}") from error
    except (Exception, SystemExit) as error:  # it runs whatever the user wrote
        call = ", ".join(f"{key}={value!r}" for key, value in keywords.items()) or "no arguments"
        raise UserError(f"{subject}: called with {call[:200]} it raised {cause(error)}") from error


def recipe(reference: str, arguments: Arguments, model: nn.Module) -> tuple[str, Arguments]:
    """Return the reference and arguments that build such a model again without its first weights.

    One of transformers is described by its whole configuration, so that nothing has to be fetched.
    """
    kind = reference.partition(":")[0]
    if kind == "transformers":
        config: Any = model.config
        return f"transformers:{config.model_type}", dict(config.to_diff_dict())
    return reference, {key: value for key, value in arguments.items() if key not in OF_WEIGHTS.get(kind, ())}


def require_storable(model: nn.Module, reference: object, field: str = "") -> None:
    """Refuse what safetensors cannot keep.

    Raises:
        UserError: the model has a state that is no tensor.
    """
    import torch

    subject, kind = label(reference, field), type(model).__name__
    state = model.state_dict().items()
    strange = [f"{name} is a {type(value).__name__}" for name, value in state if not isinstance(value, torch.Tensor)]
    if strange:
        raise UserError(
            f"{subject}: the state of {kind} holds more than tensors ({strange[0]}), which only a pickle could keep; "
            "make it an argument of the factory"
        )


def require_known(
    reference: str, arguments: Arguments, *, field: str, builtin: Mapping[str, Callable[..., Any]]
) -> None:
    """Find out, without building it, whether there is such a model, and whether it takes these arguments.

    Raises:
        UserError: there is no such package, file or function, or it has no parameter of a name.
    """
    subject = label(reference, field)
    kind, _, name = reference.partition(":")
    if kind in LIBRARIES and name:
        try:
            require_name(kind, name)
        except UserError as error:
            raise UserError(f"{subject}: {error}") from error
        return
    parameters = _parameters(_factory(reference, subject, field, builtin))
    if parameters is None or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    unknown = [argument for argument in arguments if argument not in parameters]
    if unknown:
        raise UserError(f"{subject}: has no parameter {unknown[0]!r}{did_you_mean(unknown[0], parameters)}")


def _factory(
    reference: str | Callable[..., Any], subject: str, field: str, builtin: Mapping[str, Callable[..., Any]]
) -> Callable[..., Any]:
    if isinstance(reference, str):
        kind, colon, name = reference.partition(":")
        if not colon and reference in builtin:
            return builtin[reference]
        if not colon or not kind or not name:
            near = nearest_names(reference, builtin, 1)
            hint = f"; did you mean {near[0]}?" if near else "."
            names = f" Built in: {', '.join(builtin)}; or" if builtin else " Write"
            raise UserError(f"{subject}: no such model{hint}{names} {FORMS}")
        if kind in LIBRARIES:
            return partial(LIBRARIES[kind], name)
    return load_reference(reference, field=field)


def _from_task(reference: object, factory: Callable[..., Any], facts: Arguments) -> Arguments:
    """Return the arguments that a task's facts settle: by the library's names for them, or a function's parameters."""
    kind = reference.partition(":")[0] if isinstance(reference, str) else ""
    if kind in OF_TASK:
        return {name: facts[fact] for name, fact in OF_TASK[kind].items() if fact in facts}
    return {name: facts[name] for name in _parameters(factory) or () if name in facts}


def _parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError):  # built in, or without a signature
        return None
