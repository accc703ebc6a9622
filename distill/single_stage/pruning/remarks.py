"""Every remark that `prune` makes on what it made and on what it started from, each with what mends it."""

from __future__ import annotations

from torch import nn

from distill.prune import PruneRecord
from distill.prune.scores.importance import IMPORTANCES
from distill.references.libraries import OF_WEIGHTS
from distill.single_stage.inputs import built
from distill.single_stage.options import PruneOptions, shown
from distill.single_stage.pruning.request import PruneRequest


def of_outcome(options: PruneOptions, record: PruneRecord, unmeasured: str | None) -> list[str]:
    """Say what makes the result less than it could be, each with what mends it."""
    warnings = []
    if options.data is None:
        warnings.append(
            "no rows were given: batch-norm statistics are those of before, and what the pruned model still knows was "
            "not looked at; its accuracy needs --data and --epochs, or a training of your own"
        )
    elif not options.epochs:
        warnings.append(
            "the pruned model was not trained again; --epochs 10 has it learn what the unpruned one answers"
        )
    if options.format != "float32":
        warnings.append(
            f"model.onnx is float32 and was timed as {options.format}; `python -m distill quantize` makes it that, "
            "on rows of yours"
        )
    if unmeasured == "--no-timing":
        warnings.append("nothing was timed, as --no-timing says: whether it is faster is not known")
    elif unmeasured is not None:
        warnings.append(f"unmeasured: {unmeasured}; --measure COMMAND times it there")
    if not IMPORTANCES[record.importance].needs_batches and options.importance is None and options.data is not None:
        warnings.append(f"importance {record.importance} was used")
    return warnings


def library_weights(options: PruneOptions) -> list[str]:
    """Say when a library's model has the weights that it was drawn with."""
    model = shown(options.model)
    library = model.partition(":")[0]
    names = OF_WEIGHTS.get(library, ())
    if not names or options.weights is not None or any(entry.partition("=")[0] in names for entry in options.arg):
        return []
    value = "DEFAULT" if library == "torchvision" else "true"
    return [
        f"the weights of {model} are random: its speed means something, what is cut does not; give --weights, or "
        f"--arg {names[0]}={value}, which downloads some"
    ]


def drawn_weights(request: PruneRequest, model: nn.Module) -> list[str]:
    """Say when a function gives other weights with another seed: they were drawn, and nobody trained them."""
    options = request.options
    name = shown(options.model)
    if options.weights is not None or isinstance(options.model, nn.Module) or name.partition(":")[0] in OF_WEIGHTS:
        return []
    other = dict(built(options.model, request.arguments, None, options.seed + 1)[0].named_parameters())
    drawn = [key for key, value in model.named_parameters() if key in other and not value.equal(other[key])]
    if not drawn:
        return []
    return [
        f"the weights of {name} are random ({drawn[0]} differs with another seed): nobody trained them, so what is cut "
        "and what is learnt means nothing; give trained ones by --weights"
    ]
