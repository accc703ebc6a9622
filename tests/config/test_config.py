from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from tiny_run import Config, write_yaml

from distill.config.loading import (
    ModelSettings,
    PruneSection,
    RunConfig,
    TeacherSettings,
    config_hash,
    load_config,
    schema,
    settings_hash,
    to_dict,
)
from distill.config.presets import preset_text, presets
from distill.distillation.settings import DistillSettings
from distill.errors import UserError
from distill.plain_yaml import parse_yaml
from distill.tasks.settings import CsvSettings

NEEDS = {"csv": ["data.path=a.csv", "data.target=y"], "imagefolder": ["data.path=photos"]}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def at(text: str, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return at


def problems(raw: Any, against: dict[str, Any]) -> list[str]:
    Draft202012Validator.check_schema(against)
    return [one.message for one in Draft202012Validator(against).iter_errors(raw)]


def errors(source: Any, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_config(source, overrides)
    return str(caught.value).splitlines()


def test_every_preset_loads() -> None:
    assert {"digits", "breast-cancer", "fashion-mnist", "cifar10", "csv", "imagefolder"} <= set(presets())
    for name in presets():
        config = load_config(name, NEEDS.get(name, []))
        assert config.task == config.data.source == name
        assert isinstance(config.student, ModelSettings)
        assert config.distill is not None
        assert config.prune is not None


def test_nothing_is_the_digits() -> None:
    assert load_config() == load_config("digits") == load_config({"task": "digits"})


@pytest.mark.parametrize("name", list(presets()))
def test_the_schema_accepts_every_preset(name: str) -> None:
    assert problems(parse_yaml(preset_text(name)), schema()) == []


@pytest.mark.parametrize(
    "text",
    [
        "extends: digits\nprune: off",
        "extends: digits\nstudent: teacher",
        "extends: digits\ndata: {augment: crop}",
        "task: mine\nteacher: ./m.py:make\nstudent: ./m.py:small\ndata: ./d.py:make",
        "extends: digits\nprune: {ratio: 0.4}\nbenchmark: {max_latency_s: 1e-3}",
    ],
)
def test_the_schema_accepts_what_the_loader_accepts(text: str) -> None:
    load_config(parse_yaml(text))
    assert problems(parse_yaml(text), schema()) == []


@pytest.mark.parametrize(
    "text", ["extends: digits\nprun: off", "extends: digits\nprune: {ratio: 1.5}", "extends: digits\nmax_drop: much"]
)
def test_the_schema_refuses_what_the_loader_refuses(text: str) -> None:
    raw = parse_yaml(text)
    assert errors(raw)
    assert problems(raw, schema())


def test_the_schema_describes_every_field() -> None:
    found = schema()
    for kind in ("DistillSettings", "PruneSection", "TeacherSettings", "QuantizeSettings", "BenchmarkSettings"):
        fields = found["$defs"][kind]["properties"]
        assert all(one.get("description") for one in fields.values()), kind
    json.dumps(found, allow_nan=False)


def test_a_file_over_a_preset(write: Any) -> None:
    config = load_config(write("extends: digits\nprune: {ratio: 0.4}\nmax_drop: 2e-2"))
    plain = load_config("digits")
    assert config.prune is not None
    assert plain.prune is not None
    assert (config.prune.ratio, config.max_drop) == (0.4, 0.02)
    assert config.prune.epochs == plain.prune.epochs
    assert config.teacher == plain.teacher


def test_another_model_leaves_the_arguments_of_the_old_one_behind(write: Any) -> None:
    config = load_config(write("extends: digits\nstudent: depthwise\nteacher: {model: resnet8}"))
    assert config.student == ModelSettings(model="depthwise")
    assert (config.teacher.model, config.teacher.args) == ("resnet8", {})
    assert config.teacher.epochs == load_config("digits").teacher.epochs


def test_another_source_leaves_the_fields_of_the_old_one_behind(write: Any) -> None:
    config = load_config(write("extends: digits\ndata: {source: csv, path: a.csv, target: y}"))
    assert type(config.data) is CsvSettings and config.data.target == "y"


def test_overrides_win_and_are_yaml() -> None:
    config = load_config(
        "digits", ["prune.ratio=0.4", "teacher.args.widths=[4, 8]", "quantize=off", "distill.learning_rate=1e-3"]
    )
    assert config.prune is not None
    assert config.distill is not None
    assert config.prune.ratio == 0.4
    assert config.teacher.args == {"widths": [4, 8]}
    assert config.quantize is None
    assert config.distill.learning_rate == 0.001


@pytest.mark.parametrize(
    "overrides",
    [
        ["student=depthwise", "student.args.stem=8"],
        ["student.args.stem=8", "student.model=depthwise"],
    ],
)
def test_an_override_of_the_model_leaves_the_old_arguments_behind_in_any_order(overrides: list[str]) -> None:
    assert load_config("digits", overrides).student == ModelSettings(model="depthwise", args={"stem": 8})


def test_an_override_of_the_source_leaves_the_old_fields_behind() -> None:
    config = load_config("digits", ["data.path=a.csv", "data.target=y", "data.source=csv"])
    assert config.data == CsvSettings(path=Path("a.csv"), target="y")


@pytest.mark.parametrize("override", ["prune.ratio", "=3", "prune.ratio={", ""])
def test_an_override_that_is_none_is_refused(override: str) -> None:
    assert "--set" in errors("digits", override)[0]


@pytest.mark.parametrize("word", ["off", "false", '"off"', "no"])
def test_off_is_off(write: Any, word: str) -> None:
    text = "".join(f"{key}: {word}\n" for key in ("distill", "prune", "quantize", "export", "benchmark", "student"))
    config = load_config(write(f"extends: digits\n{text}"))
    off = (config.distill, config.prune, config.quantize, config.export, config.benchmark, config.student)
    assert off == (None,) * 6


@pytest.mark.parametrize("word", ["on", "true", "", "{}"])
def test_on_and_empty_are_the_defaults(word: str) -> None:
    raw = {"task": "mine", "teacher": "mlp", "data": "digits", "prune": yaml.safe_load(word) if word else None}
    assert load_config(raw).prune == PruneSection()


def test_shorthands(write: Any) -> None:
    config = load_config(write("task: mine\nteacher: resnet8\nstudent: teacher\ndata: digits"))
    assert config.teacher == TeacherSettings(model="resnet8")
    assert config.student == "teacher"
    assert config.data.source == "digits"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("1E5", 1e5), ("-2.5e+3", -2500.0), ("1_000e1", 10_000.0), ("0.5", 0.5), (".5", 0.5), ("3", 3)],
)
def test_numbers_are_numbers(text: str, value: float) -> None:
    found = parse_yaml(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["e3", "1e", "resnet20", "1.2.3", "./a.py:f", "12:30 pm"])
def test_words_stay_words(text: str) -> None:
    assert parse_yaml(text) == text


PLACES = (
    "task: mine\nteacher: {model: models.py:make, weights: w/t.safetensors}\nstudent: ./models.py:small\n"
    "data: {source: ../lib/data.py:make}"
)


def test_paths_in_a_file_start_at_the_file(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(PLACES, "configs/mine.yaml")
    config = load_config(path)
    assert config.teacher.model == f"{tmp_path}/configs/models.py:make"
    assert config.teacher.weights == tmp_path / "configs/w/t.safetensors"
    assert config.student == ModelSettings(model=f"{tmp_path}/configs/models.py:small")
    assert Path(str(config.data.source)) == tmp_path / "configs/../lib/data.py:make"
    monkeypatch.chdir(tmp_path)
    config = load_config("configs/mine.yaml")
    assert config.teacher.model == "./configs/models.py:make"
    assert config.teacher.weights == Path("configs/w/t.safetensors")
    assert config.data.source == "./configs/../lib/data.py:make"


def test_paths_on_the_command_line_start_at_the_current_folder(write: Any) -> None:
    path = write(PLACES, "configs/mine.yaml")
    config = load_config(path, ["teacher.weights=w.safetensors", "student=./here.py:make"])
    assert config.teacher.weights == Path("w.safetensors")
    assert config.student == ModelSettings(model="./here.py:make")


def test_references_that_are_no_files_stay_as_they_are(write: Any) -> None:
    config = load_config(write("task: a\nteacher: timm:resnet18\nstudent: pkg.models:make\ndata: digits", "c/a.yaml"))
    assert (config.teacher.model, config.student) == ("timm:resnet18", ModelSettings(model="pkg.models:make"))


def test_all_errors_at_once_each_with_place_value_and_mend() -> None:
    found = errors(
        {
            "extends": "digits",
            "prune": {"ratio": 1.2, "rounds": 3},
            "distill": {"temperature": 0, "loss": "dkd"},
            "student": {"args": {}, "model": 3},
            "search": {"temperature": [0, 5]},
            "max_dorp": 1,
            "seed": "x",
        }
    )
    text = "\n".join(found)
    assert len(found) == 8
    for part in (
        "prune.ratio=1.2: must be in [0, 1)",
        "0.3 removes 30 %",
        "prune.rounds: unknown key",
        "distill.temperature=0: must be in (0, 100]",
        "distill.loss='dkd': must be",
        "student.model=3",
        "search.temperature.0=0: must be in (0, 100]",
        "max_dorp: unknown key; did you mean max_drop?",
        "seed='x'",
    ):
        assert part in text, part


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"extends": "digit"}, "did you mean digits?"),
        ("digit", "did you mean digits?"),
        ({"task": "mine"}, "teacher: is missing"),
        ({"extends": "digits", "search": {"weight": [0.9, 0.1]}}, "first must not be above the second"),
        ({"extends": "digits", "search": {"trials": 2, "ratio": [0, 0.9]}}, "above prune.max_ratio=0.7"),
        ({"extends": "digits", "search": {"trials": 2, "learning_rate": [1, 1e9]}}, "above 100"),
        ({"extends": "digits", "export": "off", "benchmark": {"max_latency_s": 1}}, "latency budget"),
        ({"extends": "digits", "student": 3}, "must be a model, `teacher` or `off`"),
        ({"extends": "csv"}, "data.path: is missing"),
    ],
)
def test_what_is_wrong_is_said(raw: Any, said: str) -> None:
    assert any(said in line for line in errors(raw))


@pytest.mark.parametrize("text", ["a: [", "- a\n- b", "just words"])
def test_a_file_that_is_no_mapping_is_named(write: Any, text: str) -> None:
    assert "mine.yaml" in errors(write(text))[0]


def test_direct_construction_is_checked_too() -> None:
    with pytest.raises(ValueError, match="temperature"):
        DistillSettings(temperature=0)
    with pytest.raises(ValueError, match="unknown_key"):
        PruneSection(unknown_key=1)  # type: ignore[call-arg]


VARIANTS: list[Config] = [
    {},
    {"prune": "off", "quantize": False, "benchmark": "off"},
    {"distill": "off", "export": "off", "student": "off"},
    {"student": "teacher", "seed": 3, "target": "arm"},
    {"search": {"trials": 3, "ratio": [0.1, 0.2]}, "benchmark": {"batch_sizes": [1, 8], "max_latency_s": 1e-3}},
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_a_configuration_survives_being_written_down(changes: Config, tmp_path: Path) -> None:
    config = load_config({"extends": "digits", **changes})
    plain = json.loads(json.dumps(to_dict(config)))
    assert load_config(plain) == config == load_config(config)
    assert load_config(write_yaml(tmp_path / "a.yaml", plain)) == config
    assert config_hash(load_config(plain)) == config_hash(config)


def test_the_hash_stands_for_everything() -> None:
    hashes = {config_hash(load_config({"extends": "digits", **changes})) for changes in VARIANTS}
    assert len(hashes) == len(VARIANTS)


def test_the_hash_that_goes_into_a_model_knows_no_folders(write: Any) -> None:
    one, other = (load_config(write(PLACES, f"{folder}/mine.yaml")) for folder in ("one", "other"))
    assert config_hash(one) != config_hash(other)
    assert settings_hash(one) == settings_hash(other)
    assert settings_hash(load_config("digits")) != settings_hash(load_config("digits", ["seed=1"]))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("./kws.py:make_data", "kws"),
        ("mine.audio.words:make", "words"),
        ({"source": "csv", "path": "rows/train.csv.gz", "target": "y"}, "train"),
        ({"source": "imagefolder", "path": "../holiday pictures/"}, "holiday-pictures"),
        ("digits", "digits"),
    ],
)
def test_a_run_without_a_name_is_called_after_its_data(data: Any, name: str) -> None:
    assert load_config({"data": data, "teacher": "mlp"}).task == name
    assert load_config({"task": "mine", "data": data, "teacher": "mlp"}).task == "mine"


def test_a_folder_is_answered_by_the_configuration_in_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder\); name a YAML file"):
        load_config(tmp_path)
    (tmp_path / "config.yaml").write_text("extends: digits\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"is a folder\); name .*config.yaml$"):
        load_config(tmp_path)


def test_a_mapping_is_not_changed() -> None:
    given: Config = {"extends": "digits", "prune": {"ratio": 0.4}}
    load_config(given, ["prune.ratio=0.1", "student=mlp"])
    assert given == {"extends": "digits", "prune": {"ratio": 0.4}}


def test_a_configuration_is_frozen() -> None:
    config: RunConfig = load_config()
    with pytest.raises(AttributeError):
        config.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["utf-16", "utf-8-sig"])
def test_a_file_may_begin_with_the_mark_of_its_encoding(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("extends: digits\nseed: 3\n".encode(kind))
    assert load_config(tmp_path / "a.yaml").seed == 3


@pytest.mark.parametrize("content", [b"extends: digits\n# \xff\n", b"\xef\xbb\xbfa: 1\nb: \xe9"])
def test_a_file_in_another_encoding_is_refused_by_its_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    assert "line 2: is not UTF-8" in errors(tmp_path / "a.yaml")[0]


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "{}", "[]", "digits", "- a"])
def test_a_file_that_says_nothing_is_told_the_presets(text: str, write: Any) -> None:
    (line,) = errors(write(text))
    assert "mine.yaml: is " in line
    assert "extends: PRESET" in line
    assert "fashion-mnist" in line


def test_a_task_alone_that_is_no_preset_is_told_the_presets() -> None:
    text = "\n".join(errors({"task": "digit"}))
    assert "task='digit': is no preset" in text
    assert "did you mean digits?" in text


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("prune.batch_size", "it is set as teacher.batch_size or distill.batch_size"),
        ("distill.max_drop", "it is set as max_drop"),
        ("teacher.ratio", "it is set as prune.ratio"),
        ("epochs", "it is set as teacher.epochs or distill.epochs or prune.epochs"),
        ("prune.step", "did you mean steps?"),
        ("pruning", "did you mean prune?"),
        ("quantization", "did you mean quantize?"),
        ("prune.zeal", "known: ratio"),
        ("data.a.path", "known: "),
        ("teacher.mySettings", "teacher.mySettings: unknown key"),
    ],
)
def test_an_unknown_key_is_answered_by_its_home_or_by_what_it_may_stand_for(place: str, says: str) -> None:
    *sections, name = place.split(".", 1)
    raw: Config = {"extends": "digits", **({sections[0]: {name: 3}} if sections else {name: 3})}
    text = "\n".join(errors(raw))
    assert f"{place}: unknown key" in text
    assert says in text


def test_really_all_errors_at_once(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def make(width):\n    return None\n")
    path = write(
        "task: mine\nteacher: {model: nosuch, weights: gone.pt, epochs: 1e9999}\n"
        "student: {model: './mine.py:make', args: {widht: 3}}\n"
        "data: {source: csv, path: gone.csv, target: y, metric: './gone.py:score', test: 0.7, validation: 0.6}\n"
        "distill: {loss: kl, temperature: 0}\nprune: {ratio: 1.2, batch_size: 3}\nmax_drop: yes\n"
        "export: {load_with: [gone/python]}\nsearch: {weight: [0.9, 0.1]}\n"
    )
    with pytest.raises(UserError) as caught:
        load_config(path, ["a.b=[", "device=gpu"], find=True)
    text = str(caught.value)
    for part in (
        "--set 'a.b=[': line 1: not YAML",
        "teacher.model='nosuch': no such model. Built in: resnet",
        "teacher.weights=",
        "teacher.epochs=inf",
        "has no parameter 'widht'; did you mean 'width'?",
        "data: validation=0.6 and test=0.7 leave nothing for training",
        "distill.loss='kl': must be 'kd'",
        "distill.temperature=0: must be in (0, 100]",
        "prune.ratio=1.2: must be in [0, 1)",
        "prune.batch_size: unknown key",
        "max_drop=true: must be a number",
        "device='gpu'",
        "export.load_with=",
        "search.weight=[0.9, 0.1]",
    ):
        assert part in text, text
    assert len(text.splitlines()) == 14
    write(path.read_text().replace(", test: 0.7, validation: 0.6", ""))
    with pytest.raises(UserError) as caught:
        load_config(path, find=True)
    assert "data.path=" in str(caught.value)
    assert "data.metric=" in str(caught.value)


def test_what_is_named_is_looked_for_on_request_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raw = {"task": "mine", "teacher": "./gone.py:make", "data": "./gone.py:data"}
    assert load_config(raw).teacher.model == "./gone.py:make"
    with pytest.raises(UserError, match=r"teacher\.model=.*no file[\s\S]*data\.source=.*no file"):
        load_config(raw, find=True)


def test_a_mapping_of_python_may_hold_paths_and_numbers_but_no_objects() -> None:
    numpy = pytest.importorskip("numpy")
    config = load_config({"extends": "digits", "max_drop": numpy.float32(0.5), "teacher": {"weights": Path("a.pt")}})
    assert (config.max_drop, config.teacher.weights) == (0.5, Path("a.pt"))
    assert "teacher.model: is a object" in errors({"extends": "digits", "teacher": {"model": object()}})[0]
    for odd in ([1], {"source": "digits"}, 5, True):
        assert "data.source" in errors({"extends": "digits", "data": {"source": odd}})[0], odd
    endless: Config = {"extends": "digits"}
    endless["teacher"] = endless
    assert "nested too deeply" in errors(endless)[0]


ODD = [
    "inf",
    "nan",
    "-1",
    "1e23",
    "1e400",
    "9" * 400,
    "99999999999999999999",
    "yes",
    "2020-13-45",
    "1:30",
    "",
    "[]",
    "0x",
]


def places() -> list[str]:
    """Return every place of a configuration that holds a number."""
    numbers = {name for name, field in schema()["properties"].items() if field.get("type") in ("number", "integer")}
    sections = {
        "teacher": "TeacherSettings",
        "distill": "DistillSettings",
        "prune": "PruneSection",
        "quantize": "QuantizeSettings",
        "export": "ExportSettings",
        "benchmark": "BenchmarkSettings",
        "search": "SearchSettings",
        "data": "DigitsSettings",
    }
    for section, kind in sections.items():
        fields = schema()["$defs"][kind]["properties"].items()
        numbers |= {f"{section}.{name}" for name, field in fields if "imum" in str(field)}
    return sorted(numbers)


def test_numbers_have_bounds_and_are_refused_beyond_them() -> None:
    assert len(places()) >= 40
    for place in places():
        for value in ODD:
            try:
                config = load_config("digits", [f"{place}={value}"])
            except UserError as error:
                assert place.split(".")[0] in str(error), (place, value)
            else:
                assert "Infinity" not in json.dumps(to_dict(config))
                assert value not in ("inf", "1e400", "9" * 400, "2020-13-45", "yes"), (place, value)
