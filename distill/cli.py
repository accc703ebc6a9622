"""The command line: its verbs, and the exit code that each error stands for."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer

from distill import clean, files, interruptions, scratch
from distill.errors import DistillError, Exit, UserError
from distill.interruptions import interruptible
from distill.verbs.bench import verb as bench
from distill.verbs.doctor import doctor
from distill.verbs.init import init
from distill.verbs.presets import presets
from distill.verbs.prune import prune
from distill.verbs.quantize import quantize
from distill.verbs.run import RunOptions, run
from distill.verbs.schema import schema
from distill.verbs.signature import command
from distill.verbs.validate import ValidateOptions, validate
from distill.versions import all_versions

# Typer brings its own copy of click from 0.20 or so on; its errors are found here, whichever it uses.
_USAGE: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
_ENDS = (typer.Exit, SystemExit)
_COMPLETION = "_DISTILL_COMPLETE"

app = typer.Typer(
    name="distill",
    help="Turn a PyTorch teacher into the smallest, fastest ONNX model that meets a budget on a device, and prove it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(all_versions())
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="versions of what decides a file"),
    ] = False,
) -> None:
    """Take what stands before a verb."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(f"the current folder is gone ({error.strerror}); change to one that exists") from error
    mask = os.umask(0o077)
    os.umask(mask)
    if mask & 0o700:
        raise UserError(
            f"umask {mask:04o}: it takes the rights to their own files from those who write them; umask 022"
        )


for _verb in (
    command(run, RunOptions),
    command(validate, ValidateOptions),
    *(doctor, presets, schema, init, bench, quantize, prune),
):
    app.command()(_verb)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a verb and end the process with the exit code that the error, if any, stands for."""
    # OpenMP threads that spin while they wait make training up to 20 times slower as soon as anything else runs on the
    # machine; this has to be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Libraries that load a model for us would draw bars of their own between our lines.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    _open_streams()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # A shell completes the first word of a line, so completion is for the command `distill`, however it was asked for.
    completing = _COMPLETION in os.environ or any(argument.endswith("-completion") for argument in arguments)
    with interruptible(lambda name: f"error: {_farewell(name)}") as interruption:
        try:
            code = app(
                args=arguments,
                prog_name="distill" if completing else "python -m distill",
                complete_var=_COMPLETION,
                standalone_mode=False,
            )
            if code == Exit.INTERRUPTED and not interruption.name:  # typer turns Ctrl-C into an exit
                _complain(f"interrupted; {_goes_on()}", Exit.INTERRUPTED)
            # A stream that cannot be written would be found out by the interpreter, which has no such exit codes.
            sys.stdout.flush()
        except BaseException as error:
            if "--debug" in arguments and not isinstance(error, _ENDS):
                import traceback

                with suppress(OSError):
                    traceback.print_exc()
            code = None if interruption.name else _code_of(error)
        # Whatever became of the exception on its way: libraries turn it into others, and typer into an exit.
        if interruption.name:
            scratch.remove_all()
            code = _complain(_farewell(interruption.name), Exit.INTERRUPTED)
        _close_streams()
    sys.exit(int(code) if isinstance(code, int) else 0)


def _open_streams() -> None:
    """Make standard output and error such that no sign and no closed stream ends a command."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed by who started the command: another file would get the number, and what is printed
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            # Where the locale cannot write a sign it is spelled out.
            stream.reconfigure(errors="backslashreplace")


def _close_streams() -> None:
    """Write what is left, or leave it: it was said by now that a stream cannot be written, as far as it can be."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())


# What the machine or its administrator refuses; anything else that the system says may be our own mistake.
_LIMITS = (errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ESTALE)


def _farewell(name: str) -> str:
    """Say that a signal ended the command, and what comes of the same command."""
    return f"interrupted ({name}); {_goes_on()}"


def _goes_on() -> str:
    """Say what comes of the same command: a run goes on where it was, anything else begins anew."""
    if interruptions.REMAINS:
        return f"the same command goes on from {', '.join(map(str, interruptions.REMAINS))}, and removes it in the end"
    verb = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    anew = verb in ("bench", "quantize", "prune")
    return "the same command begins anew" if anew else "the same command goes on from here"


def _code_of(error: BaseException) -> int:
    """Say what went wrong on standard error, and return the exit code for it."""
    if isinstance(error, DistillError):
        return _complain(str(error), error.exit_code)
    if isinstance(error, typer.Exit):
        return error.exit_code
    reader_left = (error, error.__context__ if isinstance(error, SystemExit) else None)
    if any(isinstance(cause, BrokenPipeError) for cause in reader_left):
        # Who read our output has gone, so nobody can be told; click would end with 1, which is a verdict here.
        return Exit.INTERRUPTED
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else Exit.OK
    if isinstance(error, _USAGE):
        usage = io.StringIO()
        error.show(file=usage)
        for line in clean.text(usage.getvalue()).splitlines():
            typer.echo(clean.log_line(line), err=True)
        return Exit.USER
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return _complain(f"interrupted; {_goes_on()}", Exit.INTERRUPTED)
    number, name = getattr(error, "errno", None), getattr(error, "filename", None)
    prefix = f"{name}: " if name else ""
    if files.disk_is_full(error):
        return _complain(f"{prefix}the disk is full; free some space, then {_goes_on()}", Exit.USER)
    why = getattr(error, "strerror", None) or error
    if number in _LIMITS:
        return _complain(f"{prefix}{why}; mend that, then {_goes_on()}", Exit.USER)
    if isinstance(error, PermissionError) or number == errno.EROFS:
        return _complain(f"{prefix}no permission ({why}); mend its rights, or choose a place with --out", Exit.USER)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error):
        return _complain("out of memory; lower batch_size, or distill.views", Exit.USER)
    return _complain(
        f"a defect of distill: {type(error).__name__}: {error}\nrun again with --debug for the traceback", Exit.DEFECT
    )


def _complain(text: str, code: Exit) -> int:
    with suppress(OSError):  # where nothing can be said the code still says it
        for line in clean.text(text).rstrip("\n").split("\n"):
            typer.echo(clean.log_line(f"error: {line}"), err=True)
    return code
