"""Functions of the user's: ``pkg.mod:function``, ``./path/file.py:function``, or the function itself."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from distill.documents import MOST_BYTES
from distill.errors import DistillError, UserError
from distill.files import at_home
from distill.references.digest import Digest
from distill.references.imports import files_of_module, imported_files, is_users
from distill.references.objects import PREFIX, held_object
from distill.wording import did_you_mean


def label(reference: object, field: str = "") -> str:
    """Return how messages name a reference: teacher.model='a.py:f', --model a.py:f, or a.py:f without a field."""
    if not isinstance(reference, str | Path):
        reference = getattr(reference, "__name__", type(reference).__name__)
    if not field or field.startswith("-"):
        return f"{field} {reference}".lstrip()
    return f"{field}={reference!r}" if isinstance(reference, str) else f"{field}={reference}"


def load_reference(
    reference: str | Callable[..., Any], *, field: str = "", folder: Path | None = None
) -> Callable[..., Any]:
    """Return the function that ``reference`` names.

    A module is looked for as ``python -m`` does, current folder first. A file is loaded by its path, relative to
    ``folder`` (default: the current folder); its own folder becomes importable, so it may import its neighbours.
    ``field`` is the config's field or the option, for messages.

    Raises:
        UserError: no such file, module or function, or the import raised; the message says which and where.
    """
    subject = label(reference, field)
    if not isinstance(reference, str):
        return _callable(reference, "it", subject)
    if reference.startswith(PREFIX):
        return _callable(held_object(reference, subject), "it", subject)
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name:
        raise UserError(f"{subject}: expected pkg.mod:function or ./path/file.py:function")
    module = _load_file(place, subject, folder) if _is_file(place) else _load_module(place, subject)
    value: Any = module
    for part in name.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            options = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            home = getattr(module, "__file__", place)
            raise UserError(f"{subject}: {home} has no {part!r}{did_you_mean(part, options)}") from None
    return _callable(value, repr(name), subject)


def _callable(value: Any, name: str, subject: str) -> Callable[..., Any]:
    if not callable(value):
        raise UserError(f"{subject}: {name} is a {type(value).__name__}; expected a function")
    return value  # type: ignore[no-any-return]


def call_user(function: Callable[..., Any], subject: str, /, *args: Any, **kwargs: Any) -> Any:
    """Call a function of the user's; what it raises becomes one line that says where in their code.

    Raises:
        UserError: the function raised; ``subject`` opens the message.
    """
    try:
        return function(*args, **kwargs)
    except DistillError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{subject} raised {cause(error)}") from error


def cause(error: BaseException) -> str:
    """Return an exception in one line: its type, the first line of its text, and the user's own file and line."""
    text = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if is_users(frame.filename):
            place = f" ({frame.filename}:{frame.lineno})"
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"


def source_hash(reference: str, *, folder: Path | None = None) -> str:
    """Return a hash of the referenced file and of the user's files that it imports, followed by their import lines.

    Files of the standard library and of installed packages are not followed. A file that cannot be found or parsed
    counts by its name.
    """
    place = reference.rpartition(":")[0]
    if reference.startswith(PREFIX):
        return reference.rpartition("-")[2]
    if _is_file(place):
        start: Path | None = _file_path(place, folder)
        roots = [start.parent] if start else []
    else:
        roots = [Path.cwd()]
        # The text is looked for, not imported: importing has effects, and depends on what is loaded already.
        start = next(iter(files_of_module(place, [*roots, *map(Path, sys.path)])[-1:]), None)
    digest = Digest().add(reference.rpartition(":")[2])
    if start is not None and start.is_file():
        for path in imported_files(start.resolve(), [*roots, *map(Path, sys.path)], is_users):
            digest.add(path.name).add(path.read_bytes())
    return digest.hexdigest()


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place or os.sep in place


def _file_path(place: str, folder: Path | None) -> Path:
    path = at_home(place)
    return path if path.is_absolute() else (folder or Path.cwd()) / path


def _load_file(place: str, subject: str, folder: Path | None) -> ModuleType:
    path = _file_path(place, folder)
    if not path.is_file():
        neighbours = sorted(file.name for file in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise UserError(f"{subject}: no file {path}{did_you_mean(path.name, neighbours)}")
    path = path.resolve()
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"{subject}: {path} is larger than {MOST_BYTES >> 20} MiB, which no Python file is")
    loaded = _already_loaded(path)
    if loaded is not None:
        return loaded
    _put_first(str(path.parent))
    _refuse_taken_neighbours(path, subject)
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{subject}: {path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    # Before the file runs: it may import itself by way of a neighbour, and dataclasses look their module up.
    sys.modules[name] = module
    loader = spec.loader
    try:
        _import(lambda: loader.exec_module(module), subject, str(path))
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _refuse_taken_neighbours(path: Path, subject: str) -> None:
    """Refuse a file that would import another folder's module of the same name in place of its neighbour."""
    for file in imported_files(path, [path.parent], is_users):
        name = file.parent.name if file.name == "__init__.py" else file.stem
        home = file.parent.parent if file.name == "__init__.py" else file.parent
        loaded = sys.modules.get(name)
        if file == path or home != path.parent or loaded is None or name in sys.stdlib_module_names:
            continue
        if not _same(loaded, str(file)):
            raise UserError(
                f"{subject}: it imports {file}, but the name {name!r} is already taken by "
                f"{_file_of(loaded) or 'Python'}; rename the file"
            )


def _load_module(place: str, subject: str) -> ModuleType:
    here = str(Path.cwd())
    _put_first(here)
    top = place.partition(".")[0]
    mine = importlib.machinery.PathFinder.find_spec(top, [here])
    loaded = sys.modules.get(top)
    if mine is not None and mine.origin and loaded is not None and not _same(loaded, mine.origin):
        raise UserError(
            f"{subject}: the name {top!r} is already taken by {_file_of(loaded) or 'Python'}, so "
            f"{mine.origin} cannot be imported; write it as ./path/file.py:function or rename it"
        )
    module = _import(lambda: importlib.import_module(place), subject, place, wanted=place)
    assert isinstance(module, ModuleType)
    return module


def _import(run: Callable[[], Any], subject: str, place: str, wanted: str = "") -> Any:
    try:
        with _as_script(place):
            return run()
    except DistillError:
        raise
    except SystemExit as error:
        raise UserError(
            f"{subject}: importing it raised {cause(error)}; what ends the process belongs below "
            "`if __name__ == '__main__':`"
        ) from error
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if wanted and (wanted == missing or wanted.startswith(missing + ".")):
            raise UserError(
                f"{subject}: no module {missing!r} in {Path.cwd()} or among the installed packages; "
                "start from the folder that holds it, or write ./path/file.py:function"
            ) from None
        raise UserError(f"{subject}: importing it raised {cause(error)}; install {missing!r}") from error
    except Exception as error:
        raise UserError(f"{subject}: importing it raised {cause(error)}") from error


@contextmanager
def _as_script(place: str) -> Iterator[None]:
    """Let a file that is imported see no arguments but its own name, and leave the process as it was.

    It may change the current folder, what signals do, and torch's defaults, as a script does whose process is its own;
    here all paths, and every model, would become others.
    """
    import torch

    arguments, folder = sys.argv, Path.cwd()
    default_type, device, gradients = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
    in_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if in_main else {}
    sys.argv = [place]
    try:
        yield
    finally:
        sys.argv = arguments
        os.chdir(folder)
        torch.set_default_dtype(default_type)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
        torch.set_grad_enabled(gradients)
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _already_loaded(path: Path) -> ModuleType | None:
    # __main__ too would match, but its `if __name__` part has run: load it anew.
    modules = [module for module in list(sys.modules.values()) if getattr(module, "__name__", "") != "__main__"]
    same_name = [module for module in modules if Path(_file_of(module) or "").name == path.name]
    return next((module for module in same_name if _same(module, str(path))), None)


def _module_name(path: Path) -> str:
    """Return the file's plain name, so that a neighbour's import of it finds the same module, if nobody else has it."""
    name = path.stem
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != path.parent]
    in_use = name in sys.modules or name in sys.stdlib_module_names
    if in_use or importlib.machinery.PathFinder.find_spec(name, elsewhere) is not None:
        return f"_user_{Digest().add(str(path)).hexdigest()[:12]}_{name}"
    return name


def _put_first(folder: str) -> None:
    if folder in sys.path:
        sys.path.remove(folder)
    sys.path.insert(0, folder)
    importlib.invalidate_caches()


def _same(module: ModuleType, origin: str) -> bool:
    file = _file_of(module)
    return file is not None and Path(file).resolve() == Path(origin).resolve()


def _file_of(module: ModuleType) -> str | None:
    # Not getattr: a module that loads itself lazily would start to.
    file: str | None = vars(module).get("__file__") if hasattr(module, "__dict__") else None
    return file
