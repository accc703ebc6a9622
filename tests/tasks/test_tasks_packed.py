"""Tables as they are kept: packed, in other codings, damaged, or of another kind; and columns that deserve a word."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.errors import UserError
from distill.tasks import data_settings, load_task
from distill.tasks.table_file import read_table

TEXT = "größe,kind,y\n" + "".join(
    f"{(i * 37 % 101) / 7:.2f},c{i % 3},{'yes' if i * 7919 % 13 > 5 else 'no'}\n" for i in range(200)
)
DATA = TEXT.encode()


def named(value: object) -> str | None:
    """Name bytes by their place: archives hold the time, and every process must name a case alike."""
    return "data" if isinstance(value, bytes) else None


def zipped(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(DATA),
        gzip.compress(DATA[:999]) + gzip.compress(DATA[999:]),
        bz2.compress(DATA),
        lzma.compress(DATA),
        zipped(**{"t.csv": DATA}),
        zipped(**{"t.csv": DATA, "__MACOSX/._t.csv": b"x"}),
        TEXT.encode("utf-16"),
        TEXT.encode("utf-8-sig"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        gzip.compress(TEXT.encode("utf-16")),
        *(TEXT.replace("ö", "o").replace("ß", "ss").encode(code) for code in ("utf-16-le", "utf-16-be", "utf-32-le")),
    ],
    ids=named,
)
@pytest.mark.parametrize("name", ["t.csv", "t.bin"])
def test_a_table_is_read_whatever_packs_and_codes_it(tmp_path: Path, data: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(data)
    (tmp_path / "plain.csv").write_bytes(DATA)
    table, plain = read_table(tmp_path / name), read_table(tmp_path / "plain.csv")
    assert list(table.columns.values()) == list(plain.columns.values())
    assert list(table.columns)[1:] == ["kind", "y"]
    assert table.where(7) == f"{tmp_path / name} line 9"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (gzip.compress(DATA)[:-9], "is damaged or cut off"),
        (gzip.compress(DATA)[:-6] + b"zzzzzz", "is damaged or cut off .CRC check failed"),
        (gzip.compress(DATA)[:60] + b"\xff" * 9 + gzip.compress(DATA)[69:], "is damaged or cut off"),
        (gzip.compress(DATA) + b"more", "is damaged or cut off"),
        (lzma.compress(DATA)[:100], "is damaged or cut off"),
        (bz2.compress(DATA)[:100], "is damaged or cut off"),
        (zipped(**{"t.csv": DATA})[:300], "is damaged or cut off"),
        (b"\x1f\x8b", "is damaged or cut off"),
        (gzip.compress(b""), "is empty"),
        (zipped(a=DATA, b=DATA), "holds 2 files; unpack it"),
        (zipped(**{"x.npy": DATA, "y.npy": DATA}), "is an .npz of arrays.*through a function"),
        (zipped(**{"[Content_Types].xml": b"x"}), "is an Excel workbook"),
        (b"\x28\xb5\x2f\xfdabc", "packed by zstd.*unzstd"),
        (b"PAR1....PAR1", "is a Parquet file"),
        (gzip.compress(TEXT.encode("latin-1")), "line 1: not UTF-8; save the file as UTF-8"),
        (TEXT.encode("utf-16")[:-1], "not UTF-16; save the file as UTF-8"),
    ],
    ids=named,
)
def test_what_cannot_be_unpacked_or_decoded_is_refused_with_the_mend(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(UserError, match=words):
        read_table(tmp_path / "t.csv")


def test_a_bomb_is_refused_before_its_rows_are_kept(tmp_path: Path) -> None:
    bomb = gzip.compress(b"a,b,y\n" + b"1,2,x\n" * 50_000_000, 1)
    (tmp_path / "t.csv.gz").write_bytes(bomb)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="unpacks to more than 256 MiB, 100 times its size or more; unpack it"):
            read_table(tmp_path / "t.csv.gz")
        assert tracemalloc.get_traced_memory()[1] < 1 << 25
    finally:
        tracemalloc.stop()


def test_one_long_cell_does_not_widen_the_others(tmp_path: Path) -> None:
    """NumPy's own text would give 3,000 rows 400 KB each: 1.2 GB."""
    rows = [f"{'x' * 100_000 if i == 5 else f'w{i % 3}'},{i * 37 % 101},{i * 7919 % 13 > 5}" for i in range(3000)]
    (tmp_path / "t.csv").write_text("note,a,y\n" + "\n".join(rows) + "\n")
    tracemalloc.start()
    try:
        task = load_task(data_settings(source="csv", path=tmp_path / "t.csv", target="y"), seed=0)
        for data in task.data.values():
            task.raw(data.fetch(torch.arange(len(data)), None))
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_a_folder_may_hold_packed_splits(tmp_path: Path) -> None:
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(DATA))
    (tmp_path / "test.tsv").write_text(TEXT.replace(",", "\t"))
    assert {split: len(rows) for split, rows in read_table(tmp_path).parts.items()} == {"train": 200, "test": 200}
    (tmp_path / "train.csv").write_bytes(DATA)
    with pytest.raises(UserError, match="which both mean train; rename one"):
        read_table(tmp_path)


GENERATOR = np.random.default_rng(0)
NOISE = GENERATOR.normal(size=300)
CLASSES = (GENERATOR.random(300) > 0.5).astype(int)


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (GENERATOR.permutation(np.arange(1000, 1300)), "has a whole number of its own in nearly every row"),
        (np.arange(300), "goes one way from row to row"),
        (np.arange(300) / 4 + 16, "goes one way from row to row"),
        (CLASSES * 3.5, "alone tells the class of nearly every training row"),
        (np.where(CLASSES, np.abs(NOISE) + 0.01, -np.abs(NOISE) - 0.01), "alone tells the class"),
        (np.where(CLASSES, "paid", "open"), "alone tells the class"),
        (NOISE, ""),
        (GENERATOR.integers(0, 9, 300), ""),
        (GENERATOR.integers(0, 250, 300), ""),
        (np.char.add("c", GENERATOR.integers(0, 9, 300).astype(str)), ""),
    ],
)
def test_columns_that_look_like_the_row_or_the_class_are_told_and_stay(
    tmp_path: Path, cells: np.ndarray, words: str
) -> None:
    rows = zip(cells, NOISE[::-1], CLASSES, strict=True)
    text = "".join(f"{cell},{noise:.3f},{'yes' if label else 'no'}\n" for cell, noise, label in rows)
    (tmp_path / "t.csv").write_text("customer_id,a,y\n" + text)
    task = load_task(data_settings(source="csv", path=tmp_path / "t.csv", target="y"), seed=0)
    told = [text for text in task.warnings if "'customer_id'" in text]
    assert len(told) == bool(words)
    assert all(words in text and "add data.drop: [customer_id]" in text for text in told)
    assert task.graph_preprocess is not None
    assert "customer_id" in [value.name for value in task.graph_preprocess.input_spec()]


@pytest.mark.parametrize(
    "names",
    [
        ("--1", "1"), ("-", "+"), ("=1+1", "@SUM(A1)"), ("nan", "None"), ("true", "false"), ('a "quote"', "b'c"),
        ("two\nlines", "one"), ("x" * 5000, "y"), ("paypal", "p\u0430yp\u0430l"), ("NULL", "NA"),
    ],
)  # fmt: skip
def test_a_class_and_a_category_may_have_any_name(tmp_path: Path, names: tuple[str, str]) -> None:
    cells = ['"' + name.replace('"', '""') + '"' for name in names]
    rows = "".join(f"{cells[i * 7 % 5 % 2]},{cells[i * 7919 % 13 % 2]}\n" for i in range(120))
    (tmp_path / "t.csv").write_text("kind,y\n" + rows, encoding="utf-8")
    task = load_task(data_settings(source="csv", path=tmp_path / "t.csv", target="y", categorical=["kind"]), seed=0)
    assert set(task.labels) == set(names)
    assert task.graph_preprocess is not None
    assert set(task.graph_preprocess.columns[0].categories) == set(names)  # type: ignore[attr-defined]


@pytest.mark.parametrize("word", ["NAN", "", "NA", "null", "?"])
def test_a_column_of_nothing_is_refused_with_the_way_to_drop_it(tmp_path: Path, word: str) -> None:
    rows = "".join(f"{word},{i * 37 % 11},{i % 3 % 2}\n" for i in range(60))
    (tmp_path / "t.csv").write_text("dead,a,y\n" + rows)
    with pytest.raises(UserError, match=r"column 'dead': missing in every row; add data.drop: \[dead\]"):
        load_task(data_settings(source="csv", path=tmp_path / "t.csv", target="y"), seed=0)
