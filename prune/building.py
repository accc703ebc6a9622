"""Models by reference, without the rest of the product: what a pruned model is rebuilt from in a fresh process.

A reference is ``timm:NAME``, ``torchvision:NAME``, ``transformers:NAME`` (a family such as distilbert, or a name on the
hub), ``package.module:function`` or ``./file.py:function``. What it names is called with keyword arguments.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from distill.errors import UserError
from distill.prune.modules import reason

Arguments = Mapping[str, Any]
# What only decides which weights a model begins with; a rebuilt one gets its own.
OF_WEIGHTS = {"timm": ("pretrained",), "torchvision": ("weights", "weights_backbone"), "transformers": ("pretrained",)}
_OTHER_TORCH = (
    "the installed torchvision was built for another torch; install the pair that belongs together, for a CPU build: "
    "pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu"
)


def build(reference: str, arguments: Arguments | None = None) -> nn.Module:
    """Build the model that a reference names, with ``arguments`` as keywords.

    Raises:
        UserError: there is no such package, file or function, it fails, or it returns no module.
    """
    kind, colon, name = reference.partition(":")
    if not colon or not kind or not name:
        raise UserError(
            f"{reference}: names no model; write timm:NAME, torchvision:NAME, transformers:NAME, "
            "package.module:function or ./file.py:function"
        )
    make = LIBRARIES.get(kind)
    given = dict(arguments or {})
    if make is None:
        factory = _function(reference)
        made: Any = _called(lambda: factory(**given), reference, given)
    else:
        made = _called(lambda: make(name, given), reference, given)
    if not isinstance(made, nn.Module):
        raise UserError(f"{reference}: returns {type(made).__name__}; it must return a torch.nn.Module")
    return made


def recipe(reference: str, arguments: Arguments, model: nn.Module) -> tuple[str, dict[str, Any]]:
    """Return the reference and arguments that build such a model again without its first weights.

    One of transformers is described by its whole configuration, so that nothing has to be fetched.
    """
    kind = reference.partition(":")[0]
    if kind == "transformers":
        config: Any = model.config
        return f"transformers:{config.model_type}", dict(config.to_diff_dict())
    return reference, {key: value for key, value in arguments.items() if key not in OF_WEIGHTS.get(kind, ())}


def _timm(name: str, arguments: dict[str, Any]) -> Any:
    timm = package("timm")
    _require(f"timm:{name}", name.split(".")[0], timm.list_models())
    return timm.create_model(name, **arguments)


def _torchvision(name: str, arguments: dict[str, Any]) -> Any:
    models = package("torchvision").models
    _require(f"torchvision:{name}", name, models.list_models())
    return models.get_model(name, **arguments)


def _transformers(name: str, arguments: dict[str, Any]) -> Any:
    """Build a classifier of sequences, or of images where the family has no other."""
    library = package("transformers")
    pretrained = arguments.pop("pretrained", False)
    if name in library.CONFIG_MAPPING:
        fit = {key: value for key, value in arguments.items() if key != "model_type"}
        config = library.AutoConfig.for_model(name, **fit)
    else:
        config = library.AutoConfig.from_pretrained(name, **arguments)
    for mapping, auto in (
        (library.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, library.AutoModelForSequenceClassification),
        (library.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, library.AutoModelForImageClassification),
    ):
        if type(config) in mapping:
            return auto.from_pretrained(name, config=config) if pretrained else auto.from_config(config)
    raise UserError(
        f"transformers:{name}: transformers has no classifier of this family; name a function of your own that makes it"
    )


LIBRARIES: dict[str, Callable[[str, dict[str, Any]], Any]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
}


def package(name: str) -> Any:
    """Import a library of models.

    Raises:
        UserError: it is not installed, or does not load.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; pip install {name}") from error
    except (RuntimeError, ImportError, OSError, AttributeError) as error:
        mend = f"; {_OTHER_TORCH}" if name != "transformers" else ""
        raise UserError(f"{name} does not load ({reason(error)}){mend}") from error


def _require(reference: str, name: str, known: Iterable[str]) -> None:
    names = list(known)
    if name not in names:
        near = ", ".join(difflib.get_close_matches(name, names, 3)) or "none"
        raise UserError(f"{reference}: there is no such model; near: {near}")


def _called(make: Callable[[], Any], reference: str, arguments: Arguments) -> Any:
    try:
        return make()
    except UserError as error:
        raise UserError(str(error) if reference in str(error) else f"{reference}: {error}") from error
    except (Exception, SystemExit) as error:  # it runs whatever the user wrote
        shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
        raise UserError(f"{reference}: called with {shown[:200]} it fails: {_cause(error)}") from error


def _function(reference: str) -> Callable[..., Any]:
    place, _, name = reference.rpartition(":")
    try:
        module = _file(Path(place).expanduser(), reference) if place.endswith(".py") else _module(place)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if place == missing or place.startswith(missing + "."):
            raise UserError(
                f"{reference}: there is no module {missing!r} in this folder or among the installed packages; start "
                "where it is, or write ./path/file.py:function"
            ) from error
        raise UserError(f"{reference}: importing it fails: no module {missing!r}; install it") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{reference}: importing it fails: {_cause(error)}") from error
    found: Any = getattr(module, name, None)
    if not callable(found):
        options = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(name, options, 1)
        hint = f"did you mean {near[0]}?" if near else "name a function that it defines"
        raise UserError(f"{reference}: {place} has no function {name!r}; {hint}")
    return found  # type: ignore[no-any-return]


def _module(place: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    return importlib.import_module(place)


def _file(path: Path, reference: str) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise UserError(f"{reference}: there is no file {path.name} in {path.parent}")
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    loaded = sys.modules.get(path.stem)
    mine = loaded is None or getattr(loaded, "__file__", None) == str(path)
    name = path.stem if mine else f"_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _cause(error: BaseException) -> str:
    """Return an error in one line, with the place where it arose."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({error.filename}:{error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    ours = Path(__file__).resolve()
    where = next((f" ({f.filename}:{f.lineno})" for f in reversed(frames) if Path(f.filename).resolve() != ours), "")
    return f"{reason(error)}{where}"
