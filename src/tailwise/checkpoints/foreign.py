"""Files and folders of other programs that hold weights, known by name or first bytes, with the way out of them."""

from __future__ import annotations

from collections.abc import Callable, Collection

#: First bytes of files that are known and cannot be read, and what to say.
MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "is a git-lfs pointer, not the weights themselves",
     "run `git lfs pull` in its repository, or download the file itself"),
    (0, b"<!doctype", "is a web page, not weights", "the link leads to a page: use the download link"),
    (0, b"<html", "is a web page, not weights", "the link leads to a page: use the download link"),
    (0, b"<?xml", "is XML, as OpenVINO keeps a model's graph in", "export the model to ONNX or safetensors"),
    (0, b"\x1f\x8b", "is compressed with gzip", "unpack it first (tar -xzf or gunzip)"),
    (0, b"\x28\xb5\x2f\xfd", "is compressed with zstd", "unpack it first (unzstd)"),
    (0, b"\xfd7zXZ\x00", "is compressed with xz", "unpack it first (unxz)"),
    (0, b"BZh", "is compressed with bzip2", "unpack it first (bunzip2)"),
    (0, b"7z\xbc\xaf\x27\x1c", "is a 7-Zip archive", "unpack it first"),
    (0, b"Rar!", "is a RAR archive", "unpack it first"),
    (4, b"TFL3", "is a TensorFlow Lite model", "give the model that it was converted from, or its ONNX export"),
    (0, b"ftrt", "is a TensorRT engine, built for one GPU", "give the model that it was built from, as ONNX"),
    (0, b"ggml", "is a model of llama.cpp's old format", "convert it to GGUF with llama.cpp"),
    (0, b"lmgg", "is a model of llama.cpp's old format", "convert it to GGUF with llama.cpp"),
    (0, b"tjgg", "is a model of llama.cpp's old format", "convert it to GGUF with llama.cpp"),
)  # fmt: skip
#: An audit's archive, by its first member, and its folder.
AUDIT_MEMBERS = ("layers.parquet", "spectra.parquet", "provenance.json")
AUDIT = (
    "is an audit that tailwise has made, not a model",
    "look at it with show, diagnose, compare, check, report or plan; to audit again, give the model itself",
)
#: What tailwise itself writes, by a mark among the first bytes, and what reads it.
OWN: tuple[tuple[bytes, str, str], ...] = (
    (b'"tailwise_plan"', "is a plan of tailwise", "tailwise apply PLAN MODEL -o OUTPUT carries it out"),
    (b"tailwise_plan:", "is a plan of tailwise", "tailwise apply PLAN MODEL -o OUTPUT carries it out"),
    (b"tailwise check --init", "is a list of expectations", "tailwise check AUDIT --expect FILE reads it"),
    (b'"kind": "precision study"', "is a study of number formats", "give the model itself"),
    (b"SQLite format 3\0", "is a database", "a history of tailwise is read by tailwise history --store FILE"),
    (b"PAR1", "is a table in Parquet", "give the model itself"),
)
_FLAX = "load it with flax (flax.serialization.msgpack_restore), and save its arrays with numpy.savez"
_TENSORFLOW = "load it with TensorFlow and save the model as .keras, or export it to ONNX (tf2onnx)"
#: Endings of names that say more than the first bytes do.
SUFFIXES: tuple[tuple[tuple[str, ...], str, str], ...] = (
    ((".msgpack",), "is Flax's msgpack", _FLAX),
    ((".tflite",), "is a TensorFlow Lite model", "give the model that it was converted from, or its ONNX export"),
    ((".mlmodel", ".mlpackage"), "is a Core ML model", "give the model that it was converted from"),
    ((".engine", ".trt", ".plan"), "is a TensorRT engine, built for one GPU",
     "give the model that it was built from, as ONNX"),
    ((".joblib",), "is a joblib file, a pickle that runs code when it is loaded",
     "load it where that can do no harm, and save its arrays with numpy.savez"),
    ((".pb",), "is a graph of TensorFlow", _TENSORFLOW),
    ((".pte", ".ptl"), "is a program for ExecuTorch or PyTorch Mobile", "give the model that it was exported from"),
)  # fmt: skip


def archive_of(name: str) -> tuple[str, str]:
    """What a tar archive is, by its name, and what to do with it."""
    if name.endswith(".nemo"):
        return "is a NeMo archive (tar)", "unpack it (tar -xf) and give model_weights.ckpt or model_weights/ of it"
    return "is a tar archive", "unpack it first (tar -xf)"


_Test = Callable[[Collection[str], Collection[str]], bool]
_ORBAX = frozenset({"manifest.ocdbt", "_METADATA", "_CHECKPOINT_METADATA"})
#: What tells a folder, by its files and its folders.
_FOLDERS: tuple[tuple[_Test, str, str], ...] = (
    (lambda names, _: {*AUDIT_MEMBERS} <= {*names}, *AUDIT),
    (lambda names, _: "study.json" in names,
     "is a study of number formats that tailwise has made", "give the model itself; report.html in it shows the study"),
    (lambda names, inner: bool(_ORBAX & {*names}) or "ocdbt.process_0" in inner, "is a checkpoint of Orbax (JAX)",
     "restore it with orbax.checkpoint, and save its arrays with numpy.savez"),
    (lambda names, _: "saved_model.pb" in names, "is a SavedModel of TensorFlow", _TENSORFLOW),
    (lambda names, _: any(".data-00000-of-" in name for name in names), "is a checkpoint of TensorFlow",
     "read it with tf.train.load_checkpoint, and save its arrays with numpy.savez"),
    (lambda names, _: any(name.endswith(".xml") and f"{name[:-4]}.bin" in names for name in names),
     "is a model of OpenVINO", "give the model that it was converted from, or its ONNX export"),
    (lambda names, inner: "Manifest.json" in names and "Data" in inner, "is a Core ML model",
     "give the model that it was converted from"),
)  # fmt: skip


def folder_of(names: Collection[str], subfolders: Collection[str]) -> tuple[str, str] | None:
    """What program wrote a folder without weights of a known format, and the way out; None where it is not known."""
    for test, what, fix in _FOLDERS:
        if test(names, subfolders):
            return what, fix
    for name in sorted(names):
        for endings, what, fix in SUFFIXES:
            if name.endswith(endings):
                return f"holds {name}, which {what}", fix
        if name.endswith((".nemo", ".tar", ".tar.gz", ".tgz")):
            what, fix = archive_of(name)
            return f"holds {name}, which {what}", fix
    return None
