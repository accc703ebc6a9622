from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import task_samples as samples
import torch

from distill.errors import UserError
from distill.export import CategoryColumn, ColumnsPreprocess, NumericColumn
from distill.tasks import data_settings, load_task
from distill.tasks.base import SPLITS
from distill.tasks.tabular import TabularTask


def load(path: Path, seed: int = 0, **given: Any) -> TabularTask:
    task = load_task(data_settings(**{"source": "csv", "path": path, "target": "class", **given}), seed=seed)
    assert isinstance(task, TabularTask)
    return task


def whole(task: TabularTask, split: str) -> Any:
    return task.data[split].fetch(torch.arange(len(task.data[split])), None)


def columns(task: TabularTask) -> dict[str, NumericColumn | CategoryColumn]:
    assert isinstance(task.graph_preprocess, ColumnsPreprocess)
    return {column.name: column for column in task.graph_preprocess.columns}


def test_breast_cancer_is_standardised_on_train_only() -> None:
    task = load_task(data_settings(source="breast-cancer"), seed=0)
    assert isinstance(task, TabularTask)
    assert {split: len(data) for split, data in task.data.items()} == {"train": 398, "validation": 57, "test": 114}
    train = whole(task, "train")[0]
    assert train.shape[1] == task.facts["features"] == 30
    assert torch.allclose(train.mean(0), torch.zeros(30), atol=1e-4)
    assert torch.allclose(train.std(0, correction=0), torch.ones(30), atol=1e-4)
    assert not torch.allclose(whole(task, "test")[0].mean(0), torch.zeros(30), atol=1e-3)
    scores = task.metrics(np.array([[3, 0], [0, 3], [2, 0]], np.float32), np.array([0, 1, 1]))
    assert task.metric == "accuracy"
    assert scores["auroc"] == 1
    # malignant, class 0, is what f1 counts: one hit, one false alarm.
    assert scores["f1"] == pytest.approx(2 / 3)


def test_numbers_and_categories_are_told_apart(tmp_path: Path) -> None:
    task = load(samples.write_csv(tmp_path / "a.csv"))
    found = columns(task)
    assert list(found) == ["age", "job", "site"]
    job = found["job"]
    assert isinstance(job, CategoryColumn)
    assert job.categories == ("baker", "clerk", "smith")
    assert task.labels == ("no", "yes")
    assert any("'one' has one value in all training rows" in one for one in task.warnings)
    assert task.facts["features"] == 1 + 4 + 13


def test_missing_values_reach_the_shipped_file_as_nan_and_empty_text(tmp_path: Path) -> None:
    rows = samples.csv_rows()
    for number, token in enumerate(("NA", "NaN", "?", "", "nan", "  ? ")):
        rows[20 * number][0] = rows[20 * number][1] = token
    task = load(samples.write_csv(tmp_path / "a.csv", rows))
    raws = [task.raw(whole(task, split)) for split in SPLITS]
    ages = np.concatenate([raw["age"] for raw in raws])
    jobs = np.concatenate([raw["job"] for raw in raws])
    assert ages.dtype == np.float32
    assert ages.shape == jobs.shape == (120, 1)
    words = ("", "NA", "NaN", "?", "nan")
    assert int(np.isnan(ages).sum()) == sum(row[0].strip() in words for row in rows)
    # A word is a word in a column of words: only the empty cell is missing there.
    assert int((jobs == "").sum()) == sum(not row[1].strip() for row in rows)
    assert int((jobs == "?").sum()) == 2
    features = whole(task, "train")[0]
    assert torch.isfinite(features).all()


def test_fitting_looks_at_training_rows_only(tmp_path: Path) -> None:
    parts = ("train", "train", "train", "train", "test", "val")
    rows = [[*row, parts[number // 3 % 6]] for number, row in enumerate(samples.csv_rows())]
    header = "age,job,one,site,class,part"
    first = load(samples.write_csv(tmp_path / "a.csv", rows, header), split="part")
    for row in rows:
        if row[-1] != "train":
            row[0], row[1] = "1e6", "astronaut"
    second = load(samples.write_csv(tmp_path / "b.csv", rows, header), split="part")
    assert columns(first) == columns(second)
    assert first.given_splits == SPLITS
    assert {split: len(data) for split, data in first.data.items()} == {"train": 84, "validation": 18, "test": 18}
    slots = whole(second, "test")[0][:, 1:5]
    assert torch.equal(slots, torch.tensor([0.0, 0.0, 0.0, 1.0]).expand_as(slots))


def test_the_fill_is_the_mean_and_the_result_is_standardised(tmp_path: Path) -> None:
    task = load(samples.write_csv(tmp_path / "a.csv"))
    train = whole(task, "train")
    ages = task.raw(train)["age"].astype(np.float64)
    age = columns(task)["age"]
    assert isinstance(age, NumericColumn)
    assert age.fill == pytest.approx(np.nanmean(ages))
    assert float(train[0][:, 0].mean()) == pytest.approx(0, abs=1e-5)
    assert float(train[0][:, 0].std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_a_group_stays_in_one_split(tmp_path: Path) -> None:
    task = load(samples.write_csv(tmp_path / "a.csv"), group="site", drop=["one"])
    assert "site" not in columns(task)
    rows = samples.csv_rows()
    homes = [{rows[int(row)][3] for row in whole(task, split)[2]} for split in SPLITS]
    assert sum(map(len, homes)) == 12
    assert all(homes)


def test_a_folder_of_files_is_the_users_split(tmp_path: Path) -> None:
    rows = samples.csv_rows()
    samples.write_csv(tmp_path / "train.csv", rows[:80])
    flipped = [[row[4], *row[:4]] for row in rows[80:]]
    samples.write_csv(tmp_path / "test.csv", flipped, "class,age,job,one,site")
    task = load(tmp_path)
    assert {split: len(data) for split, data in task.data.items()} == {"train": 70, "validation": 10, "test": 40}
    assert task.given_splits == ("train", "test")
    assert any("no validation split" in one for one in task.warnings)


def test_categories_that_training_does_not_have_are_told(tmp_path: Path) -> None:
    """A column of numbers in one file and of words in another is a column of categories, all of them missing there."""
    rows = [["1", *row[1:]] for row in samples.csv_rows()]
    rows = [[str(number % 7), *row[1:]] for number, row in enumerate(rows)]
    samples.write_csv(tmp_path / "train.csv", rows[:80])
    samples.write_csv(tmp_path / "test.csv", [[f"c{row[0]}", *row[1:]] for row in rows[80:]])
    warnings = load(tmp_path).warnings
    assert any(
        "'age': 40 of 50 cells outside of the training rows are categories that those do" in one for one in warnings
    )
    samples.write_csv(tmp_path / "test.csv", rows[80:])
    assert not any("outside of the training rows" in one for one in load(tmp_path).warnings)


def test_classes_are_ordered_as_numbers(tmp_path: Path) -> None:
    rows = [[*row[:4], str(8 + number % 4)] for number, row in enumerate(samples.csv_rows())]
    task = load(samples.write_csv(tmp_path / "a.csv", rows), metric="auroc")
    assert task.labels == ("8", "9", "10", "11")
    assert task.metric == "auroc"


def test_numbers_may_be_named_categories(tmp_path: Path) -> None:
    rows = [[str(number % 5), *row[1:]] for number, row in enumerate(samples.csv_rows())]
    task = load(samples.write_csv(tmp_path / "a.csv", rows), categorical=["age"])
    age = columns(task)["age"]
    assert isinstance(age, CategoryColumn)
    assert age.categories == ("0", "1", "2", "3", "4")


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_quotes_and_a_byte_order_mark_are_read(tmp_path: Path, delimiter: str) -> None:
    path = samples.write_csv(tmp_path / "a.csv")
    expected = load(path).fingerprint()
    text = path.read_text().replace(",", delimiter).replace("baker", '"baker"')
    path.write_text("\ufeff" + text + "\n\n", encoding="utf-8")
    assert load(path).fingerprint() == expected


def test_the_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    rows = samples.csv_rows()
    first = load(samples.write_csv(tmp_path / "a.csv", rows)).fingerprint()
    assert load(samples.write_csv(tmp_path / "elsewhere" / "b.csv", rows)).fingerprint() == first
    rows[0][0] = "41.5"
    assert load(samples.write_csv(tmp_path / "a.csv", rows)).fingerprint() != first


def edited(name: str) -> tuple[list[list[str]], str, dict[str, Any]]:
    """Spoil the table in one way; return rows, header and extra settings."""
    rows, header, given = samples.csv_rows(), "age,job,one,site,class", {}
    if name == "target absent":
        given = {"target": "clas"}
    elif name == "target missing":
        rows[4][4] = ""
    elif name == "one class":
        rows = [[*row[:4], "no"] for row in rows]
    elif name == "rare class":
        rows[7][4] = "maybe"
    elif name == "regression":
        rows = [[*row[:4], f"{number}.5"] for number, row in enumerate(rows)]
    elif name == "ragged":
        rows[2].append("more")
    elif name == "infinite":
        rows[3][0] = "inf"
    elif name == "too large":
        rows[3][0] = "1e300"
    elif name == "all missing":
        rows = [["", *row[1:]] for row in rows]
    elif name == "no rows":
        rows = []
    elif name == "few rows":
        rows = rows[:20]
    elif name == "drop absent":
        given = {"drop": ["jbo"]}
    elif name == "twice":
        header = "age,age,one,site,class"
    elif name == "no name":
        header = ",job,one,site,class"
    elif name == "one column":
        rows, header = [["x"]], "class"
    elif name == "identifier":
        rows = [[row[0], f"name {number}", *row[2:]] for number, row in enumerate(rows)]
    elif name == "split word":
        given = {"split": "site"}
    elif name == "output name":
        header = "age,job,one,logits,class"
    elif name == "positive":
        given = {"positive": "yess"}
    elif name == "two groups":
        rows = [[*row[:3], f"s{number % 2}", row[4]] for number, row in enumerate(rows)]
        given = {"group": "site"}
    elif name == "nothing left":
        given = {"drop": ["age", "job", "site"]}
    elif name == "group gap":
        rows[5][3], given = "", {"group": "site"}
    return rows, header, given


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("target absent", "data.target='clas': no such column; did you mean 'class'"),
        ("target missing", "a.csv line 6: the target 'class' is missing"),
        ("one class", "every row is 'no'"),
        ("rare class", "class 'maybe' has 1 row, fewer than 3"),
        ("regression", "only classes can be learnt, not quantities"),
        ("ragged", "a.csv line 4: 6 values; the header has 5 columns"),
        ("infinite", "a.csv line 5: column 'age' is inf"),
        ("too large", "a.csv line 5: column 'age' is 1e300"),
        ("all missing", r"column 'age': missing in every row; add data.drop: \[age\]"),
        ("no rows", "has a header and no rows"),
        ("few rows", "the train split has 0 samples, fewer than 10"),
        ("drop absent", "data.drop='jbo': no such column; did you mean 'job'"),
        ("twice", "line 1: two columns are named 'age'"),
        ("no name", "line 1: column 1 has no name"),
        ("one column", "line 1: one column only"),
        ("identifier", "column 'job': .* looks like a name or number of the row"),
        ("split word", "line 2: column 'site' is 's0'; expected train, validation or test"),
        ("output name", "column 'logits': the shipped file's output has this name"),
        ("positive", "data.positive='yess': no such label; did you mean 'yes'"),
        ("two groups", r"2 group\(s\) cannot fill 3 splits"),
        ("nothing left", "no column is left as input"),
        ("group gap", "a.csv line 7: the group 'site' is missing"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, said: str) -> None:
    rows, header, given = edited(name)
    with pytest.raises(UserError, match=said) as caught:
        load(samples.write_csv(tmp_path / "a.csv", rows, header), **given)
    assert "\n" not in str(caught.value)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    samples.write_csv(tmp_path / "people.csv")
    with pytest.raises(UserError, match=r"no such file or folder; did you mean 'people.csv'"):
        load(tmp_path / "peple.csv")
    with pytest.raises(UserError, match=r"holds no train.csv"):
        load(tmp_path)
    for name, data, said in (
        ("empty.csv", b"", "is empty"),
        ("latin.csv", b"a,class\n\xe9,1\n", "not UTF-8"),
        ("quote.csv", b'a,class\n"x,1\n', "quote.csv line 2"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=said):
            load(tmp_path / name)


def test_files_of_a_split_must_agree(tmp_path: Path) -> None:
    rows = samples.csv_rows()
    samples.write_csv(tmp_path / "train.csv", rows)
    samples.write_csv(tmp_path / "test.csv", rows, "age,jbo,one,site,class")
    with pytest.raises(UserError, match=r"test.csv: lacks the column 'job' of train.csv; did you mean 'jbo'"):
        load(tmp_path)
    samples.write_csv(tmp_path / "test.csv", rows)
    with pytest.raises(UserError, match=r"the group 's0' lies in train and in test"):
        load(tmp_path, group="site")
    samples.write_csv(tmp_path / "test.csv", [[*row[:4], "perhaps"] for row in rows])
    with pytest.raises(UserError, match=r"class 'perhaps' occurs in test but not in train"):
        load(tmp_path)


def test_a_column_with_a_few_words_among_numbers_is_refused_and_names_them(tmp_path: Path) -> None:
    rows = [[str(number % 7), *row[1:]] for number, row in enumerate(samples.csv_rows())]
    rows[9][0], rows[40][0] = "unknown", "3 or 4"
    path = samples.write_csv(tmp_path / "a.csv", rows)
    said = r"'age': 2 of 120 cells are no numbers: 'unknown' \(.*a.csv line 11\), '3 or 4' \(.*a.csv line 42\)"
    with pytest.raises(UserError, match=said):
        load(path)
    assert isinstance(columns(load(path, categorical=["age"]))["age"], CategoryColumn)
    assert isinstance(columns(load(path, missing=["unknown", "3 or 4"]))["age"], NumericColumn)


def test_numbers_beyond_float32s_resolution_are_told(tmp_path: Path) -> None:
    rows = [[str(1_700_000_000 + number), *row[1:]] for number, row in enumerate(samples.csv_rows())]
    task = load(samples.write_csv(tmp_path / "a.csv", rows))
    assert any("float32 keeps little of that" in one for one in task.warnings)
