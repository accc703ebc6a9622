from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from distill.tasks.settings import DataSettings


def test_the_default_is_empty() -> None:
    settings = DataSettings()
    assert settings.source is None
    assert settings.augment == "none"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sorce": "digits"}, "sorce"),
        ({"source": "digits", "validation": 1.5}, "validation"),
        ({"source": "digits", "validation": 0.6, "test": 0.5}, "leave nothing for training"),
        ({"source": "digits", "target": "y"}, "target=y is not used by source: digits; remove it"),
        ({"source": "csv", "path": "a.csv", "target": "y", "augment": "crop"}, "augment=crop is not used"),
        ({"source": "csv", "path": "a.csv"}, "target is missing"),
        ({"source": "imagefolder"}, "path is missing"),
        ({"source": "csv", "path": "a.csv", "target": "y", "drop": ["y"]}, "is also in drop"),
        ({"source": "csv", "path": "a.csv", "target": "y", "group": "g", "split": "s"}, "group and split"),
        ({"source": "digits", "mean": [0.5]}, "give both or none"),
        ({"source": "cifar10", "mean": [0.5, 0.5], "std": [1.0, 1.0]}, "mean has 2 numbers"),
        ({"source": "./a.py:f", "augment": "crop"}, "augment=crop is not used by source: ./a.py:f"),
    ],
)
def test_wrong_settings_name_the_field(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DataSettings(**given)


def test_several_errors_are_told_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        DataSettings(source="csv", augment="crop")
    assert all(word in str(caught.value) for word in ("augment", "target is missing", "path is missing"))


def test_every_field_is_described_in_the_schema() -> None:
    schema = TypeAdapter(DataSettings).json_schema()
    assert all(field.get("description") for field in schema["properties"].values())
    json.dumps(schema)


def test_reading_settings_brings_no_torch() -> None:
    code = "import sys, distill.tasks.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
