"""Every remark that `prune` makes on what it made and on what it started from, each with what mends it."""

from __future__ import annotations

from torch import nn

from distill.prune import PruneRecord
from distill.prune.scores.importance import IMPORTANCES
from distill.references.libraries import OF_WEIGHTS
from distill.single_stage.inputs import drawn_weights
from distill.single_stage.options import PruneOptions, shown


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


def random_weights(options: PruneOptions, model: nn.Module) -> tuple[str, ...]:
    """Say when a model has the weights that it was drawn with; of a library's that is known without another build."""
    name = shown(options.model)
    library = name.partition(":")[0]
    if library not in OF_WEIGHTS:
        consequence = "nobody trained them, so what is cut and what is learnt means nothing"
        return drawn_weights(options, options.model, model, consequence)
    arguments = OF_WEIGHTS[library]
    if options.weights is not None or any(entry.partition("=")[0] in arguments for entry in options.arg):
        return ()
    value = "DEFAULT" if library == "torchvision" else "true"
    return (
        f"the weights of {name} are random: its speed means something, what is cut does not; give --weights, or "
        f"--arg {arguments[0]}={value}, which downloads some",
    )
