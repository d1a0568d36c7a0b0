"""`tailwise apply PLAN MODEL -o OUT`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailwise.cli.progress_bar import counted, shares
from tailwise.cli.shared_options import Begin, Bos, Compute, Json, Option, command

if TYPE_CHECKING:
    from tailwise.compression.recovery.recovered import Recovered
    from tailwise.compression.treating.applied import Applied
    from tailwise.report.grid import Grid

_CAL, _RUN, _OUT, _SMALL = "Calibration", "How to run", "Output", "Smaller models"
#: Options that `ApplyOptions` has by the same name.
_TOLD = ("samples", "window", "seed", "device", "batch", "force", "save_masks", "equal_widths", "multiple", "factored",
         "packed", "dequantize", "executor", "workers")  # fmt: skip


OF_APPLY = (
    Option("plan", Annotated[Path, typer.Argument(help="A plan: x.json, x.yaml; see `tailwise plan`.")]),
    Option("model", Annotated[str, typer.Argument(help="The model that it was made for: folder or Hugging Face id.")]),
    Option("output", Path, help="Folder of the new model.", flags=("-o", "--output"), panel=_OUT, metavar="DIR"),
    Option("calibration", list[str] | None, None,
           "Text that {looking_pruners}, {looking_quantizers} need, and {operators_with_text} can use: a text file, a "
           "folder of them, token ids (.npy, .pt, .safetensors, .json), wikitext2, or a data set as "
           "org/name:split:column. Of an image classifier, images as `evaluate --images` takes them. May be repeated.",
           panel=_CAL, metavar="TEXT"),
    Option("images", list[str] | None, None,
           "Of a model that reads images beside text, where the plan names its vision tower: images, as "
           "`evaluate --images` takes them. May be repeated.", panel=_CAL, metavar="DIR"),
    Option("samples", int, 128, "Windows or images drawn; half as many take half as long.", panel=_CAL, least=1),
    Option("window", int, 512, "Tokens in a window.", panel=_CAL, least=2),
    Option("seed", int, 0, "Of the draw.", panel=_CAL),
    Option("bos", Bos, Begin.auto, panel=_CAL),
    Option("dtype", Compute, "auto", "auto: as stored, but float32 on a CPU.", panel=_RUN),
    Option("device", str, "cpu", "cpu, cuda, cuda:0.", panel=_RUN),
    Option("batch", int, 8, "Windows at once.", panel=_RUN, least=1),
    Option("executor", str, "local",
           "{streaming_operators}: shards on dask[://scheduler:8786] or ray[://head:10001].", panel=_RUN,
           metavar="ENGINE"),
    Option("workers", int | None, None, "Shards at once, on an executor.", panel=_RUN, least=1),
    Option("fresh", bool, False, "Do not go on where a killed run had come to.", ("--fresh",), _RUN),
    Option("force", bool, False, "Replace the output; apply a plan made from other weights.", ("--force",), _OUT),
    Option("save_masks", bool, False, "Also write which entries were kept.", ("--save-masks",), _OUT),
    Option("equal_widths", bool, False,
           "{whole_pruners}: every block loses as many heads and neurons, so that config.json can say it.",
           ("--equal-widths",), _SMALL),
    Option("multiple", int, 8, "{whole_pruners}: of neurons, a multiple of this stays.", panel=_SMALL, least=1),
    Option("factored", bool, False,
           "{ranking_pruners}: store two factors in place of their product; loads with tailwise.load_pruned.",
           ("--factored",), _SMALL),
    Option("packed", str | None, None,
           "Of a plan to quantize: write codes and scales for compressed-tensors (vLLM, transformers), torchao or gguf "
           "(llama.cpp), in place of dequantized floats. A GGUF file with a plan of llama.cpp's formats stays one "
           "anyway.", panel=_OUT, metavar="LAYOUT"),
    Option("dequantize", bool, False,
           "{blind_quantizers}: read a model that is quantized already as the values that it decodes to.",
           ("--dequantize",), _RUN),
    Option("as_json", Json, False),
)  # fmt: skip


def _apply(**given: Any) -> None:
    from tailwise.compression.applying.apply import apply as apply_plan
    from tailwise.compression.applying.apply_options import ApplyOptions
    from tailwise.compression.plans.plan import Plan

    told = {name: given[name] for name in _TOLD}
    options = ApplyOptions(
        calibration=list(given["calibration"] or ()) or None,
        images=list(given["images"] or ()) or None,
        bos=given["bos"].value,
        dtype=given["dtype"],
        resume=not given["fresh"],
        **told,
    )
    with counted() as show:
        applied = apply_plan(Plan.load(given["plan"]), given["model"], given["output"], options=options, progress=show)
    _deliver(applied, given["as_json"])


apply = command(
    _apply,
    OF_APPLY,
    "apply",
    """Carry out a plan: write the pruned or quantized model, and read back what was reached.

    The output loads as the model did: same tensors, dtypes, tokenizer and config, with the plan in it. A model that
    got smaller (structured, or low_rank with --factored) loads so too where config.json can say its sizes, else with
    tailwise.load_pruned. A quantized model is as large as before, unless it is --packed. It appears whole or not at
    all. After a kill the same command goes on behind the blocks that were finished; from a GGUF file it begins anew.
    """,
)


def _deliver(applied: Applied, as_json: bool) -> None:
    from tailwise.compression.plans.bits import in_all_words
    from tailwise.report.terminal import console

    screen = console(stderr=as_json)
    if as_json:
        sys.stdout.write(json.dumps(applied.to_json(), indent=1) + "\n")
    else:
        screen.print(_table(applied))
    screen.print(
        f"{_reached(applied)} ({len(applied.tensors)} tensors, {applied.seconds:.1f} s)", markup=False, soft_wrap=True
    )
    if applied.sizes is not None:
        screen.print(f"files of weights: {applied.sizes[0]:,} bytes before, {applied.sizes[1]:,} now", markup=False)
    if applied.whole is not None:
        screen.print(in_all_words(*applied.whole), markup=False, soft_wrap=True)
    if applied.resumed:
        screen.print(f"{applied.resumed} blocks or shards were finished before", markup=False)
    for note in applied.notes:
        screen.print(note, style="yellow", markup=False, soft_wrap=True)
    screen.print(f"written to {applied.output}", markup=False, soft_wrap=True)


def _reached(applied: Applied) -> str:
    if applied.in_bits:
        bits = f"{applied.achieved:.4f} bits per weight of the planned parameters, by the plan: {applied.requested:.4f}"
        return bits if applied.pruned is None else f"{_reached(applied.pruned)}; then {bits}"
    ranks = any(item.rank is not None for item in applied.tensors)
    went = "gone" if applied.smaller else "saved by low rank" if ranks else "zero"
    return f"{applied.achieved:.4%} of the planned parameters are {went}, requested: {applied.requested:.4%}"


def _table(applied: Applied, most: int = 12) -> Grid:
    """The tensors that are farthest from what was requested; of those as near, those of the largest error first."""
    from tailwise.compression.applying.card import how_in_words
    from tailwise.report.grid import Grid

    ranked = sorted(
        applied.tensors, key=lambda item: (-abs(item.achieved - item.requested), -(item.relative_error or 0.0))
    )
    lines: list[tuple[str, ...]] = []
    for item in ranked[:most]:
        amounts = (item.tensor, f"{item.requested:.4f}", f"{item.achieved:.4f}")
        error = "" if item.relative_error is None else f"{item.relative_error:.4f}"
        lines.append((*amounts, item.how, error) if applied.in_bits else (*amounts, how_in_words(item)))
    own = ("format", "‖ΔW‖ / ‖W‖") if applied.in_bits else ("how",)
    heads = ("tensor", "requested", "achieved", *own)
    if len(ranked) > most:
        lines.append((f"… and {len(ranked) - most} more", *("" for _ in heads[1:])))
    return Grid(heads, lines, words=(0, 3), wrapping=range(len(heads)), overflow="fold")


_HOW, _RECOVERY, _OUT_RECOVERED = "Training", "How to run", "Output"


def recover(
    model: Annotated[str, typer.Argument(help="The pruned model: folder or Hugging Face id.")],
    text: Annotated[
        list[str],
        typer.Option(
            metavar="TEXT",
            help="What it is trained on: a text file, a folder of them, token ids (.npy, .pt, .safetensors, .json), "
            "wikitext2, or a data set as org/name:split:column; of an image classifier, images with their classes. A "
            "part is kept out to measure by. May be repeated.",
            rich_help_panel=_HOW,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="DIR", help="Folder of the new model.", rich_help_panel=_OUT_RECOVERED),
    ],
    method: Annotated[
        str,
        typer.Option(help="masked: all weights but the zeros. lora: an adapter of peft.", rich_help_panel=_HOW),
    ] = "masked",
    steps: Annotated[int, typer.Option(min=1, help="At most.", rich_help_panel=_HOW)] = 1000,
    lr: Annotated[
        float | None,
        typer.Option(help="Highest learning rate; by default from the model's width.", rich_help_panel=_HOW),
    ] = None,
    rank: Annotated[int, typer.Option(min=1, help="Of the adapter.", rich_help_panel=_HOW)] = 8,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge", help="Train the adapter behind the mask and merge it: the zeros stay zero.", rich_help_panel=_HOW
        ),
    ] = False,
    window: Annotated[int, typer.Option(min=2, help="Tokens in a window.", rich_help_panel=_HOW)] = 512,
    batch: Annotated[int, typer.Option(min=1, help="Windows a step.", rich_help_panel=_HOW)] = 4,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the draws; the same steps then give the same.", rich_help_panel=_HOW)
    ] = 0,
    budget: Annotated[
        str, typer.Option(metavar="TIME", help="What all of it may take: 90s, 5m, 1h.", rich_help_panel=_RECOVERY)
    ] = "5m",
    control: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The dense model, trained as long beside it: tells adaptation to the text from recovery.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:0.", rich_help_panel=_RECOVERY)] = "cpu",
    force: Annotated[bool, typer.Option("--force", help="Replace the output.", rich_help_panel=_OUT_RECOVERED)] = False,
    as_json: Json = False,
) -> None:
    """Train a pruned model for a while, its zeros kept at zero.

    Prints its perplexity before and after on text that the training did not see. The best state is kept, chosen on
    yet other text; where none is better than the pruned model, nothing is written.
    """
    began = time.monotonic()  # before the libraries are read, which takes seconds of the budget
    from tailwise.compression.recovery.recover import RecoverOptions
    from tailwise.compression.recovery.recover import recover as recover_model
    from tailwise.compression.trying.planned import seconds_of

    options = RecoverOptions(
        method=method,
        steps=steps,
        lr=lr,
        rank=rank,
        merge=merge,
        window=window,
        batch=batch,
        seed=seed,
        seconds=seconds_of(budget),
        device=device,
        force=force,
        control=control,
    )
    with shares("training") as say:
        recovered = recover_model(model, list(text), output, options=options, say=say, began=began)
    _deliver_recovered(recovered, as_json)


def _deliver_recovered(recovered: Recovered, as_json: bool) -> None:
    from tailwise.report.terminal import console

    screen = console(stderr=as_json)
    if as_json:
        sys.stdout.write(json.dumps(recovered.to_json(), indent=1) + "\n")
    else:
        screen.print(_recovered_table(recovered))
    for line in _lines(recovered):
        screen.print(line, markup=False, soft_wrap=True)
    for note in recovered.notes:
        screen.print(note, style="yellow", markup=False, soft_wrap=True)
    screen.print(f"written to {recovered.output}", markup=False, soft_wrap=True)


def _recovered_table(recovered: Recovered) -> Grid:
    from tailwise.compression.recovery.recovered import perplexity_words
    from tailwise.report.grid import Grid

    quality = "accuracy ± standard error" if recovered.after.tasks else "perplexity, 95 %"
    lines = [("before", perplexity_words(recovered.before), f"{recovered.sparsity[0]:.2%}")]
    if recovered.unmerged is not None:
        lines.append(("adapter, not merged", perplexity_words(recovered.unmerged), ""))
    zeros = f"{recovered.sparsity[1]:.2%}" if recovered.method != "lora" else "of the model beside it, as before"
    lines.append(("after", perplexity_words(recovered.after), zeros))
    if recovered.control is not None:
        lines.append(("control", perplexity_words(recovered.control.comparison.base), ""))
        lines.append(("control, trained as long", perplexity_words(recovered.control.comparison.model), ""))
    return Grid(("", quality, "zeros in the blocks"), lines, wrapping=range(3))


def _lines(recovered: Recovered) -> Iterator[str]:
    from tailwise.report.evaluations.evaluation_tables import p_equation

    change = recovered.comparison.perplexity
    if change is not None and change.change is not None:
        around = "" if change.interval is None else " [{:+.4f}, {:+.4f}]".format(*change.interval)
        p = "" if change.p is None else f", {p_equation(change)}"
        yield f"{change.change:+.4f} nats a token{around}{p}: {change.verdict}, over {change.n} windows"
    for task in recovered.comparison.tasks:
        around = "" if task.interval is None else " [{:+.4f}, {:+.4f}]".format(*task.interval)
        moved = "–" if task.change is None else f"{task.change:+.4f}"
        yield f"{task.name}: {moved}{around}: {task.verdict}, over {task.n} images"
    if recovered.cost_of_merging is not None:
        yield f"of that, merging with the zeros put back costs {recovered.cost_of_merging:+.4f} nats a token"
    yield from () if recovered.control is None else recovered.control.words()
    training = recovered.training
    unit = "an image" if recovered.after.tasks else "a token"
    yield (
        f"best at step {training.best_step} of {training.steps}, by the guard windows: {training.start_loss:.4f} to "
        f"{training.best_loss:.4f} nats {unit} ({training.ended}, {training.seconds:.0f} s)"
    )
