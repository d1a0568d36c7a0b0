"""Options as they are named now, where somebody writes them as they were; and a number behind `--randomize`."""

from __future__ import annotations

from collections.abc import Mapping

import typer

#: Old option → the one that is documented.
OLD: Mapping[str, str] = {"--dtype": "--precision"}
#: A switch that may have a number → the option that takes the number.
COUNTED: Mapping[str, str] = {"--randomize": "--replicas"}


def named_now(given: list[str], known: set[str]) -> list[str]:
    """The arguments with the options that a command has; a line on stderr for each old name."""
    args, taken = list(given), list[str]()
    while args:
        word = args.pop(0)
        name, equals, value = word.partition("=")
        if word == "--":
            return [*taken, word, *args]
        if OLD.get(name) in known and name not in known:
            typer.echo(f"tailwise: {name} is called {OLD[name]} now", err=True)
            word = OLD[name] + equals + value
        elif COUNTED.get(name) in known:
            number = value if equals else args.pop(0) if args and args[0].isdecimal() else ""
            word = name
            if number:
                taken += [COUNTED[name], number]
        elif name in COUNTED.values() and name in known:
            switch = next(one for one, other in COUNTED.items() if other == name)
            typer.echo(f"tailwise: {name} N is {switch} N now", err=True)
        taken.append(word)
    return taken
