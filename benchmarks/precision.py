"""What a precision study costs, and whether alpha predicts what it measures.

    python benchmarks/precision.py                 k formats against k times the solve of one, on the matrices of one
                                                   block of a 1.24-billion-parameter Llama
    python benchmarks/precision.py --width 512     on smaller ones, in seconds, to see that it runs
    python benchmarks/precision.py --predict A B   rank correlation of alpha with each distortion in these models

Cost: both sides run in this process on one thread, told apart by CPU seconds. "Solve" is all eigenvalues of each
matrix, already in memory, in float64. "Study" is the whole of `tailwise.audits.precision`: reading, encoding, solving,
fitting, errors and leading directions in every format, with the spectra of the weights as loaded in the cache, as
an audit leaves them. Every format here changes the weights (stored in float32), so none is spared its solve.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

import models  # the module beside this file
import tailwise as tw
from tailwise.audits.precision.prediction import Prediction, predictions
from tailwise.audits.precision.studying import study
from tailwise.audits.run import audit
from tailwise.number_formats.formats import FORMATS, parse_format
from tailwise.number_formats.number_format import Reach
from tailwise.spectrum.solve import solve

LOSSY = tuple(name for name in FORMATS if name not in ("fp64", "fp32"))


def checkpoint(folder: Path, width: int) -> dict[str, torch.Tensor]:
    """One block's matrices, written in float32."""
    generator = torch.Generator().manual_seed(width)
    shapes = {
        "self_attn.q_proj": (width, width), "self_attn.k_proj": (width // 4, width),
        "self_attn.v_proj": (width // 4, width), "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (4 * width, width), "mlp.up_proj": (4 * width, width), "mlp.down_proj": (width, 4 * width),
    }  # fmt: skip
    tensors = {f"model.layers.0.{name}.weight": _float32(*shape, generator) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return tensors


def _float32(rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    weight = models.heavy_tailed(rows, cols, generator).float()
    return weight * (1 + 1e-4 * torch.rand(rows, cols, generator=generator))


def cpu_of(work: object, *arguments: object, **options: object) -> float:
    """CPU seconds of one call."""
    began = time.process_time()
    work(*arguments, **options)  # type: ignore[operator]
    return time.process_time() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--formats", type=lambda text: tuple(text.split(",")), default=LOSSY)
    parser.add_argument("--predict", nargs="+", metavar="MODEL")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.predict:
        predict(given.predict)
    else:
        cost(given.width, given.formats)
    print(f"\ntailwise {tw.__version__}, torch {torch.__version__}, one thread")


def predict(names: list[str]) -> None:
    """Print ρ [95 % interval] of alpha, and of depth beside it, with two distortions at low bits."""
    print("| model | format | distortion | α pooled | α within roles | depth within roles |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in names:
        found = predictions(study(name, ("int4", "nvfp4", "int2")))
        cells = {(item.format, item.measure, item.predictor, item.scope): item for item in found}
        for number_format in ("int4", "nvfp4", "int2"):
            for measure in ("relative_error", "spectral_distance", "overlap"):
                shown = [
                    _rho(cells[number_format, measure, predictor, scope])
                    for predictor, scope in (("alpha", "pooled"), ("alpha", "within roles"), ("depth", "within roles"))
                ]
                said = "1 − overlap" if measure == "overlap" else measure
                print(f"| {Path(name).name} | {number_format} | {said} | {' | '.join(shown)} |")


def _rho(found: Prediction) -> str:
    if found.rho is None or found.low is None or found.high is None:
        return "–"
    text = f"{found.rho:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
    return f"**{text}**" if found.seen else text


def cost(width: int, formats: tuple[str, ...]) -> None:
    """Print what formats cost alone and together."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tensors = checkpoint(folder, width)
        settings = {"cache_dir": folder / "cache", "workers": 1}
        solve(torch.randn(256, 256))
        solving = sum(cpu_of(solve, tensor) for tensor in tensors.values())
        print(f"one block of width {width}: {len(tensors)} matrices, solve {solving:.2f} s\n")
        print("| formats | k | k × solve (s) | study (s) | ratio |")
        print("| --- | ---: | ---: | ---: | ---: |")
        audit(str(folder), metrics="stable_rank", **settings)  # type: ignore[arg-type]
        for name in formats:
            _line(str(folder), (name,), solving, settings)
        settings = {"cache_dir": folder / "cache-2", "workers": 1}
        audit(str(folder), metrics="stable_rank", **settings)  # type: ignore[arg-type]
        _line(str(folder), formats, solving, settings)
        _encoding(tensors, formats)


def _line(folder: str, names: tuple[str, ...], solving: float, settings: dict[str, object]) -> None:
    spent = cpu_of(study, folder, names, **settings)
    shown = names[0] if len(names) == 1 else f"all {len(names)}"
    print(f"| {shown} | {len(names)} | {len(names) * solving:.2f} | {spent:.2f} | "
          f"{spent / (len(names) * solving):.3f} |", flush=True)  # fmt: skip


def _encoding(tensors: dict[str, torch.Tensor], formats: tuple[str, ...]) -> None:
    """What encoding alone costs, by format."""
    print("\n| format | encoding alone (s) |\n| --- | ---: |")
    for name in formats:
        found = parse_format(name)
        spent = sum(cpu_of(found.quantize, tensor, Reach.of([tensor])) for tensor in tensors.values())
        print(f"| {name} | {spent:.2f} |")


if __name__ == "__main__":
    main()
