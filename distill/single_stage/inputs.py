"""The model that the verb `prune` starts from, its inputs, and an example of them."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.bounds import MOST_VALUES
from distill.errors import NotMeasuredError, UserError
from distill.prune.modules import Example, run_alike
from distill.references.calls import why_call_failed
from distill.references.models import build, require_storable
from distill.references.weights import load_weights
from distill.single_stage.options import ModuleLike, PruneOptions, QuantizeOptions, read_arguments, shown
from distill.wording import shortened

Take = Callable[[Any], Tensor]
Shapes = dict[str, tuple[int, ...]]
_SIZE = (3, 224, 224)
_TOKENS = 128  # tokens of a made-up text
_SETTING = re.compile(r"\bprune\.(importance|learning_rate|speedup|macs|parameters|ratio)\b")
_WHERE = "say by --logits where they are: a key, an attribute, or a place in a tuple, from 0"


def logits_in(name: str | None, *, mend: str = _WHERE) -> Take:
    """Return what takes the logits out of a model's output: a key, an attribute or a place in a tuple.

    None takes a tensor as it is, and `logits` of a mapping or an object.
    """

    def take(output: Any) -> Tensor:
        if name is None and isinstance(output, Tensor):
            return output
        key = "logits" if name is None else name
        if isinstance(output, Mapping):
            logits = output.get(key)
        elif isinstance(output, list | tuple) and key.isdecimal():
            logits = output[int(key)] if int(key) < len(output) else None
        else:
            logits = getattr(output, key, None)
        if isinstance(logits, Tensor):
            return logits
        content = f" with the keys {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
        content = f" of {len(output)}" if isinstance(output, list | tuple) else content
        without = "" if name is None else f", which holds no tensor {name!r}"
        raise UserError(f"forward returns a {type(output).__name__}{content}{without}; {mend}")

    return take


@dataclass(frozen=True)
class Inputs:
    """The inputs of a model in the order of its export: those that are passed by position, then those by name.

    `take` takes the logits out of what forward returns.
    """

    args: tuple[str, ...]
    kwargs: tuple[str, ...]
    take: Take

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [*self.args, *self.kwargs]

    def call(self, tensors: Mapping[str, Tensor]) -> Example:
        """Return the arguments of one forward call."""
        return tuple(tensors[name] for name in self.args), {name: tensors[name] for name in self.kwargs}


def built(
    reference: ModuleLike, arguments: Mapping[str, Any], weights: Path | None, seed: int, *, field: str = "--model"
) -> tuple[nn.Module, tuple[str, ...]]:
    """Build a model on the CPU in eval mode, and load its weights where there are some; a module is copied.

    Returns:
        the model, and remarks on how the weights were read.

    Raises:
        UserError: it cannot be built, or the weights are not its own.
    """
    model = build(reference, arguments, field=field, seed=seed)
    require_storable(model, reference, field)
    model = model.cpu()
    remarks = () if weights is None else load_weights(model, weights, field="--weights")
    return model.eval(), remarks


def drawn_weights(
    options: PruneOptions | QuantizeOptions, reference: ModuleLike, model: nn.Module, consequence: str
) -> tuple[str, ...]:
    """Say when a parameter has other values with another seed: it was drawn, and nobody trained it.

    A module that is given as such has the weights that it has, whoever made them. ``reference`` is what ``model`` was
    built from, ``consequence`` what its result does not mean then.
    """
    if options.weights is not None or isinstance(reference, nn.Module):
        return ()
    other = dict(built(reference, read_arguments(options.arg), None, options.seed + 1)[0].named_parameters())
    drawn = (key for key, value in model.named_parameters() if key in other and not value.equal(other[key]))
    return tuple(
        f"the weights of {shown(reference)} are random ({key} differs with another seed): {consequence}; give trained "
        "ones by --weights"
        for key in islice(drawn, 1)
    )


def named_inputs(model: nn.Module, names: Sequence[str], take: Take) -> Inputs:
    """Say how inputs of these names are passed: those of forward's parameters by name, the others in their order.

    What forward has no place for goes by name where it takes any name, as ``forward(**batch)`` does.

    Raises:
        UserError: forward does not take them.
    """
    takes = _signature(model)
    by_name, kinds = parameters_of(model), [parameter.kind for parameter in takes.parameters.values()]
    if inspect.Parameter.VAR_KEYWORD in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        free = [name for name, taken in takes.parameters.items() if taken.kind in by_place and name not in names]
        by_name += [name for name in names if name not in by_name][len(free) :]
    inputs = Inputs(tuple(n for n in names if n not in by_name), tuple(n for n in names if n in by_name), take)
    try:
        takes.bind(*inputs.args, **dict.fromkeys(inputs.kwargs))
    except TypeError as error:
        raise UserError(
            f"forward{takes} does not take {', '.join(names) or 'nothing'} ({error}); give it "
            f"{', '.join(by_name) or 'inputs that it has parameters for'}"
        ) from error
    return inputs


def parameters_of(model: nn.Module) -> list[str]:
    """Name the parameters of forward that take a value by name."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, parameter in _signature(model).parameters.items() if parameter.kind in kinds]


def made_up(model: nn.Module, reference: str, shapes: Sequence[str], rows: int, seed: int) -> dict[str, Tensor]:
    """Draw rows of inputs: of the shapes that the user says, or of those that the model's library tells.

    Floats are standard normal, tokens any of the vocabulary, masks ones.

    Raises:
        UserError: nothing tells the shape of the inputs, or it is not written as it should be.
    """
    random = torch.Generator().manual_seed(seed)
    if reference.startswith("transformers:"):
        config: Any = model.config
        if hasattr(config, "vocab_size"):
            return _tokens(int(config.vocab_size), shapes, rows, random)
    by_name = _read_shapes(model, shapes) if shapes else _library_shapes(model, reference)
    return {name: torch.randn((rows, *shape), generator=random) for name, shape in by_name.items()}


def _tokens(vocabulary: int, shapes: Sequence[str], rows: int, random: torch.Generator) -> dict[str, Tensor]:
    sizes = _shape(shapes[0], shapes[0]) if shapes else (_TOKENS,)
    if len(shapes) > 1 or len(sizes) != 1:
        raise UserError(f"--input {' '.join(shapes)}: a model of text takes a number of tokens, such as --input 128")
    ids = torch.randint(min(1, vocabulary - 1), vocabulary, (rows, *sizes), generator=random)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _read_shapes(model: nn.Module, entries: Sequence[str]) -> Shapes:
    """Read 3,224,224 for a model of one input, and name=3,224,224 for one of several."""
    if len(entries) == 1 and "=" not in entries[0]:
        first = next(iter(parameters_of(model)), "x")
        return {first: _shape(entries[0], entries[0])}
    shapes: Shapes = {}
    for entry in entries:
        name, equals, sizes = entry.partition("=")
        if not equals or not name:
            raise UserError(f"--input {entry}: of several inputs each needs its name, such as --input image=3,32,32")
        shapes[name] = _shape(sizes, entry)
    return shapes


def _shape(text: str, entry: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(size) for size in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise UserError(f"--input {entry}: must be the shape of one sample in whole numbers, such as 3,224,224")
    if math.prod(sizes) > MOST_VALUES:
        raise UserError(f"--input {shortened(entry)}: is too large to draw; {MOST_VALUES} values are most")
    return sizes


def _library_shapes(model: nn.Module, reference: str) -> Shapes:
    first = next(iter(parameters_of(model)), "x")
    kind = reference.partition(":")[0]
    if kind == "timm":
        about: Any = getattr(model, "pretrained_cfg", None) or {}
        return {first: tuple(int(size) for size in about.get("input_size") or _SIZE)}
    if kind == "torchvision":
        return {first: _SIZE}
    if kind == "transformers":
        config: Any = model.config
        size = config.image_size if hasattr(config, "image_size") else _SIZE[-1]
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        return {"pixel_values": (int(getattr(config, "num_channels", 3)), *map(int, sides))}
    raise UserError(
        f"{reference}: say the shape of one sample, such as --input 3,32,32 (NAME=SHAPE for each of several inputs), "
        "or give rows by --data; inputs of whole numbers need --data"
    )


def logits_of(model: nn.Module, example: Example, take: Take) -> Tensor:
    """Return the logits of one call without gradients.

    Raises:
        UserError: the model does not take the inputs, or what it returns holds no logits.
    """
    args, kwargs = example
    try:
        with torch.no_grad():
            output = run_alike(model, example)
    except Exception as error:  # it is the user's own forward
        raise UserError(
            f"forward fails: {why_call_failed(error, model, args, kwargs)}; the shape of one sample is --input, rows "
            "of other types and shapes are --data"
        ) from error
    logits = take(output)
    rows = len(next(iter((*args, *kwargs.values()))))
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.ndim < 1 or len(logits) != rows:
        kind = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"forward returns {kind} for {rows} rows; it must return floating-point logits [rows, …]")
    return logits


def _signature(model: nn.Module) -> inspect.Signature:
    """Return what forward takes; of one that is not written in Python, anything."""
    try:
        return inspect.signature(model.forward)
    except (TypeError, ValueError):
        return inspect.signature(lambda *args: None)


@contextmanager
def told_of(model: str) -> Iterator[None]:
    """Let errors that know a module or a graph only say of which model it is, and call settings by their options."""
    try:
        yield
    except (UserError, NotMeasuredError) as error:
        text = _SETTING.sub(lambda match: "--" + match[1].replace("_", "-"), str(error))
        text = f"--{text}" if text.startswith("ignore: ") else text
        plain = text.startswith(("--", model))
        raise type(error)(text if plain else "\n".join(f"{model}: {line}" for line in text.splitlines())) from error
