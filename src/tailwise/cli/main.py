"""`tailwise`: one command per verb. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from tailwise.cli.apply_commands import apply, recover
from tailwise.cli.ask import ask
from tailwise.cli.atlas import app as atlas
from tailwise.cli.audit_commands import audit
from tailwise.cli.check import check
from tailwise.cli.compare_commands import compare, diff, rank
from tailwise.cli.evaluate_command import evaluate
from tailwise.cli.filled_help import tell
from tailwise.cli.history_commands import bisect, history, watch
from tailwise.cli.limited import where_it_is_limited
from tailwise.cli.mcp import mcp
from tailwise.cli.plan_commands import app as plan
from tailwise.cli.precision import precision
from tailwise.cli.predict_command import predict
from tailwise.cli.read_commands import diagnose, doctor, metrics, plot, report, show
from tailwise.cli.serve import serve
from tailwise.cli.store_commands import app as store
from tailwise.cli.sweep_command import sweep
from tailwise.core.errors import TailwiseError, UnreadableError, lacks_memory, speak_by
from tailwise.core.harmless import visible

_NO_MEMORY = """there is not enough memory for this
  → free some, raise the limit (ulimit -v), or give fewer --workers; computed spectra are kept"""

app = typer.Typer(
    name="tailwise",
    help="Reads a neural network's health in the spectra of its weights.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command()(audit)
app.command()(show)
app.command()(compare)
app.command()(rank)
app.command()(sweep)
app.command()(check)
app.command()(diagnose)
app.command()(report)
app.command()(plot)
app.command()(precision)
app.command()(evaluate)
app.command()(predict)
app.add_typer(plan, name="plan")
app.command()(apply)
app.command()(recover)
app.command()(serve)
app.command()(watch)
app.command()(history)
app.add_typer(store, name="store")
app.command()(diff)
app.command()(bisect)
app.command()(ask)
app.command()(mcp)
app.command()(metrics)
app.command()(doctor)
app.add_typer(atlas, name="atlas")
tell(app)


def _is_asked_here() -> bool:
    """Whether a command is being carried out in this thread; typer brings a click of its own, or takes the other."""
    found = (sys.modules.get(name) for name in ("typer._click.globals", "click.globals"))
    return any(module is not None and module.get_current_context(silent=True) is not None for module in found)


speak_by(_is_asked_here)


def _version(wanted: bool) -> None:
    if wanted:
        from tailwise import __version__

        typer.echo(f"tailwise {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Reads a neural network's health in the spectra of its weights."""


def run() -> None:
    """Entry point: turns errors into one message and an exit code (2: wrong request, 3: unreadable input)."""
    hide_known_lines()
    # Processes that libraries start (workers of Dask, Ray, data loaders) would import from the current folder first.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    speak_by(lambda: True)  # in every thread
    try:
        where_it_is_limited(_run, _ended_by)
    finally:
        speak_by(_is_asked_here)


def _ended_by(signal: str) -> int:
    print(f"tailwise: a library ended the process ({signal}), as some do where they lack memory", file=sys.stderr)
    print(_NO_MEMORY.partition("\n")[2], file=sys.stderr)
    return UnreadableError.exit_code


def _run() -> None:
    code: object = 1
    try:
        code = _run_to_the_end()
    except TailwiseError as error:
        code = error.exit_code
        print(f"tailwise: {visible(str(error))}", file=sys.stderr)
    except BrokenPipeError:
        # The reader (head, less) has seen enough, and what was asked for in files has been written before.
        code = 0
        _forget_stdout()
    except Exception as error:
        code = _told(error)
    sys.exit(code)  # type: ignore[arg-type]


def _told(error: Exception) -> int:
    """The exit code of a fault of the machine, once it is told; every other fault is ours, and raised."""
    if lacks_memory(error):
        print(f"tailwise: {_NO_MEMORY}", file=sys.stderr)
        return UnreadableError.exit_code  # 1 says that an expectation does not hold
    if isinstance(error, OSError):
        print(f"tailwise: the output could not be written: {error.strerror or error}", file=sys.stderr)
        _forget_stdout()
        return 1
    raise error


def _run_to_the_end() -> object:
    try:
        app()
    except SystemExit as end:
        # Here, not at the interpreter's end, where an error could no longer be handled.
        sys.stdout.flush()
        return end.code
    return 0


def _forget_stdout() -> None:
    # The interpreter flushes at its end, and would complain once more.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


#: Logger → how its line begins or what it says.
_KNOWN = {
    # Kernels for a GPU that this machine has not; torchao says so whenever transformers is imported.
    "torchao": "Failed to load ",
    # torchao registers enums in a way that newer torch does not need.
    "torch.utils._pytree": "is an Enum subclass and is now natively supported",
}


class _Known(logging.Filter):
    def __init__(self, words: str) -> None:
        super().__init__()
        self._words = words

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line may pass."""
        return self._words not in record.getMessage()


def hide_known_lines() -> None:
    """Let the known lines not pass; nothing is imported for it, and all other lines pass."""
    for name, words in _KNOWN.items():
        logger = logging.getLogger(name)
        if not any(isinstance(item, _Known) for item in logger.filters):
            logger.addFilter(_Known(words))
