"""Whether what a configuration names is there: models, functions and files. Functions are imported for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from distill.errors import UserError
from distill.files import at_home
from distill.models import MODELS
from distill.references.functions import label, load_reference
from distill.references.models import require_known
from distill.tasks import load_task, require_source
from distill.tasks.settings import CsvSettings, ImageFolderSettings
from distill.wording import did_you_mean

if TYPE_CHECKING:
    from distill.config.loading import RunConfig


def unfound(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield the place of what is named and not there, and an error with the mend."""
    for place, require in _named(config):
        try:
            require()
        except UserError as error:
            yield place, str(error)


def _named(config: RunConfig) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the place of everything that is named, and what raises UserError where that is not there."""
    data, weights = config.data, config.teacher.weights
    for section, chosen in config.models.items():
        field = f"{section}.model"
        yield field, partial(require_known, chosen.model, chosen.args, field=field, builtin=MODELS)
    if weights is not None:
        yield "teacher.weights", partial(_require_file, weights, "teacher.weights")
    yield "data.source", partial(require_source, data)
    if data.metric is not None and ":" in data.metric:
        yield "data.metric", partial(load_reference, data.metric, field="data.metric")
    if isinstance(data, CsvSettings | ImageFolderSettings) and not at_home(data.path).exists():
        yield "data.path", partial(load_task, data, seed=config.seed)  # refuses at once
    for interpreter in config.export.load_with if config.export else ():
        yield "export.load_with", partial(_require_file, interpreter, "export.load_with")


def _require_file(path: Path, field: str) -> None:
    if not path.exists():
        neighbours = sorted(file.name for file in path.parent.iterdir()) if path.parent.is_dir() else []
        raise UserError(f"{label(path, field)}: no such file{did_you_mean(path.name, neighbours)}")
    if path.is_dir():
        raise UserError(f"{label(path, field)}: is a folder; name a file")
