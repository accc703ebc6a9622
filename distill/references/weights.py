"""Weights from the user's file into a model: which of its state dicts, below which prefix, is found by the names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import UserError
from distill.references.checkpoints import read_checkpoint
from distill.references.functions import label
from distill.references.unwrapping import dtype_name, not_finite
from distill.wording import first_of

if TYPE_CHECKING:
    from torch import Tensor, nn

State = Mapping[str, Any]
_USUAL = ("", "state_dict", "model_state_dict", "model", "net", "network", "weights", "params", "module", "teacher")
_DEEPEST = 3  # levels of mappings around a state dict
# Written by tools that count (thop), average (swa_utils) or number batches; nothing that a model computes with.
_COUNTERS = ("total_ops", "total_params", "n_averaged", "num_batches_tracked")
_WRAPPERS = ("_orig_mod", "module")  # what torch.compile and DataParallel call the module inside


def load_weights(model: nn.Module, path: Path, *, field: str) -> tuple[str, ...]:
    """Load weights into a model, in place, from safetensors or a checkpoint that torch reads with ``weights_only``.

    The state dict may lie in mappings, such as ``{"net": …}``, and its names below a prefix, such as ``_orig_mod.`` or
    ``model.``: of all state dicts that of the most names that are the model's is read.

    Returns:
        remarks that say what was read and what was left out; none where the file is the model's state dict itself.

    Raises:
        UserError: no such file, not weights, or weights of another model; ``field`` opens the message.
    """
    from distill.state_dicts import load_state

    subject = label(path, field)
    expected = model.state_dict()
    choice, others = _chosen(read_checkpoint(path, subject), expected, subject)
    state = choice.filled(expected)
    _require_equal_names(choice, state, expected, subject)
    load_state(model, {name: state[name] for name in expected})
    bad = not_finite(model)
    if bad is not None:
        raise UserError(f"{subject}: {bad}; its values are not finite")
    return tuple(f"{subject}: {remark}" for remark in choice.remarks(others))


@dataclass(frozen=True)
class _Candidate:
    """A state dict of a checkpoint, as the model calls its tensors.

    `place` are the keys that lead to it, `prefix` is what its names begin with beyond the model's, and `added` what the
    model's begin with beyond its. `names` are those of the checkpoint that are read, `unread` those that are not;
    `matches` counts the model's names that it has, and of these the equal shapes.
    """

    place: str
    state: State
    prefix: str
    added: str
    names: frozenset[str]
    unread: tuple[str, ...]
    matches: tuple[int, int]

    @property
    def rank(self) -> int:
        """The place among names that are usual for a model; the last for others."""
        name = self.prefix.rstrip(".") if self.place in ("", "state_dict") and self.prefix else self.place
        return _USUAL.index(name) if name in _USUAL else len(_USUAL)

    def filled(self, expected: State) -> dict[str, Any]:
        """Return the state with what may be missing in it: counters of batches, and second names of a shared tensor."""
        state = dict(self.state)
        names: dict[int, str] = {}
        for name, value in expected.items():
            if name in state and value.numel():
                names.setdefault(value.data_ptr(), name)
        for name, value in expected.items():
            if name not in state and name.endswith("num_batches_tracked"):
                state[name] = value
            elif name not in state and value.numel() and value.data_ptr() in names:
                state[name] = state[names[value.data_ptr()]]
        return state

    @property
    def description(self) -> str:
        """Say where it lies and what its names are stripped of; empty where it is the whole file as it is."""
        parts = [f"under {self.place!r}" if self.place else "", f"names without {self.prefix!r}" if self.prefix else ""]
        return ", ".join(part for part in [*parts, f"names after {self.added!r}" if self.added else ""] if part)

    def remarks(self, others: list[str]) -> Iterator[str]:
        """Say what was read, and what was not."""
        if self.description:
            yield f"read {self.description}"
        if self.unread:
            yield f"left out {len(self.unread)} names that are not the model's: {first_of(self.unread, 3)}"
        if others:
            yield f"{first_of(others, 3)} would fit, too; to use it save it in a file of its own"


def _chosen(checkpoint: State, expected: State, subject: str) -> tuple[_Candidate, list[str]]:
    """Return the state dict that fits best, and the places of others that fit as well."""
    import torch

    candidates = [
        candidate for place, state in _state_dicts(checkpoint) for candidate in _renamed(place, state, expected)
    ]
    if not candidates:
        strange = next((f"{key} is a {type(item).__name__}" for key, item in checkpoint.items()), "it is empty")
        raise UserError(
            f"{subject}: {strange}; must be a state dict, names to tensors, such as model.state_dict(), or hold one"
        )
    most = max(candidate.matches for candidate in candidates)
    best = [candidate for candidate in candidates if candidate.matches == most]
    if not most[0]:
        trains = "param_groups" in checkpoint or any("optimizer" in str(key) for key in checkpoint)
        optimizer = " (an optimizer's state)" if trains else ""
        names = [name for name, value in candidates[0].state.items() if isinstance(value, torch.Tensor)]
        raise UserError(
            f"{subject}: weights of another model: it has the keys {first_of(map(str, checkpoint), 3)}{optimizer}, and "
            f"none of its names is the model's (missing: {first_of(sorted(expected), 3)}; "
            f"unknown: {first_of(sorted(names), 3)})"
        )
    best.sort(key=lambda candidate: candidate.rank)
    alike = list(dict.fromkeys(other.place or other.prefix for other in best if other.names != best[0].names))
    if most != (len(expected), len(expected)):
        return best[0], []
    if alike and best[0].rank == len(_USUAL):
        places = first_of([best[0].place or best[0].prefix, *alike], 3)
        raise UserError(f"{subject}: {places} fit alike; save the one that is meant in a file of its own")
    return best[0], alike


def _state_dicts(value: State, place: str = "", depth: int = 0) -> Iterator[tuple[str, State]]:
    """Yield the mappings of names to tensors in a checkpoint, with the keys that lead there."""
    import torch

    if all(isinstance(key, str) for key in value) and any(isinstance(item, torch.Tensor) for item in value.values()):
        # A nested tensor has no shape that could be compared, and is no weight of any model.
        yield place, {key: item for key, item in value.items() if not getattr(item, "is_nested", False)}
    if depth < _DEEPEST:
        for key, item in value.items():
            if isinstance(item, Mapping):
                yield from _state_dicts(item, f"{place}.{key}".lstrip("."), depth + 1)


def _renamed(place: str, state: State, expected: State) -> Iterator[_Candidate]:
    """Call the tensors as the model does: without or with a prefix, and without what wrappers add in the middle."""
    import torch

    wrappers = [part for part in _WRAPPERS if any(part in name.split(".") for name in state)]
    for inside in ((), wrappers) if wrappers else ((),):
        plain = {".".join(part for part in name.split(".") if part not in inside): name for name in state}
        for prefix, added in _prefixes(plain, expected):
            names = {f"{added}{new.removeprefix(prefix)}": old for new, old in plain.items() if new.startswith(prefix)}
            known = names.keys() & expected.keys()
            alike = sum(getattr(state[names[name]], "shape", None) == expected[name].shape for name in known)
            tensors = {new: state[old] for new, old in names.items() if new in known or torch.is_tensor(state[old])}
            yield _Candidate(
                place=place,
                state=tensors,
                prefix=f"{'. or '.join(inside)}." if inside else prefix,
                added=added,
                names=frozenset(f"{place}.{names[new]}" for new in known),
                unread=tuple(sorted(set(state) - {names[new] for new in tensors})),
                matches=(len(known), alike),
            )


def _prefixes(names: Mapping[str, str], expected: State) -> Iterator[tuple[str, str]]:
    """Yield what all names may begin with beyond the model's, the most frequent first; then the reverse."""
    yield "", ""
    for longer, shorter, turned in ((names, expected, False), (expected, names, True)):
        counts = Counter(name[: len(name) - len(tail)] for name in longer for tail in _tails(name) if tail in shorter)
        for prefix, _ in counts.most_common(3):
            yield ("", prefix) if turned else (prefix, "")


def _tails(name: str) -> Iterator[str]:
    """Yield a.b.c as b.c and c."""
    while "." in name:
        name = name.partition(".")[2]
        yield name


def _require_equal_names(choice: _Candidate, state: State, expected: State, subject: str) -> None:
    """Refuse a state dict that is not the model's: by names, shapes and types."""
    import torch

    extra = sorted(name for name in state if name not in expected and name.rpartition(".")[2] not in _COUNTERS)
    missing = sorted(expected.keys() - state.keys())
    known = {name: state[name] for name in expected if name in state}
    for name, item in known.items():
        if not torch.is_tensor(item):
            raise UserError(
                f"{subject}: {name} is a {type(item).__name__}; must be a state dict, names to tensors, such as "
                "model.state_dict()"
            )
    differ = {name: value for name, value in known.items() if value.shape != expected[name].shape}
    if missing or extra or differ:
        parts = [
            f"read {choice.description}" if choice.description else "",
            f"missing: {first_of(missing, 3)}" if missing else "",
            f"unknown: {first_of(extra, 3)}" if extra else "",
            *(f"{n} is {tuple(v.shape)}, the model has {tuple(expected[n].shape)}" for n, v in [*differ.items()][:3]),
            "" if missing or extra else _other_classes(differ, expected),
        ]
        raise UserError(f"{subject}: weights of another model ({'; '.join(part for part in parts if part)})")
    for name, value in known.items():
        _require_numbers(name, value, expected[name], subject)


def _other_classes(differ: State, expected: State) -> str:
    """Say that only the last layer's outputs differ in number, where they do."""
    layers = {name.rpartition(".")[0] for name in differ}
    if len(layers) != 1 or not all(value.ndim and expected[name].ndim for name, value in differ.items()):
        return ""
    theirs, ours = next((len(value), len(expected[name])) for name, value in differ.items())
    return (
        "" if theirs == ours else f"build the model with {theirs} outputs of {layers.pop()!r}, not {ours}: by its args"
    )


def _require_numbers(name: str, value: Tensor, own: Tensor, subject: str) -> None:
    import torch

    if value.is_quantized or value.is_floating_point() != own.is_floating_point():
        raise UserError(f"{subject}: {name} is {dtype_name(value)}, the model's {dtype_name(own)}; give float")
    if value.is_meta:
        raise UserError(f"{subject}: {name} was saved from the device meta and has no values; save the trained model")
    if value.layout != torch.strided:
        raise UserError(f"{subject}: {name} is sparse; save it dense, by to_dense()")
