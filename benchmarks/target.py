"""What a model ships to: a record for each kind of device, which answers for everything that depends on the target."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distill.benchmarks.runner import CPU as CPU
from distill.benchmarks.timing.machine import cpu_flags, family, gpus
from distill.documents import Json
from distill.errors import UserError

TargetName = Literal["x86", "arm", "cuda", "tensorrt"]
CUDA = "CUDAExecutionProvider"
Ability = tuple[str, tuple[str, ...]]
"""What a processor may be able to do, as a user may have read of it, and the flags any of which says so."""


@dataclass(frozen=True)
class Target:
    """A kind of device, and the form of model that it runs fastest.

    `precision` is what the shipped file is made of, `scheme` the types of activations and weights in an int8 file,
    `reduce_range` whether weights keep to 7 bits so that a processor that is not `exact` does not saturate. `measure`
    is a command that has things timed on the device itself, where that is another machine: it gets a bundle folder and
    brings back the result of its `runner.py`. `options` go to the provider beside or instead of `defaults`, our own.

    The rest says what the kind of device is like. `formats` are the forms of a file that may be the fastest, cheapest
    first. `symmetric`: its integer kernels want activations with a zero point of 0, biases added in float, and
    normalisations left as they are. `fused` are the int8 schemes that its provider runs as integer kernels. `device` is
    where inputs lie, in torch's word. `fallbacks` are the providers for nodes that its own cannot run, before the CPU.
    `caches` are those of the provider whose options end in `_enable` and `_path`; `timeout_s` is the time after which a
    timing that does not end is stopped. A target that is a processor has a name for it, `processor`, and `abilities`;
    those of `exact` make it add the products of int8 numbers in 32 bits (none: all such processors do), and `isa` names
    them in a file that relies on them. `int8` says what abilities mean for int8, the best first.
    """

    name: str
    provider: str
    precision: Literal["int8", "fp16"]
    scheme: Literal["u8s8", "s8s8", "none"]
    reduce_range: bool = False
    threads: int = 1
    batch_sizes: tuple[int, ...] = (1, 32)
    measure: str | None = None
    options: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    formats: tuple[Literal["int8", "dynamic", "int4", "fp16"], ...] = ("int8", "dynamic", "int4")
    symmetric: bool = False
    fused: tuple[str, ...] = ("u8s8",)
    device: Literal["cpu", "cuda"] = "cpu"
    defaults: tuple[tuple[str, str], ...] = ()
    fallbacks: tuple[str, ...] = ()
    caches: tuple[str, ...] = ()
    timeout_s: float = 300.0
    processor: str = ""
    abilities: tuple[Ability, ...] = ()
    exact: tuple[str, ...] = ()
    isa: str = ""
    int8: tuple[tuple[tuple[str, ...], str], ...] = ()

    def facts(self) -> dict[str, Json]:
        """Return what tells one target from another, as records and keys of stages hold it."""
        names = ("name", "provider", "precision", "scheme", "reduce_range", "threads", "batch_sizes", "measure")
        return {name: getattr(self, name) for name in (*names, "options", "warnings")}

    @property
    def is_profiled(self) -> bool:
        """Whether the time of each node can be read from a profile: on this machine's own processor."""
        return self.measure is None and self.provider == CPU

    def provider_options(self) -> dict[str, str]:
        """Return the provider's options: what decides a latency is recorded, not left to a default."""
        return dict((*self.defaults, *self.options))

    def for_runner(self, cache: Path | None = None) -> dict[str, Json]:
        """Return where a file runs, as `runner.py` takes it; compiled engines are shared in the folder `cache`."""
        cached: dict[str, str] = {}
        for name in self.caches if cache is not None else ():
            cached |= {f"{name}_enable": "1", f"{name}_path": str(cache)}
        options = self.provider_options() | cached
        return {
            "provider": self.provider,
            "provider_options": options,
            "device": self.device,
            "fallbacks": self.fallbacks,
        }

    def has(self, flags: Iterable[str], *abilities: str) -> bool:
        """Tell whether a processor with these flags has one of some abilities."""
        return any(name in abilities and set(needed) & set(flags) for name, needed in self.abilities)

    def saturates(self, flags: Iterable[str] | None) -> bool:
        """Tell whether int8 sums can saturate on such a processor; None for flags that cannot be seen."""
        return bool(self.exact) and not self.has(flags or (), *self.exact)

    def relied_on(self, saturating_share: float) -> str | None:
        """Name the instructions that an int8 file relies on, so many of whose weight pairs can saturate; or None."""
        return self.isa if self.exact and saturating_share > 0 else None

    def int8_sentence(self, flags: Iterable[str]) -> str:
        """Say in one sentence what a processor's flags mean for int8."""
        return next(sentence for abilities, sentence in self.int8 if not abilities or self.has(flags, *abilities))


_EXACT = "int8 products are added up exactly in 32 bits"
_RECORDS = (
    Target(
        "x86",
        *(CPU, "int8", "u8s8"),
        processor="x86-64",
        abilities=(
            ("AVX2", ("avx2",)),
            ("AVX512", ("avx512f",)),
            ("VNNI", ("avx512_vnni", "avx_vnni")),
            ("AMX int8", ("amx_int8",)),
            ("bf16", ("avx512_bf16", "amx_bf16")),
        ),
        exact=("VNNI", "AMX int8"),
        isa="vnni",
        int8=(
            (
                ("VNNI", "AMX int8"),
                f"With VNNI {_EXACT}: int8 uses all 8 bits, and is where the speed-up comes from.",
            ),
            (
                ("AVX2",),
                "Without VNNI an int8 product can overflow 16 bits, so weights keep to 7 bits (quantize.reduce_range), "
                "and int8 gains less speed.",
            ),
            ((), "Without AVX2 int8 is hardly faster than float32; expect a smaller file, not a faster one."),
        ),
    ),
    Target(
        "arm",
        *(CPU, "int8", "s8s8"),
        fused=("u8s8", "s8s8"),
        processor="ARM",
        abilities=(
            ("dotprod", ("asimddp",)),
            ("i8mm", ("i8mm",)),
            ("bf16", ("bf16",)),
        ),
        int8=(
            (
                ("i8mm", "dotprod"),
                f"With dot-product instructions {_EXACT}: int8 (signed, s8s8) is fast here.",
            ),
            ((), "Without dot-product instructions int8 gains little speed; expect a smaller file."),
        ),
    ),
    Target(
        "cuda",
        *(CUDA, "fp16", "none"),
        formats=("fp16",),
        device="cuda",
        # TF32 stays on, as for everybody else on a CUDA GPU: switched off, the float32 baseline would look slow.
        defaults=(("device_id", "0"), ("use_tf32", "1"), ("cudnn_conv_algo_search", "EXHAUSTIVE")),
    ),
    Target(
        "tensorrt",
        *("TensorrtExecutionProvider", "int8", "s8s8"),
        formats=("int8", "fp16"),
        symmetric=True,
        device="cuda",
        defaults=(("device_id", "0"), ("trt_fp16_enable", "1"), ("trt_int8_enable", "1")),
        fallbacks=(CUDA,),
        # An engine takes minutes to build and comes out different each time: all sessions of a file share one.
        caches=("trt_engine_cache", "trt_timing_cache"),
        timeout_s=1800.0,
    ),
)
TARGETS: dict[str, Target] = {target.name: target for target in _RECORDS}
"""Every target by name. A processor's target has the name of its family (`machine.family`)."""


def resolve_target(
    name: str | None,
    device: Literal["cpu", "cuda"] = "cpu",
    *,
    threads: int | None = None,
    batch_sizes: Sequence[int] = (1, 32),
    measure: str | None = None,
) -> Target:
    """Look up the target called `name`; with None the device itself (`cuda`, or this machine's own processor).

    `threads` None means 1, the count at which two files compare best. Raises UserError for an unknown name, for a
    count below 1, and where no name is given on a processor that is neither x86 nor ARM. `measure` is the command that
    has things timed on the device.
    """
    named = name if name is not None else "cuda" if device == "cuda" else family()
    if named not in TARGETS:
        names = ", ".join(TARGETS)
        if name is None:
            raise UserError(f"target: there is none for this machine's processor, {named!r}; name one of {names}")
        raise UserError(f"target={name!r}: must be one of {names}")
    if threads is not None and threads < 1:
        raise UserError(f"benchmark.threads={threads}: must be at least 1")
    sizes = tuple(batch_sizes)
    if not sizes or min(sizes) < 1:
        raise UserError(f"benchmark.batch_sizes={list(sizes)}: must hold at least one size, each at least 1")
    target = _safe_for_int8(TARGETS[named])
    return dataclasses.replace(target, threads=threads or 1, batch_sizes=sizes, measure=measure)


def _safe_for_int8(target: Target) -> Target:
    """Make a target safe for the processor at hand, or for any where that one cannot be seen."""
    if not target.exact:
        return target
    flags, isa = cpu_flags() if family() == target.name else None, target.isa.upper()
    unseen = (
        f"target {target.name}: the flags of its processor cannot be seen from here, so int8 weights keep to 7 "
        f"bits (reduce_range), which is safe without {isa}; set quantize.reduce_range=false if it has {isa}"
    )
    warnings = (unseen,) if flags is None else ()
    return dataclasses.replace(target, reduce_range=target.saturates(flags), warnings=warnings)


def target_of_provider(provider: str) -> Target:
    """Make a target of any execution provider, for measuring alone: what a file for it looks like is not known here.

    A provider that one of the named targets has gives that target. Raises UserError for a name that onnxruntime does
    not know.
    """
    import onnxruntime

    names = {name.removesuffix("ExecutionProvider").lower(): name for name in onnxruntime.get_all_providers()}
    short = provider.lower().removesuffix("executionprovider")
    if short not in names:
        raise UserError(f"--provider {provider}: onnxruntime knows {', '.join(sorted(names))}")
    if names[short] == CPU:
        return resolve_target(None)
    record = next((target for target in TARGETS.values() if target.provider == names[short]), None)
    return record or Target(short, names[short], "int8", "none")


def why_unmeasurable(target: Target) -> str | None:
    """Say why nothing can be timed for `target` on this machine, or None where it can be tried.

    Only the machine is asked. A GPU that is there with a provider that does not load is an error of the set-up and
    shows when a session is opened.
    """
    if target.measure is not None:
        return None
    if target.processor and family() != target.name:
        here = TARGETS[family()].processor if family() in TARGETS else family()
        return f"this machine is {here}, the target is {target.name}"
    if target.device == "cuda" and not gpus():
        return f"this machine has no NVIDIA GPU that can be seen, the target is {target.name}"
    return None
