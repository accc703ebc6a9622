"""Which of the user's files a file imports, read from its text: the same in every process, whatever is loaded."""

from __future__ import annotations

import ast
import site
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_MOST = 500
_OURS = Path(__file__).resolve().parent.parent


def imported_files(start: Path, roots: Sequence[Path], belongs: Callable[[str], bool]) -> list[Path]:
    """Return ``start`` and the files that it imports, directly or not, sorted by path.

    ``roots`` are the folders that imports are looked up in, first match wins; ``belongs(path)`` says whether a file
    is followed. Imports inside functions count; names put together at run time are not seen.
    """
    files: dict[Path, None] = {}
    waiting = [start]
    while waiting and len(files) < _MOST:
        path = waiting.pop()
        if path in files:
            continue
        files[path] = None
        for levels, dotted in _imports(path):
            base = list(path.parents[levels - 1 : levels]) if levels else list(roots)
            waiting += [file for file in files_of_module(dotted, base) if file not in files and belongs(str(file))]
    return sorted(files)


def files_of_module(dotted: str, roots: Sequence[Path]) -> list[Path]:
    """Return the files that importing ``dotted`` runs: each package's __init__ on the way, and the module."""
    parts = [part for part in dotted.split(".") if part]
    for root in roots:
        files = []
        place = root
        for number, part in enumerate(parts):
            package, module = place / part / "__init__.py", place / f"{part}.py"
            if package.is_file():
                files.append(package.resolve())
            elif module.is_file():
                files.append(module.resolve())
                break
            elif not (place / part).is_dir() or number == len(parts) - 1:
                break
            place = place / part
        if files:
            return files
    return []


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (leading dots, dotted name) of every import; ``from a import b`` is a and a.b, as b may be a module."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield 0, alias.name
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield node.level, module
            for alias in node.names:
                yield node.level, f"{module}.{alias.name}" if module else alias.name


def is_users(filename: str) -> bool:
    """Tell whether a file belongs to the user: not to this product, Python or an installed package."""
    if filename.startswith("<"):
        return False
    path = Path(filename).resolve()
    library = {sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    library |= {*site.getsitepackages(), site.getusersitepackages()}
    homes = [_OURS, *(Path(folder).resolve() for folder in library if folder)]
    ours = [(_OURS / name).resolve() for name in ("benchmarks", "export", "prune", "quantize")]
    return not any(path.is_relative_to(home) for home in [*homes, *ours])
