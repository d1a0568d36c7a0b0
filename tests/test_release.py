"""What is released: a wheel and a source archive, built here and looked into; imports where there is no fcntl."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with both."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


def test_the_wheel_has_its_types_its_notices_and_every_file_of_the_package(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        names = set(archive.namelist())
        facts = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    assert {"tailwise/py.typed", "tailwise/report/assets/NOTICES.txt", "tailwise/app/static/htmx.LICENSE"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    package = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "tailwise").rglob("*.*")}
    assert {name for name in package if "__pycache__" not in name} <= names
    assert not [name for name in names if not name.startswith(("tailwise/", "tailwise-"))]
    assert "License-Expression: Apache-2.0" in facts


def test_the_source_archive_is_small_and_can_be_built_and_tested_from(built):
    path = next(built.glob("*.tar.gz"))
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert path.stat().st_size < 4_000_000
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "SECURITY.md",
        "src/tailwise/py.typed",
        "tests/conftest.py",
    } <= names
    assert not [name for name in names if name.endswith(".safetensors") and name.startswith("examples/")]


def test_every_module_imports_where_there_is_neither_fcntl_nor_resource():
    code = """
import importlib, os, pkgutil, sys, warnings
warnings.simplefilter("ignore")
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("preadv", "pread", "sched_getaffinity", "killpg", "nice", "geteuid", "getuid", "fork"):
    if hasattr(os, name):
        delattr(os, name)
import tailwise
failed = []
for found in pkgutil.walk_packages(tailwise.__path__, "tailwise."):
    if found.name.endswith(("__main__", ".child")):
        continue
    try:
        importlib.import_module(found.name)
    except ImportError as error:
        if error.name in ("fcntl", "resource", "pwd", "grp", "termios"):
            failed.append((found.name, error.name, str(error.__traceback__.tb_next)))
    except AttributeError as error:
        failed.append((found.name, str(error)))
print(failed)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip().splitlines()[-1] == "[]", done.stdout


#: Modules of Python's own that 3.12, 3.13 and 3.14 no longer have.
GONE = (
    "aifc", "asynchat", "asyncore", "audioop", "cgi", "cgitb", "chunk", "crypt", "distutils", "imghdr", "imp",
    "mailcap", "msilib", "nis", "nntplib", "ossaudiodev", "pipes", "smtpd", "sndhdr", "spwd",
    "sunau", "telnetlib", "uu", "xdrlib",
)  # fmt: skip


def test_nothing_is_imported_that_newer_pythons_do_not_have():
    import ast

    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not [name for name in names if name.partition(".")[0] in GONE], path


def other_pythons():
    """Of versions that are promised: on the path, or of pyenv's."""
    found = {}
    for version in ("3.12", "3.13", "3.14"):
        own = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python"))
        found[version] = str(own[-1]) if own else shutil.which(f"python{version}")  # pyenv's shims may lead nowhere
    return found


@pytest.mark.parametrize(("version", "python"), other_pythons().items())
def test_the_source_is_that_of_other_pythons(version, python, tmp_path):
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    code = (
        "import pathlib, sys, warnings\n"
        "warnings.simplefilter('error')\n"
        "files = sorted(pathlib.Path(sys.argv[1]).rglob('*.py'))\n"
        "[compile(path.read_text(encoding='utf-8'), str(path), 'exec') for path in files]\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import tailwise, tailwise.core.errors, tailwise.core.registry, tailwise.core.storage\n"
        "import tailwise.core.harmless, tailwise.core.recipe\n"
        "assert tailwise.core.harmless.pattern_from_file('a+b').match('aab')\n"
        "print(len(files), sys.version_info[:2])"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [python, "-P", "-B", "-c", code, str(ROOT / "src")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert version.replace(".", ", ") in done.stdout
