"""Packages: those that everything needs, and those that only some features need."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from utils import UserError

OLDEST = (3, 11)
EVERYWHERE = {  # as they are imported, and as pip calls them
    "torch": "torch",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "safetensors": "safetensors",
    "numpy": "numpy",
    "PIL": "pillow",
    "pydantic": "pydantic",
    "tqdm": "tqdm",
}


def refuse_bare_python() -> None:
    """Refuse a Python without what everything here needs, before any of it is imported."""
    if sys.version_info < OLDEST:
        raise UserError(
            f"Python {'.'.join(map(str, OLDEST))} or newer is needed, and {sys.executable} is"
            f" {sys.version.split()[0]}: take .venv/bin/python, which `make demo` sets up."
        )
    missing = [pip for name, pip in EVERYWHERE.items() if find_spec(name) is None]
    if missing:
        raise UserError(
            f"{sys.executable} has no {', '.join(missing)}: take .venv/bin/python, which `make"
            " demo` sets up, or run `pip install -r requirements.txt` first."
        )


def refuse_missing(what: str, *packages: str) -> None:
    """Refuse a feature whose packages are not installed, with the command that installs them."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        names = " ".join(missing)
        raise UserError(f"{what} needs {' and '.join(missing)}: pip install {names}.")
