"""llama.cpp's program `llama-quantize`, where no library of ggml is at hand: told the type of every tensor."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tailwise.checkpoints.formats.gguf import GgufCheckpoint
from tailwise.core.errors import UnreadableError
from tailwise.core.optional import how_to_get

PROGRAM = "llama-quantize"
_SHOWN = 400  # characters of what it says where it fails


def found_program() -> str | None:
    """Where it is on PATH."""
    return shutil.which(PROGRAM)


def type_lines(source: GgufCheckpoint, types: Mapping[str, str]) -> str:
    """What `--tensor-type-file` takes: every matrix by its whole name, those that are not planned in their own type."""
    from gguf import GGMLQuantizationType

    lines = []
    for name, spec in source.tensors.items():
        if len(spec.shape) > 1:
            kind = types.get(name) or GGMLQuantizationType(source.stored_type(name)[0]).name
            lines.append(f"^{re.escape(name)}$={kind.lower()}")
    return "\n".join([*lines, ""])


def quantized_by(
    program: str, source: GgufCheckpoint, types: Mapping[str, str], imatrix: Path | None, to: Path
) -> None:
    """Write `source` with other types to the file `to`. `UnreadableError` with its last words where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "types.txt"
        told.write_text(type_lines(source, types), encoding="utf-8")
        command = [program, "--allow-requantize", "--tensor-type-file", str(told)]
        command += [] if imatrix is None else ["--imatrix", str(imatrix)]
        # It looks at the file of types only where the type of the rest is a quantized one.
        command += [str(source.files[0].local_path()), str(to), "Q8_0"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0 or not to.is_file():
        words = (done.stderr or done.stdout).strip()[-_SHOWN:]
        raise UnreadableError(
            f"{PROGRAM} ended with {done.returncode}: {words}",
            where=source.uri,
            fix=f"take a newer llama.cpp, or install ggml, with which it is not asked: {how_to_get('ggml')}",
        )
