"""The text of a table's file: what packs it and how its characters are coded is told by its first bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from distill.errors import UserError

PACKED = (".gz", ".bz2", ".xz", ".zip")
_LONGEST_LINE, _BLOCK = 1 << 27, 1 << 20
_GROWTH, _SMALL = 100, 1 << 28
"""Unpacked, a file has at most so many times its bytes, or so many bytes: more than tables have, less than a bomb."""
_DAMAGED = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile, NotImplementedError)
_OTHER_KINDS = {
    b"\x28\xb5\x2f\xfd": ("packed by zstd", "unpack it with unzstd"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it"),
    b"PAR1": ("a Parquet file", "write it as CSV, as pandas.read_parquet(path).to_csv(name, index=False) does"),
    b"ARROW1": ("an Arrow file", "write it as CSV, as pandas.read_feather(path).to_csv(name, index=False) does"),
    b"\xd0\xcf\x11\xe0": ("an Excel workbook", "save it as CSV"),
    b"SQLite format 3": ("a database", "export the table as CSV"),
    b"\x93NUMPY": ("an .npy array", "give the rows through a function: data.source: ./file.py:function"),
}


class TableText:
    """The lines of a table's file, unpacked and decoded as they are read.

    gzip, bzip2, xz, and zip of one file. UTF-8, or UTF-16 and UTF-32 by their byte order mark or by their zero bytes.

    Raises:
        UserError: the file is of another kind, damaged, cut off, grows beyond measure, or has a line without an end.
        OSError, UnicodeError: it cannot be read, or is not coded as it begins.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._explained(), self._unpacked() as data:
            self.encoding = json.detect_encoding(data.read(8))
            limit = max(_SMALL, _GROWTH * path.stat().st_size)
            while data.read(_BLOCK):
                if data.tell() > limit:
                    raise UserError(
                        f"{path}: unpacks to more than {limit >> 20} MiB, {_GROWTH} times its size or more; unpack it "
                        "if that is right, and give the file itself"
                    )

    def lines(self) -> Generator[str, None, None]:
        """Yield the file's lines from its start."""
        with self._explained(), self._unpacked() as data:
            text = io.TextIOWrapper(data, self.encoding, newline="")
            number = 0
            while line := text.readline(_LONGEST_LINE):
                number += 1
                if len(line) == _LONGEST_LINE:
                    raise UserError(
                        f"{self.path} line {number}: is longer than {_LONGEST_LINE:,} characters; no table is"
                    )
                yield line

    def undecodable_line(self) -> str:
        """Return " line N" of the first that is not UTF-8."""
        with self._explained(), self._unpacked() as data:
            for number, line in enumerate(data, start=1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError:
                    return f" line {number}"
        return ""

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except _DAMAGED as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.path}: is damaged or cut off ({reason}); pack it again, or unpack it") from error

    @contextmanager
    def _unpacked(self) -> Iterator[IO[bytes]]:
        with self.path.open("rb") as file:
            start = file.read(16)
            file.seek(0)
            for magic, (kind, mend) in _OTHER_KINDS.items():
                if start.startswith(magic):
                    raise UserError(f"{self.path}: is {kind}, not a table of text; {mend}")
            if start.startswith(b"PK\x03\x04"):
                with zipfile.ZipFile(file) as archive, self._member(archive) as data:
                    yield data
                return
            opened = next((call for magic, call in _OPENERS.items() if start.startswith(magic)), None)
            with file if opened is None else opened(file) as data:
                yield data

    def _member(self, archive: zipfile.ZipFile) -> IO[bytes]:
        names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
        if "[Content_Types].xml" in names:
            raise UserError(f"{self.path}: is an Excel workbook, not a table of text; save it as CSV")
        names = [name for name in names if not name.startswith("__MACOSX/")]
        if len(names) != 1:
            raise UserError(f"{self.path}: holds {len(names)} files; unpack it, and name the one that holds the table")
        try:
            return archive.open(names[0])
        except RuntimeError as error:  # it has a password
            raise UserError(f"{self.path}: cannot be unpacked ({error}); unpack it") from error


_OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
