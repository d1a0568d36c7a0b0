"""What an exporter is, and the registry of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from tailwise.compression.plans.entries import Kind
from tailwise.compression.plans.plan import Plan
from tailwise.core.errors import UsageError
from tailwise.core.registry import Registry
from tailwise.core.validation import checked

Files = dict[str, bytes]  # suffix → content
Write = Callable[[Plan], Files]


@dataclass(frozen=True)
class Exporter:
    """A named format of another tool. The first suffix is that of the file that the user names."""

    name: str
    summary: str
    source: str  # what reads it
    kinds: tuple[Kind, ...]  # of plans
    suffixes: tuple[str, ...]
    write: Write

    def __call__(self, plan: Plan, path: str | Path) -> tuple[Path, ...]:
        """Write `plan` to `path`, and to files beside it where the format has more than one."""
        from tailwise.core.atomic import write_whole

        target = Path(path)
        if target.suffix not in self.suffixes:
            raise UsageError(
                f"{self.name} is not written to {target.suffix or 'a file without a suffix'}",
                where=path,
                fix=f"choose one of {', '.join(self.suffixes)}",
            )
        if plan.kind not in self.kinds:
            raise UsageError(
                f"{self.name} takes plans to {', '.join(self.kinds)}, not to {plan.kind}", fix="choose another format"
            )
        plan.validate()
        found = self.write(plan)
        main, *others = found.items()
        named = [(target, main[1]), *((target.with_suffix(suffix), content) for suffix, content in others)]
        for place, _ in named:
            _refuse_plan(place)
        return tuple(write_whole(place, content) for place, content in named)


def _refuse_plan(place: Path) -> None:
    """Files beside the one that was named could be the plan itself."""
    if not place.is_file():
        return
    with place.open("rb") as file:
        if b"tailwise_plan" in file.read(200):
            raise UsageError("is a plan, and would be overwritten", where=place, fix="name another file with -o")


_BUILT_IN = (
    "llmcompressor",
    "compressed_tensors",
    "gptqmodel",
    "autoround",
    "torchao",
    "llamacpp",
    "alphaquant",
    "alphapruning",
    "evopress",
)


def _load_built_ins() -> None:
    places = {f"tailwise.compression.export.{module}": place for place, module in enumerate(_BUILT_IN)}
    for module in places:  # which import each other
        import_module(module)
    EXPORTERS.sort(lambda item: places.get(item.write.__module__, len(places)))


EXPORTERS: Registry[Exporter] = Registry("export format", "tailwise.exporters", _load_built_ins)


def exporter(
    name: str, *, source: str, suffixes: tuple[str, ...], kinds: tuple[Kind, ...] = ("prune",)
) -> Callable[[Write], Write]:  # fmt: skip
    """Register the decorated function; the first line of its docstring is the summary."""

    def register(function: Write) -> Write:
        summary = (inspect.getdoc(function) or "").split("\n", 1)[0]
        EXPORTERS.add(name, Exporter(name, summary, source, kinds, suffixes, function), by=function.__module__)
        return function

    return register


@checked
def export(plan: Plan, to: str, path: str | Path) -> tuple[Path, ...]:
    """Write `plan` as the tool `to` reads it. `UsageError` where it cannot say what the plan asks."""
    return EXPORTERS[to](plan, path)
