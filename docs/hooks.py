"""The version of the package beside the name of the site."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Put the version of pyproject.toml into the title."""
    project = tomllib.loads((Path(config.config_file_path).parent / "pyproject.toml").read_text(encoding="utf-8"))
    config.site_name = f"tailwise {project['project']['version']}"
    return config
