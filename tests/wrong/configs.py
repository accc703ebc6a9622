"""Wrong configurations and command lines; all of these are refused before any data is read."""

from __future__ import annotations

import json

from wrong.corpus import Wrong

_DECISIONS = ("--decisions", "old.json")

CASES = [
    Wrong(name="unknown-key", settings={"teacher": {"epocs": 3}}, says=("teacher.epocs", "did you mean epochs")),
    Wrong(name="unknown-section", settings={"prunning": {"ratio": 0.3}}, says=("prunning", "did you mean prune")),
    Wrong(name="wrong-type", settings={"teacher": {"epochs": "many"}}, says=("teacher.epochs", "'many'", "integer")),
    Wrong(name="text-for-section", settings={"prune": "hard"}, says=("prune", "'hard'", "off")),
    Wrong(name="number-for-student", settings={"student": 5}, says=("student", "5", "teacher", "off")),
    Wrong(name="ratio-out-of-range", settings={"prune": {"ratio": 1.2}}, says=("prune.ratio", "1.2", "[0, 1)", "0.3")),
    Wrong(name="not-a-number", settings={"prune": {"ratio": float("nan")}}, says=("prune.ratio", "nan", "[0, 1)")),
    Wrong(
        name="two-errors-at-once",
        settings={"prune": {"ratio": 1.2}, "distill": {"temperature": -1}},
        says=("prune.ratio=1.2", "distill.temperature=-1", "(0, 100]"),
    ),
    Wrong(name="negative-seed", more=("--seed", "-1"), says=("seed=-1", "[0, 9223372036854775807]")),
    Wrong(name="seed-too-large", more=("--seed", str(10**30)), says=("seed=1000", "[0, 9223372036854775807]")),
    Wrong(name="opset-out-of-range", settings={"export": {"opset": 99}}, says=("export.opset", "99", "[17, 21]")),
    Wrong(name="unknown-device", settings={"device": "gpu"}, says=("device", "'gpu'", "'cuda'")),
    Wrong(name="unknown-target", more=("--target", "riscv"), says=("target", "'riscv'", "'arm'")),
    Wrong(name="unknown-loss", settings={"distill": {"loss": "kl"}}, says=("distill.loss", "'kl'", "kd")),
    Wrong(name="batch-size-zero", settings={"benchmark": {"batch_sizes": [0]}}, says=("benchmark.batch_sizes", "0")),
    Wrong(name="no-batch-size", settings={"benchmark": {"batch_sizes": []}}, says=("benchmark.batch_sizes", "[]")),
    Wrong(
        name="range-reversed",
        settings={"search": {"ratio": [0.6, 0.1]}},
        says=("search.ratio", "[0.6, 0.1]", "must not be above"),
    ),
    Wrong(
        name="range-out-of-bounds",
        settings={"search": {"ratio": [-1.0, 2.0], "temperature": [0.0, 4.0]}},
        says=("search.ratio", "search.temperature", "0"),
    ),
    Wrong(
        name="budget-without-export",
        settings={"export": "off", "benchmark": {"max_latency_s": 0.001}},
        says=("export", "off", "benchmark.max_latency_s"),
    ),
    Wrong(name="task-is-a-path", settings={"task": "../elsewhere"}, says=("task", "../elsewhere", "letters")),
    Wrong(name="task-missing", files={"config.yaml": "teacher: mlp\n"}, says=("task", "missing")),
    Wrong(name="bad-yaml", files={"config.yaml": "task: tiny\nteacher: [mlp\ndata: x\n"}, says=("config.yaml line 3",)),
    Wrong(
        name="key-twice",
        files={"config.yaml": "task: tiny\nteacher: mlp\nseed: 1\nteacher: resnet\n"},
        says=("config.yaml line 4", "'teacher'", "twice"),
    ),
    Wrong(name="yaml-list", files={"config.yaml": "- task\n- teacher\n"}, says=("config.yaml", "list", "Presets")),
    Wrong(name="yaml-of-itself", files={"config.yaml": "task: tiny\nteacher: &t [*t]\n"}, says=("line 2", "*t")),
    Wrong(name="config-not-text", files={"config.yaml": b"\x00\xff\xfe\x01"}, says=("config.yaml",)),
    Wrong(name="config-empty", files={"config.yaml": ""}, says=("config.yaml", "is empty", "Presets", "digits")),
    Wrong(
        name="yaml-that-runs-code",
        files={"config.yaml": "task: !!python/object/apply:os.mkdir [ran]\n"},
        says=("config.yaml line 1", "python"),
    ),
    Wrong(name="unknown-preset", words=("run", "digit", "--smoke", "--out", "run"), says=("digit", "mean digits")),
    Wrong(name="config-missing", words=("run", "mine.yaml", "--out", "run"), says=("mine.yaml", "neither a file")),
    Wrong(name="config-is-a-folder", words=("run", "run", "--out", "run"), says=("run", "folder")),
    Wrong(name="extends-unknown", settings={"extends": "digitz"}, says=("extends", "digitz", "digits")),
    Wrong(name="extends-a-list", settings={"extends": ["digits"]}, says=("extends", "['digits']", "digits")),
    Wrong(name="set-without-equals", more=("--set", "prune.ratio"), says=("prune.ratio", "section.key=value")),
    Wrong(name="set-unknown-key", more=("--set", "prune.ration=0.3"), says=("prune.ration", "did you mean ratio")),
    Wrong(name="set-unknown-section", more=("--set", "prunne.ratio=0.3"), says=("prunne", "did you mean prune")),
    Wrong(name="set-bad-yaml", more=("--set", "prune.ratio=[0.3"), says=("prune.ratio", "not YAML")),
    Wrong(name="set-too-deep", more=("--set", "seed.of.mine=3"), says=("seed",)),
    Wrong(name="unknown-option", more=("--outt", "x"), says=("--outt",)),
    Wrong(name="unknown-verb", words=("rnu",), says=("rnu",)),
    Wrong(name="option-of-wrong-type", more=("--trials", "some"), says=("--trials", "integer")),
    Wrong(name="decisions-missing", more=_DECISIONS, says=("--decisions old.json", "run.json")),
    Wrong(name="decisions-not-json", more=_DECISIONS, files={"old.json": "{"}, says=("old.json", "run.json")),
    Wrong(name="decisions-of-something-else", more=_DECISIONS, files={"old.json": "[]"}, says=("old.json", "run.json")),
    Wrong(
        name="decisions-of-another-form",
        more=_DECISIONS,
        settings={"prune": {"ratio": 0.5}},
        files={"old.json": json.dumps({"decisions": {"prune": {"kept": True}}})},
        says=("--decisions old.json", "prune.reason", "required"),
    ),
    Wrong(name="validate-unknown-key", words=("validate", "config.yaml"), settings={"seeed": 1}, says=("mean seed",)),
]
