"""Packages that only some features need."""

from __future__ import annotations

from importlib.util import find_spec

from utils import UserError


def refuse_missing(what: str, *packages: str) -> None:
    """Refuse a feature whose packages are not installed, with the command that installs them."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        names = " ".join(missing)
        raise UserError(f"{what} needs {' and '.join(missing)}: pip install {names}.")
