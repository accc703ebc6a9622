"""Which folders of pictures are splits and classes, and which files in them are pictures."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distill.errors import UserError
from distill.tasks.base import SPLITS
from distill.tasks.splits import places_of_splits, split_named
from distill.wording import did_you_mean, first_of

EXTENSIONS = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".ppm", ".pgm", ".pnm", ".tif", ".tiff", ".webp",
)  # fmt: skip
# What file managers, archives and network drives leave behind; names with a dot in front are hidden as well.
_HIDDEN = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information"})


Files = list[tuple[Path, int]]
"""The pictures of one split, each with its class number."""


def find_pictures(root: Path) -> tuple[list[str], dict[str, Files], list[str]]:
    """Find the pictures below ``root/<class>`` or ``root/<split>/<class>``, each file once, however often it is linked.

    Hidden files and folders are none. Links are followed, but not to a folder that is read anyway or lies above.
    Returns the classes, the files of each split that the folder came with, and warnings.

    Raises:
        UserError: no such folder, no classes, a class without pictures, or folders that can be read in two ways.
    """
    warnings: list[str] = []
    homes = _split_folders(root, warnings)
    labels = _classes(homes["train"])
    walk = _Walk(root)
    for split in homes:
        walk.add_classes(split, homes[split], labels)
    files = {split: walk.files(split, homes[split], labels) for split in homes}
    return labels, files, [*warnings, *walk.warnings(), *_split_inside_classes(homes["train"], labels)]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _HIDDEN


def _is_picture(name: str) -> bool:
    return not _is_hidden(name) and name.lower().endswith(EXTENSIONS)


def _subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder that are not hidden, sorted by name."""
    return sorted(entry for entry in _entries(folder) if entry.is_dir() and not _is_hidden(entry.name))


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from error


def _loose(folder: Path) -> list[str]:
    """Return the names of the pictures that lie in a folder directly."""
    return sorted(entry.name for entry in _entries(folder) if _is_picture(entry.name) and not entry.is_dir())


def _holds_pictures(folder: Path) -> bool:
    return any(_is_picture(name) for _, _, names in os.walk(folder) for name in names)


def _split_folders(root: Path, warnings: list[str]) -> dict[str, Path]:
    """Return the folder of each split that the data came with; the root itself as train if it has none."""
    if not root.is_dir():
        problem = "is a file" if root.exists() else "does not exist"
        near = [place.name for place in sorted(root.parent.iterdir()) if place.is_dir()] if root.parent.is_dir() else []
        hint = did_you_mean(root.name, near)
        raise UserError(f"data.path={root}: {problem}; give a folder with one folder a class{hint}")
    folders = {folder.name: folder for folder in _subfolders(root)}
    splits = places_of_splits(root, folders.items(), "keep one, or rename it")
    if not splits:
        return {"train": root}
    if "train" not in splits:
        raise UserError(f"{root}: has {first_of(home.name for home in splits.values())} but no train folder; add it")
    unused = [name for name, folder in folders.items() if not split_named(name) and _holds_pictures(folder)]
    train = splits["train"].name
    if unused and len(splits) == 1:
        if not _subfolders(splits["train"]):  # trains and cars, not training
            warnings.append(f"{root / train} is a class here: it holds no folders, and lies beside {first_of(unused)}")
            return {"train": root}
        raise UserError(
            f"{root}: {train} can be a split or a class beside {first_of(unused)}; rename it, or set data.path to it"
        )
    if unused:
        warnings.append(f"{root}: pictures in {first_of(unused)} are not used, as they lie beside {train}")
    return {split: splits[split] for split in SPLITS if split in splits}


def _classes(home: Path) -> list[str]:
    # Sorted as text, as torchvision's ImageFolder does: a model that was trained there has its classes in this order.
    labels = [folder.name for folder in _subfolders(home)]
    if not labels:
        loose = _loose(home)
        content = f"images lie in it directly ({first_of(loose, 2)})" if loose else "it holds no folders"
        raise UserError(f"{home}: {content}; expected one folder a class: {home.name}/<class>/*.png")
    if len(labels) == 1:
        raise UserError(
            f"{home}: has the one class {labels[0]!r}; a classifier needs at least two (if the classes lie in it, set "
            f"data.path to {home / labels[0]})"
        )
    for label in labels:
        try:
            label.encode()
        except UnicodeEncodeError:
            raise UserError(f"{home}: the folder name {os.fsencode(label)!r} is not UTF-8; rename it") from None
    return labels


def _split_inside_classes(train: Path, labels: Sequence[str]) -> list[str]:
    """Warn of splits that lie in the classes, where they should be the other way round."""
    inside = {label: [folder.name for folder in _subfolders(train / label)] for label in labels}
    for label, folders in inside.items():
        names = list(filter(split_named, folders))
        if names:
            return [
                f"{train / label}: the folders {first_of(names)} in it are taken together; for splits of your "
                f"own write {names[0]}/{label}"
            ]
    shared = sorted(set.intersection(*map(set, inside.values())))
    if len(shared) < 2 or any(_loose(train / label) for label in labels):
        return []
    return [
        f"{train}: the classes {first_of(labels)} all hold the folders {first_of(shared)}; if those are the classes "
        "and these are splits, name them train, validation and test"
    ]


@dataclass
class _Walk:
    """A walk over all classes of all splits that takes each file once: first what lies there, then what links lead to.

    In that order a link from one class into another takes nothing away from it.
    """

    root: Path
    folders: dict[str, Path] = field(default_factory=dict)
    pictures: dict[tuple[str, int], list[Path]] = field(default_factory=dict)
    visited: set[str] = field(default_factory=set)
    links: deque[tuple[tuple[str, int], Path]] = field(default_factory=deque)
    again: list[Path] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)
    loose: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.above = Path(os.path.realpath(self.root))

    def add_classes(self, split: str, home: Path, labels: Sequence[str]) -> None:
        """Take in the classes' own files; a split may lack a class."""
        self.folders.setdefault(os.path.realpath(home), home)
        self.loose += [home / name for name in _loose(home)]
        folders = _subfolders(home)
        for folder in folders:
            if folder.name not in labels:
                raise UserError(f"{folder}: no such class in train{did_you_mean(folder.name, labels)}")
            before = self.folders.setdefault(os.path.realpath(folder), folder)
            if before != folder:
                raise UserError(f"{folder}: is a link to {before}, which is read anyway; remove it")
        for folder in folders:
            of_class = split, labels.index(folder.name)
            self.pictures[of_class] = []
            self._read(of_class, folder)

    def files(self, split: str, home: Path, labels: Sequence[str]) -> Files:
        """Return a split's pictures, sorted within each class, after following all links.

        Raises:
            UserError: a class, or the split, holds no pictures.
        """
        while self.links:
            self._follow(*self.links.popleft())
        # A class that a split lacks is no error here: the splits' check warns of it.
        of_class = {number: paths for (name, number), paths in self.pictures.items() if name == split}
        for number, paths in of_class.items():
            if not paths:
                raise UserError(
                    f"{home / labels[number]}: holds no images ({', '.join(EXTENSIONS[:3])}, …); add some or remove "
                    "the folder"
                )
        if not of_class:
            raise UserError(f"{home}: holds no images; expected one folder a class")
        return [(path, number) for number, paths in of_class.items() for path in sorted(paths)]

    def warnings(self) -> Iterator[str]:
        """Say what was left out."""
        if self.again:
            yield (
                f"{len(self.again)} link(s) lead to what is read anyway, or to folders above; each image counts "
                f"once: {first_of(map(str, self.again), 2)}"
            )
        if self.other:
            kinds = first_of(f"{count} {kind}" for kind, count in self.other.most_common())
            yield f"{self.other.total()} file(s) in the classes are no images by their names and were left out: {kinds}"
        if self.loose:
            yield f"{len(self.loose)} image(s) lie in no class and were left out: {first_of(map(str, self.loose), 2)}"

    def _read(self, home: tuple[str, int], folder: Path) -> None:
        """Take in the files of a folder and of those below it, and put links aside."""
        real = os.path.realpath(folder)
        for entry in sorted(_entries(folder)):
            if _is_hidden(entry.name):
                continue
            if entry.is_symlink():
                self.links.append((home, entry))
            elif entry.is_dir():
                if self._is_new(os.path.join(real, entry.name), entry):
                    self._read(home, entry)
            else:
                self._take(home, entry, os.path.join(real, entry.name))

    def _follow(self, home: tuple[str, int], link: Path) -> None:
        real = os.path.realpath(link)
        if not link.is_dir():
            self._take(home, link, real)
        elif self.above.is_relative_to(real):
            self.again.append(link)
        elif self._is_new(real, link):
            self._read(home, link)

    def _is_new(self, real: str, folder: Path) -> bool:
        if self.folders.setdefault(real, folder) != folder:
            self.again.append(folder)
            return False
        return True

    def _take(self, home: tuple[str, int], path: Path, real: str) -> None:
        # A link that leads nowhere is taken as well: reading it tells.
        if path.exists() and not path.is_file():
            self.other["special"] += 1
        elif not _is_picture(path.name):
            self.other[path.suffix.lower() or "without a suffix"] += 1
        elif real in self.visited:
            self.again.append(path)
        else:
            self.visited.add(real)
            self.pictures[home].append(path)
