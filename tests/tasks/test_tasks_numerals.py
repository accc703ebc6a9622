"""The grammar of numbers in a table, and what each kind of cell becomes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from distill.errors import UserError
from distill.export import CategoryColumn, ColumnsPreprocess, NumericColumn, export_onnx
from distill.tasks import data_settings, load_task
from distill.tasks import number_parsing as numerals
from distill.tasks.base import SPLITS
from distill.tasks.settings import CsvSettings
from distill.tasks.tabular import TabularTask

Cell = Callable[[int], str]
ROWS = 120


def price(row: int) -> str:
    return f"{(row * 37 % 101) / 7:.2f}"


def answer(row: int) -> str:
    return "yes" if row % 3 == 0 else "no"


def quoted(text: str, delimiter: str) -> str:
    needs = any(mark in text for mark in (delimiter, '"', "\n"))
    return '"' + text.replace('"', '""') + '"' if needs else text


def write(path: Path, columns: dict[str, Cell], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    lines = [delimiter.join(quoted(name, delimiter) for name in columns)]
    lines += [delimiter.join(quoted(cell(row), delimiter) for cell in columns.values()) for row in range(ROWS)]
    path.write_bytes(("\n".join(lines) + "\n").encode(encoding))
    return path


def read(
    folder: Path, cell: Cell, *, name: str = "x", label: Cell = answer, delimiter: str = ",", **chosen: Any
) -> TabularTask:
    """Read a table with the column in question, one of plain numbers without any mark, and the class."""
    path = write(folder / "t.csv", {name: cell, "a": lambda row: str(row % 7), "y": label}, delimiter)
    task = load_task(data_settings(source="csv", path=path, target="y", **chosen), seed=0)
    assert isinstance(task, TabularTask)
    return task


def column(task: TabularTask, name: str = "x") -> NumericColumn | CategoryColumn | None:
    assert isinstance(task.graph_preprocess, ColumnsPreprocess)
    return next((one for one in task.graph_preprocess.columns if one.name == name), None)


def in_order(task: TabularTask, name: str = "x") -> list[Any]:
    """Return a column's raw cells, in the order of the table's rows."""
    cells: dict[int, Any] = {}
    for split in SPLITS:
        batch = task.data[split].fetch(torch.arange(len(task.data[split])), None)
        cells |= dict(zip(batch[2].tolist(), task.raw(batch)[name].reshape(-1).tolist(), strict=True))
    return [cells[row] for row in sorted(cells)]


def of(*texts: str) -> Cell:
    return lambda row: texts[row % len(texts)]


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4), st.sampled_from(".,"), st.integers(0, 3))
def test_a_decimal_number_is_read_exactly_and_trailing_zeros_change_nothing(
    value: Decimal, mark: str, zeros: int
) -> None:
    text = (f"{value:f}" + "0" * zeros).replace(".", mark)
    assert numerals.is_quantity(text, mark)
    assert numerals.value_of(text, mark) == float(value)
    assert numerals.plain(text, mark) == numerals.plain(f"{value:f}")
    assert Decimal(numerals.plain(text, mark)) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_whatever_python_writes_is_a_number(value: float) -> None:
    assert numerals.is_quantity(repr(value))
    assert numerals.value_of(repr(value)) == value


@given(st.text(max_size=8))
def test_no_text_is_read_as_a_number_that_is_not_written_in_ascii(text: str) -> None:
    if numerals.is_number(text):
        assert text.isascii()
        assert "_" not in text
        assert not math.isnan(float(text))
    if numerals.is_quantity(text):
        assert Decimal(numerals.plain(text)) == Decimal(text)
    numerals.notation(text)


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (("5", "+5", "-5", "0", "-0"), (5, 5, -5, 0, 0)),
        ((".5", "5.", "0.50", "-.25"), (0.5, 5, 0.5, -0.25)),
        (("1e3", "2E-1", "7", "1.5e+2"), (1000, 0.2, 7, 150)),
        (("  1.5 ", "\u20092.5\u00a0", "\t3"), (1.5, 2.5, 3)),
        (("0", "0.0", "0.00", "1"), (0, 0, 0, 1)),
        (("1.500000e+00", "2.500000e-01", "0.000000e+00"), (1.5, 0.25, 0)),
    ],
)
def test_numbers(tmp_path: Path, texts: tuple[str, ...], values: tuple[float, ...]) -> None:
    task = read(tmp_path, of(*texts))
    assert isinstance(column(task), NumericColumn)
    assert in_order(task)[: len(values)] == pytest.approx(values)


@pytest.mark.parametrize("texts", [("1,5", "2", "-3,25"), ("0,123", "4,5"), ("1234,5", "1,000"), ("1,5e-3", ",5")])
@pytest.mark.parametrize("delimiter", [";", "\t", ","])
def test_decimal_commas(tmp_path: Path, texts: tuple[str, ...], delimiter: str) -> None:
    task = read(tmp_path, of(*texts), delimiter=delimiter)
    assert isinstance(column(task), NumericColumn)
    assert in_order(task)[: len(texts)] == pytest.approx([float(text.replace(",", ".")) for text in texts])


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        (("0123", "123", "00123"), "'0123' "),
        (("1_2", "12", "1_20"), "'1_2' "),
        (("1_000", "2000"), "'1_000' "),
        (("0x1F", "0x20", "7"), "'0x1F' "),
        (("1e3", "1000", "5"), "'1000' .* and '1e3' .* would be one number"),
        (("1e3", "1E3", "5"), "'1E3' .* and '1e3' .* would be one number"),
        (("1e3", "1e+3", "5"), "would be one number"),
        (("1.5_0", "2"), "'1.5_0' "),
    ],
)
def test_codes_stay_text_and_are_told(tmp_path: Path, texts: tuple[str, ...], why: str) -> None:
    task = read(tmp_path, of(*texts))
    found = column(task)
    assert isinstance(found, CategoryColumn)
    assert found.categories == tuple(sorted(texts))
    (said,) = (text for text in task.warnings if "alone tells the class" not in text)
    assert said.startswith(f"column 'x' is read as {len(texts)} categories")
    assert "data.numeric: [x] reads numbers" in said
    assert re.search(why, said)


def test_the_user_may_call_codes_numbers(tmp_path: Path) -> None:
    task = read(tmp_path, of("0123", "123", "1e3", "1000"), numeric=["x"])
    assert in_order(task)[:4] == [123, 123, 1000, 1000]
    with pytest.raises(UserError, match=r"'1_2' .*take the column out of data.numeric"):
        read(tmp_path, of("1_2", "3"), numeric=["x"])


def test_a_column_of_postal_codes_is_no_number_whichever_way_it_ends(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"name or number of the row \('00000' .* is a code.*data.numeric: \[x\]"):
        read(tmp_path, lambda row: f"{row * 131:05}")


@pytest.mark.parametrize("word", ["NA", "n/a", "NaN", "null", "NULL", "None", "?", "-", "", "  "])
def test_missing_words_among_numbers_are_missing_counted_and_told(tmp_path: Path, word: str) -> None:
    task = read(tmp_path, lambda row: word if row % 5 == 0 else price(row))
    assert isinstance(column(task), NumericColumn)
    missing = np.isnan(in_order(task))
    assert missing.tolist() == [row % 5 == 0 for row in range(ROWS)]
    shown = repr(word) if word.strip() else "empty"
    assert [f"'x' 24 ({shown} 24)" in one for one in task.warnings] == [True]


def test_the_missing_words_are_the_users_choice(tmp_path: Path) -> None:
    def cell(row: int) -> str:
        return ("-999.00", "Unknown")[row % 2] if row % 5 == 0 else price(row)

    task = read(tmp_path, cell, missing=[-999, "unknown"])
    assert np.isnan(in_order(task)).sum() == 24
    assert CsvSettings(path="a.csv", target="y", missing=[None, -999]).missing == ("null", "-999")
    with pytest.raises(UserError, match="24 of 120 cells are no numbers: 'NA'"):
        read(tmp_path, lambda row: "NA" if row % 5 == 0 else price(row), missing=[])


def test_words_stay_words_in_a_column_of_words(tmp_path: Path) -> None:
    task = read(tmp_path, of("NA", "DE", "", "none"))
    found = column(task)
    assert isinstance(found, CategoryColumn)
    assert found.categories == ("DE", "NA", "none")
    assert in_order(task)[:4] == ["NA", "DE", "", "none"]


@pytest.mark.parametrize("texts", [("NAN",), ("?",), ("null", "NA", "", "-")])
def test_a_column_of_nothing_but_missing_words_is_refused_with_the_mend(tmp_path: Path, texts: Sequence[str]) -> None:
    with pytest.raises(UserError, match=r"column 'x': missing in every row; add data.drop: \[x\]"):
        read(tmp_path, of(*texts))


@pytest.mark.parametrize("word", ["unknown", "--", "#N/A", ".", "n.a.", "nil"])
def test_another_word_in_a_fifth_of_a_quantity_is_named_not_made_to_categories(tmp_path: Path, word: str) -> None:
    with pytest.raises(UserError, match=r"'x': 24 of 120 cells are no numbers: .*line 2\).*data.missing"):
        read(tmp_path, lambda row: word if row % 5 == 0 else price(row))
    floors = read(tmp_path, of(word, "1", "2", "3"))
    assert isinstance(column(floors), CategoryColumn)


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        (lambda row: f"{1000.5 + row:,}", "separators of thousands"),
        (lambda row: f"{1 + row}'000", "separators of thousands"),
        (lambda row: f"{1 + row} 000", "separators of thousands"),
        (lambda row: f"{1 + row}\u202f000", "separators of thousands"),
        (lambda row: f"{row} %", "the sign %"),
        (lambda row: f"${row}.5", "the sign \\$"),
        (lambda row: f"{row} €", "the sign €"),
        (lambda row: f"{'−' if row % 2 else ''}{row}", "a dash for the minus sign"),
        (lambda row: str(row).translate({48 + n: 0xFF10 + n for n in range(10)}), "digits other than 0 to 9"),
        (lambda row: str(row).translate({48 + n: 0x660 + n for n in range(10)}), "digits other than 0 to 9"),
        (lambda row: f"{row}{'.' if row % 3 else ','}5", "a decimal comma beside decimal points"),
        (lambda row: f"{row}{'.' if row % 3 == 0 else ','}5", "a decimal point beside decimal commas"),
    ],
)
def test_numbers_in_another_notation_are_refused_by_its_name(tmp_path: Path, cell: Cell, why: str) -> None:
    with pytest.raises(UserError, match=rf"column 'x': .*line \d+\) is written with {why}; write plain numbers"):
        read(tmp_path, cell)
    assert isinstance(column(read(tmp_path, lambda row: cell(row % 9), categorical=["x"])), CategoryColumn)


def test_what_may_be_thousands_is_asked_for(tmp_path: Path) -> None:
    def cell(row: int) -> str:
        return f"{1 + row % 9},{100 + row}"

    for delimiter in (";", ","):
        with pytest.raises(UserError, match=r"'1,100' .* two ways; set data.decimal: ','"):
            read(tmp_path, cell, delimiter=delimiter)
    assert in_order(read(tmp_path, cell, delimiter=";", decimal=","))[0] == pytest.approx(1.1)
    with pytest.raises(UserError, match="separators of thousands"):
        read(tmp_path, cell, delimiter=";", decimal=".")
    # 950 and 1.050 in a table of semicolons: a thousand and fifty, or a little more than one?
    with pytest.raises(UserError, match=r"two ways; set data.decimal: '.'"):
        read(tmp_path, lambda row: f"{900 + row * 10:,}".replace(",", "."), delimiter=";")
    assert isinstance(column(read(tmp_path, lambda row: f"0.{100 + row}", delimiter=";")), NumericColumn)


@pytest.mark.parametrize("text", ["inf", "-Infinity", "1e400", "1e39"])
def test_what_float32_cannot_hold_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=rf"t.csv line 5: column 'x' is {text}, no finite float32; mend it or write NA"):
        read(tmp_path, lambda row: text if row == 3 else price(row))


def test_numbers_that_float32_cannot_standardise_or_tell_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which float32 cannot standardise"):
        read(tmp_path, of("1e-44", "3e-44"))
    task = read(tmp_path, lambda row: str(12345678901234567 + row))
    assert column(task) is None
    assert any("its numbers are one in float32" in one for one in task.warnings)


def test_an_exponent_beyond_reason_is_no_number(tmp_path: Path) -> None:
    text = "1e99999999999999999999"
    with pytest.raises(UserError, match=rf"1 of 120 cells are no numbers: '{text}'"):
        read(tmp_path, lambda row: text if row == 3 else price(row))
    assert read(tmp_path, price, label=of(text, "1")).labels == ("1", text)


def test_dates_and_units_become_categories_with_a_warning(tmp_path: Path) -> None:
    for cell in (
        lambda row: f"2020-13-{30 + row % 40}",
        lambda row: f"{row % 40:02}.02.2020",
        lambda row: f"{150 + row % 40} cm",
    ):
        task = read(tmp_path, cell)
        assert isinstance(column(task), CategoryColumn)
        assert any("begins like a number" in one and "line 2" in one for one in task.warnings)


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        (("0", "0.0", "1", "1.00"), ("0", "1")),
        (("0,0", "0", "1,0"), ("0", "1")),
        (("+1", "1", "-1"), ("-1", "1")),
        (("0.0", "1.0"), ("0.0", "1.0")),
        (("10", "9", "0.5"), ("0.5", "9", "10")),
        (("--1", "1"), ("--1", "1")),
        (("0123", "123"), ("0123", "123")),
        (("1_0", "10"), ("10", "1_0")),
        (("1e3", "1000"), ("1000", "1e3")),
        (("²", "1"), ("1", "²")),
        (("٣", "3"), ("3", "٣")),
        (("NA", "DE"), ("DE", "NA")),
        (("2020-13-45", "2020-01-01"), ("2020-01-01", "2020-13-45")),
        (('a\n"b"', "c;d,e"), ('a\n"b"', "c;d,e")),
    ],
)
def test_classes(tmp_path: Path, texts: tuple[str, ...], labels: tuple[str, ...]) -> None:
    task = read(tmp_path, price, label=of(*texts))
    assert task.labels == labels
    mixed = len(labels) < len(texts)
    assert any("in several spellings" in one for one in task.warnings) == mixed
    assert any("'NA' (60 rows) is a class like the others" in one for one in task.warnings) == ("NA" in texts)


def test_a_group_is_one_however_it_is_spelt(tmp_path: Path) -> None:
    task = read(tmp_path, lambda row: f"{row % 12}{'.0' if row < 60 else ''}", group="x")
    homes = [task.data[split].fetch(torch.arange(len(task.data[split])), None)[2] % 12 for split in SPLITS]
    assert sum(len(set(groups.tolist())) for groups in homes) == 12
    assert any("data.group='x'" in one and "'0' and '0.0'" in one for one in task.warnings)


def test_categories_in_two_spellings_are_told(tmp_path: Path) -> None:
    task = read(tmp_path, of("0", "0.0", "1"), categorical=["x"])
    assert any("'0' and '0.0' are categories of their own" in one for one in task.warnings)


def test_names_of_columns_may_hold_anything_and_advice_quotes_them(tmp_path: Path) -> None:
    for name, shown in (("Price, EUR", r'\["Price, EUR"\]'), ("no", r'\["no"\]'), ('a\n"b"', r'\["a\\n\\"b\\""\]')):
        assert isinstance(column(read(tmp_path, price, name=name, delimiter=";"), name), NumericColumn)
        with pytest.raises(UserError, match=f"add data.drop: {shown}") as caught:
            read(tmp_path, lambda row: f"n{row}", name=name)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"column 'file': .*rename the column"):
        read(tmp_path, price, name="file")


@pytest.mark.parametrize(
    "text",
    [
        'x;"a, b, c";y\n{0};{1};{2}\n',
        '"x;p;q",a,y\n{0},{1},{2}\n',
        'x\t"a;b,c"\ty\n{0}\t{1}\t{2}\n',
        "Price, EUR;a;y\n{0};{1};{2}\n",
        'x, a, y\n{0}, "{1}", "{2}"\n',
        "x,a,y,\n{0},{1},{2},\n",
        "x,a,y\n{0},{1},{2},,\n",
        '"x\ny",a,y\n"{0}","{1}","{2}"\n\n',
        "x,a,y\r\n{0},{1},{2}\r\n",
        "x,a,y\r{0},{1},{2}\r",
    ],
)
def test_cells_are_split_as_they_were_written(tmp_path: Path, text: str) -> None:
    end = next(mark for mark in ("\r\n", "\r", "\n") if mark in text)
    header, line = text.rstrip("\r\n").rsplit(end, 1)
    rows = [line.format(price(row), row % 7, answer(row)) for row in range(ROWS)]
    path = tmp_path / "t.csv"
    path.write_bytes(end.join([header, *rows, ""]).encode())
    task = load_task(data_settings(source="csv", path=path, target="y"), seed=0)
    assert isinstance(task, TabularTask)
    assert isinstance(task.graph_preprocess, ColumnsPreprocess)
    first, second = task.graph_preprocess.columns
    assert isinstance(first, NumericColumn)
    assert isinstance(second, NumericColumn)
    assert in_order(task, first.name)[:3] == pytest.approx([float(price(row)) for row in range(3)])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_say_the_encoding(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path / "t.csv", {"größe": price, "a": of("é", "ü"), "y": answer}, encoding=encoding)
    task = load_task(data_settings(source="csv", path=path, target="y"), seed=0)
    assert task.graph_preprocess is not None
    assert [one.name for one in task.graph_preprocess.input_spec()] == ["größe", "a"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("x,y\n1,où\n".encode("latin-1"), "line 2: not UTF-8; save the file as UTF-8"),
        (b"x,y\n1,a\x00\n", "line 2: holds a NUL character; save the file as UTF-8"),
        (b'x,y\n1,a\n"2,b\n3,c\n', "line 3: the row that begins here cannot be read: a quote is not closed"),
        (b"sep=;\nx;y\n1;a\n", "line 1: one column only"),
        (b"x,y\n1,a,b\n", "line 2: 3 values; the header has 2 columns"),
    ],
)
def test_files_that_cannot_be_split_name_the_line(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    with pytest.raises(UserError, match=said):
        load_task(data_settings(source="csv", path=path, target="y"), seed=0)


ODD = (
    "", "NA", "null", "?", "-", "--1", "0123", "1_2", "1e3", "1000", "1E3", "1e-45", "3e38", "-3e38", "1e400", "inf",
    "nan", "1,5", "1.234,5", "1,234", "12 %", "$5", "٣", "²", "\u200b1", "0x1F", "(5)", "2020-13-45", '"q"', "a\nb",
    "a;b", "a,b", "\ufeff", "1e99999999999999", "9" * 50, "5.", ".5", "+5", "-0", "0.0", ".", "1e", "Infinity", "DE",
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(ODD), min_size=1, max_size=4), st.sampled_from([1, 5, 40]), st.sampled_from(",;\t"))
def test_odd_cells_end_in_finite_features_or_in_one_line_for_the_user(
    tmp_path_factory: pytest.TempPathFactory, odd: list[str], every: int, delimiter: str
) -> None:
    try:
        task = read(
            tmp_path_factory.mktemp("odd"),
            lambda row: odd[row // every % len(odd)] if row % every == 0 else price(row),
            label=lambda row: odd[row % len(odd)] or "none",
            delimiter=delimiter,
        )
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert torch.isfinite(task.data["train"].fetch(torch.arange(len(task.data["train"])), None)[0]).all()
    assert all("\n" not in one for one in task.warnings)


def test_one_long_cell_does_not_widen_every_row(tmp_path: Path) -> None:
    task = read(tmp_path, lambda row: "z" * 200_000 if row == 7 else f"w{row % 5}", categorical=["x"])
    assert task._splits["train"].raw["x"].dtype == object
    assert len(task.fingerprint()) == 32
    assert max(map(len, in_order(task))) == 200_000


def test_files_of_a_split_go_by_their_usual_names(tmp_path: Path) -> None:
    for name in ("Training.CSV", "Dev.csv", "holdout.csv"):
        write(tmp_path / name, {"x": price, "y": answer})
    task = load_task(data_settings(source="csv", path=tmp_path, target="y"), seed=0)
    assert task.given_splits == SPLITS
    write(tmp_path / "test.csv", {"x": price, "y": answer})
    with pytest.raises(UserError, match=r"holds both holdout.csv and test.csv, which both mean test"):
        load_task(data_settings(source="csv", path=tmp_path, target="y"), seed=0)


def test_the_shipped_graph_answers_as_the_task_does(tmp_path: Path) -> None:
    """Odd names and cells: what the graph makes of the raw columns leads to the logits of the model behind the task."""
    cells: dict[str, Cell] = {
        "Price\n(EUR)": lambda row: ("null", "?", "", "N/A")[row % 4] if row % 9 == 0 else price(row).replace(".", ","),
        'a, b "q"': of("1,50", "1,5", "0", "0,0"),
        "country": of("NA", "DE", "", "F\nR"),
        "zip": of("0123", "123", "00123"),
        "y": of("0", "1", "0,0"),
    }
    path = write(tmp_path / "t.csv", cells, delimiter=";")
    task = load_task(data_settings(source="csv", path=path, target="y"), seed=0)
    assert isinstance(task, TabularTask)
    assert task.graph_preprocess is not None
    torch.manual_seed(0)
    model = nn.Linear(task.facts["features"], 2).eval()
    batch = task.data["test"].fetch(torch.arange(len(task.data["test"])), None)
    (features,), _ = task.inputs(batch)
    core = export_onnx(model, args=(features[:2],), input_names=["x"])
    shipped = task.graph_preprocess.prepend(core, input_name="x")
    session = onnxruntime.InferenceSession(shipped.SerializeToString(), providers=["CPUExecutionProvider"])
    raw = {name: value.astype(object) if value.dtype.kind == "U" else value for name, value in task.raw(batch).items()}
    (logits,) = session.run(None, raw)
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(features).numpy(), rtol=1e-5, atol=1e-5)
    # What docs/tables.md promises to callers: a gap is a gap, an unseen category too, and one number has one value.
    row = {name: value[:1] for name, value in raw.items()}
    unseen, empty = ({**row, "country": np.array([[text]], object)} for text in ("Mars", ""))
    np.testing.assert_array_equal(session.run(None, unseen)[0], session.run(None, empty)[0])
