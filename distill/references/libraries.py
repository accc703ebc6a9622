"""Models of timm, torchvision and transformers, by their names there."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from distill.errors import UserError
from distill.references.functions import cause
from distill.wording import nearest_names

Arguments = Mapping[str, Any]
# What only decides which weights a model begins with; one that is built again gets its own.
OF_WEIGHTS = {"timm": ("pretrained",), "torchvision": ("weights", "weights_backbone"), "transformers": ("pretrained",)}
OF_TASK = {
    "timm": {"num_classes": "classes", "in_chans": "channels"},
    "torchvision": {"num_classes": "classes"},
    "transformers": {"num_labels": "classes", "num_channels": "channels"},
}
"""By library: which of its arguments is which fact of a task."""
_INSTALL = {"timm": "timm torchvision", "torchvision": "timm torchvision", "transformers": "transformers"}
_OTHER_TORCH = (
    "the installed torchvision was built for another torch; install the pair that belongs together, for a CPU build: "
    "pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu"
)


def package(name: str) -> Any:
    """Import a library of models.

    Raises:
        UserError: it is not installed, or does not load.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; pip install {_INSTALL[name]}") from error
    except (RuntimeError, ImportError, OSError, AttributeError) as error:
        mend = f"; {_OTHER_TORCH}" if name != "transformers" else ""
        raise UserError(f"{name} does not load ({cause(error)}){mend}") from error


def _timm(name: str, /, **arguments: Any) -> Any:
    require_name("timm", name)
    return package("timm").create_model(name, **arguments)


def _torchvision(name: str, /, **arguments: Any) -> Any:
    require_name("torchvision", name)
    return package("torchvision").models.get_model(name, **arguments)


def _transformers(name: str, /, pretrained: bool = False, **settings: Any) -> Any:
    """Build a classifier of sequences, or of images where the family has no other."""
    library = package("transformers")
    if name in library.CONFIG_MAPPING:
        settings.pop("model_type", None)
        config = library.AutoConfig.for_model(name, **settings)
    else:
        try:
            config = library.AutoConfig.from_pretrained(name, **settings)
        except (OSError, ValueError) as error:
            near = _near(name, library.CONFIG_MAPPING)
            raise UserError(
                f"transformers has no such family, folder or name on the hub ({cause(error)}){near}"
            ) from error
    for mapping, auto in (
        (library.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, library.AutoModelForSequenceClassification),
        (library.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, library.AutoModelForImageClassification),
    ):
        if type(config) in mapping:
            return auto.from_pretrained(name, config=config) if pretrained else auto.from_config(config)
    raise UserError("transformers has no classifier of this family; name a function of your own that makes it")


LIBRARIES: dict[str, Callable[..., Any]] = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers}


def require_name(library: str, name: str) -> None:
    """Refuse a model that a library has not, where that can be told: one of transformers may lie on its hub.

    Raises:
        UserError: the library is not installed, does not load, or has no model of this name.
    """
    loaded = package(library)
    if library == "transformers":
        return
    names = loaded.list_models() if library == "timm" else loaded.models.list_models()
    model = name.split(".")[0] if library == "timm" else name
    if model not in names:
        raise UserError(f"{library} has no such model{_near(model, names)}")


def _near(name: str, names: Iterable[str]) -> str:
    return f"; near: {', '.join(nearest_names(name, names, 3)) or 'none'}"
