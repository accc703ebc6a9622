from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import distill
from distill.benchmarks import TARGETS, resolve_target, why_unmeasurable
from distill.benchmarks import target as target_module
from distill.errors import UserError


def pretend(monkeypatch: pytest.MonkeyPatch, family: str, flags: set[str] | None = None, gpus: int = 0) -> None:
    fakes: dict[str, Any] = {
        "family": lambda: family,
        "cpu_flags": lambda: None if flags is None else frozenset(flags),
        "gpus": lambda: [{"name": "GPU"}] * gpus,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(target_module, name, fake)


@pytest.mark.parametrize(
    ("name", "provider", "precision", "scheme"),
    [
        ("x86", "CPUExecutionProvider", "int8", "u8s8"),
        ("arm", "CPUExecutionProvider", "int8", "s8s8"),
        ("cuda", "CUDAExecutionProvider", "fp16", "none"),
        ("tensorrt", "TensorrtExecutionProvider", "int8", "s8s8"),
    ],
)
def test_each_target_has_its_form(name: str, provider: str, precision: str, scheme: str) -> None:
    target = resolve_target(name, "cpu", threads=3, batch_sizes=(2,))
    assert (target.provider, target.precision, target.scheme) == (provider, precision, scheme)
    assert (target.name, target.threads, target.batch_sizes) == (name, 3, (2,))


@pytest.mark.parametrize(
    ("device", "family", "name"), [("cpu", "x86", "x86"), ("cpu", "arm", "arm"), ("cuda", "x86", "cuda")]
)
def test_without_a_name_it_is_the_device(monkeypatch: pytest.MonkeyPatch, device: Any, family: str, name: str) -> None:
    pretend(monkeypatch, family, set())
    assert resolve_target(None, device).name == name


def test_a_named_target_wins_over_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "x86", set(), gpus=1)
    assert resolve_target("arm", "cuda").name == "arm"


@pytest.mark.parametrize(
    ("family", "flags", "reduced"),
    [
        ("x86", {"avx2", "avx512_vnni"}, False),
        ("x86", {"avx2", "avx_vnni"}, False),
        ("x86", {"avx2", "avx512f", "avx512bw"}, True),
        ("x86", None, True),
        ("arm", {"asimddp"}, True),
    ],
)
def test_reduce_range_unless_vnni_is_seen(
    monkeypatch: pytest.MonkeyPatch, family: str, flags: set[str] | None, reduced: bool
) -> None:
    pretend(monkeypatch, family, flags)
    target = resolve_target("x86")
    assert target.reduce_range is reduced
    unseen = family != "x86" or flags is None
    assert bool(target.warnings) is unseen


def test_wrong_arguments_name_field_value_and_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"target='gpu'.*x86, arm, cuda, tensorrt"):
        resolve_target("gpu")
    with pytest.raises(UserError, match=r"benchmark\.threads=0"):
        resolve_target("x86", threads=0)
    with pytest.raises(UserError, match=r"benchmark\.batch_sizes=\[\]"):
        resolve_target("x86", batch_sizes=())
    pretend(monkeypatch, "riscv64")
    with pytest.raises(UserError, match="riscv64"):
        resolve_target(None)


def test_what_cannot_be_timed_here_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "x86", set())
    assert why_unmeasurable(resolve_target("x86")) is None
    assert why_unmeasurable(resolve_target("arm")) == "this machine is x86-64, the target is arm"
    assert "no NVIDIA GPU" in (why_unmeasurable(resolve_target("cuda")) or "")
    pretend(monkeypatch, "arm", set(), gpus=1)
    assert why_unmeasurable(resolve_target("cuda")) is None
    assert why_unmeasurable(resolve_target("tensorrt")) is None
    assert why_unmeasurable(resolve_target("x86")) == "this machine is ARM, the target is x86"


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_answers_for_itself(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    assert target.precision == target.formats[0]
    assert (target.scheme == "none") == (target.precision == "fp16")
    assert target.saturates(frozenset()) == bool(target.relied_on(0.5)) == bool(target.exact)
    assert target.relied_on(0.0) is None
    assert {*target.exact} <= {ability for ability, _ in target.abilities}
    assert bool(target.processor) == target.is_profiled == bool(target.int8)
    shared = target.for_runner(cache=tmp_path)["provider_options"].items() - target.provider_options().items()
    assert len(shared) == 2 * len(target.caches)
    if target.processor:
        assert target.int8_sentence(frozenset()).endswith(".")


def test_no_room_but_its_own_knows_a_target_by_its_name() -> None:
    names = "|".join(TARGETS)
    compared = re.compile(rf"target\.name\s*(==|!=|in)\s|(==|!=)\s*\"({names}|\w+ExecutionProvider)\"")
    for folder in ("benchmarks", "export", "quantize", "prune", "deploy", "stages", "single_stage", "runtime", "verbs"):
        for path in sorted(Path(distill.__file__).parent.joinpath(folder).rglob("*.py")):
            lines = path.read_text(encoding="utf-8").splitlines()
            # What torch calls a device, and how a machine is read, are no targets.
            found = [line for line in lines if compared.search(line) and not re.search(r"device|family\(\)", line)]
            assert not found, f"{path}: {found}"
