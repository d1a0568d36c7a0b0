"""`tailwise watch DIR`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from tailwise.cli.options import Device, Workers, comma_list
from tailwise.cli.stores import Revisions, Run, Store, open_store, say_outcome

_HOW, _OUT = "How to watch", "Output"


def watch(
    where: Annotated[
        str, typer.Argument(metavar="DIR", help="Folder or URL in which checkpoints appear, or org/name on the Hub.")
    ],
    store: Store = None,
    run: Run = None,
    revisions: Revisions = None,
    audits: Annotated[
        Path | None,
        typer.Option("-o", "--audits", metavar="FOLDER", help="Also keep the audits, with their spectra, as files.",
                     rich_help_panel=_OUT),
    ] = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.", rich_help_panel=_HOW)] = 30.0,
    settle: Annotated[
        float, typer.Option(min=0.0, help="Seconds without a change that make one whole.", rich_help_panel=_HOW)
    ] = 10.0,
    once: Annotated[
        bool, typer.Option("--once", help="Audit what is there now, and end.", rich_help_panel=_HOW)
    ] = False,
    randomize: Annotated[bool, typer.Option("--randomize", help="Also count traps.", rich_help_panel=_HOW)] = False,
    device: Device = "cpu",
    workers: Workers = None,
) -> None:  # fmt: skip
    """Audit every checkpoint of a run as soon as it is whole, into a store.

    A checkpoint is taken when its index and all its shards are there, its headers agree with its sizes, and nothing
    changes any more. What the store has is not audited again, so the command may be stopped and started at any time.
    """
    from tailwise.report.terminal import console
    from tailwise.runs import watch as watching
    from tailwise.runs.sink import Sink, run_name

    screen, good, idle = console(), True, True
    with ExitStack() as stack:
        history = None if store is None and audits is not None else stack.enter_context(open_store(store, create=True))
        settings = {"device": device, "workers": workers, "randomize": int(randomize)}
        sink = Sink(run or run_name(where), history, audits, settings)  # type: ignore[arg-type]
        watched = watching.Watch(where, sink, comma_list(revisions), settle)
        outcomes = watching.once(watched) if once else watching.follow(watched, interval, trouble=_say_trouble)
        if not once:
            typer.echo(f"tailwise: watching {where} every {interval:g} s; Ctrl-C ends it", err=True)
        try:
            for outcome in outcomes:
                good, idle = say_outcome(screen, outcome) and good, False
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        if idle and not watched.waiting:
            typer.echo(f"tailwise: nothing new in {where}", err=True)
        for text in watched.odd:
            _say_trouble(text)
        for name, why in watched.waiting.items():
            screen.print(f"{name}  left for later: {why}", style="yellow", markup=False, highlight=False)
    if not good:
        raise typer.Exit(3)


def _say_trouble(text: str) -> None:
    typer.echo(f"tailwise: {text}", err=True)
