from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from distill.config.loading import load_config
from distill.errors import UserError
from distill.tasks import FAMILIES, SOURCES, Data, DataSettings, data_settings


def errors(section: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        load_config({"task": "mine", "teacher": "mlp", "data": section})
    return str(caught.value)


def test_the_default_is_empty() -> None:
    settings = data_settings()
    assert settings == DataSettings()
    assert settings.source is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sorce": "digits"}, "sorce"),
        ({"source": "digits", "validation": 1.5}, "validation"),
        ({"source": "digits", "validation": 0.6, "test": 0.5}, "leave nothing for training"),
        ({"source": "digits", "target": "y"}, "data.target='y' is not used by source: digits, but by csv; remove it"),
        ({"source": "csv", "path": "a.csv", "target": "y", "augment": "crop"}, "augment='crop' is not used"),
        ({"source": "csv", "path": "a.csv"}, "data.target: is missing"),
        ({"source": "imagefolder"}, "data.path: is missing"),
        ({"source": "csv", "path": "a.csv", "target": "y", "drop": ["y"]}, "is also in drop"),
        ({"source": "csv", "path": "a.csv", "target": "y", "group": "g", "split": "s"}, "group and split"),
        ({"source": "digits", "mean": [0.5]}, "give both or none"),
        ({"source": "cifar10", "mean": [0.5, 0.5], "std": [1.0, 1.0]}, "mean has 2 numbers"),
        ({"source": "./a.py:f", "augment": "crop"}, "augment='crop' is not used by source: ./a.py:f, but by digits"),
        ({"source": "rows.npz"}, "data.source='rows.npz': holds arrays; write a function that loads them"),
        ({"source": "mine/t.csv.gz"}, "is a table; write data: {source: csv, path: mine/t.csv.gz, target: COLUMN}"),
        ({"source": "./mine.py"}, "is a file of code; name the function in it, as ./mine.py:make_data"),
        ({"source": "digit"}, "data.source='digit': no such data; did you mean 'digits'?"),
        ({"path": "a.csv"}, "data.source: is missing; give digits"),
    ],
)
def test_wrong_settings_name_the_field(given: dict[str, Any], said: str) -> None:
    assert said in errors(given)
    with pytest.raises(ValidationError):
        data_settings(**given)


def test_a_key_of_another_family_that_only_repeats_its_default_is_left_out() -> None:
    plain = data_settings(source="csv", path="a.csv", target="y")
    assert data_settings(source="csv", path="a.csv", target="y", augment="none", padding=2, image_size=None) == plain


def test_each_source_has_the_keys_of_its_family_only() -> None:
    for source, family in SOURCES.items():
        needed = {"csv": {"path": "a.csv", "target": "y"}, "imagefolder": {"path": "a"}}.get(source, {})
        settings = data_settings(source=source, **needed)
        assert type(settings) is family and settings.source == source
    assert not hasattr(data_settings(source="digits"), "target")
    assert data_settings(source="./a.py:make", args={"n": 3}).source == "./a.py:make"


def test_several_errors_are_told_at_once() -> None:
    told = errors({"source": "csv", "augment": "crop"})
    assert all(part in told for part in ("augment", "data.target: is missing", "data.path: is missing"))


def test_every_field_is_described_in_the_schema() -> None:
    schema = TypeAdapter(Data).json_schema()
    assert set(schema["$defs"]) == {family.__name__ for family in FAMILIES}
    for family in schema["$defs"].values():
        assert all(field.get("description") for field in family["properties"].values()), family
    json.dumps(schema)


def test_reading_settings_brings_no_torch() -> None:
    code = "import sys, distill.tasks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
