"""The rows that a replay goes by, checked key by key: a damaged one must not make another image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from experiment.records import (
    CANDIDATES,
    candidate_files,
    damaged_row,
    read_candidates,
    written_rows,
)
from utils import UserError

Count = Annotated[int, Field(ge=0, lt=2**31)]
Some = Annotated[int, Field(ge=1, le=10_000)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Checked(BaseModel):
    model_config = ConfigDict(strict=True)


class Recipe(Checked):
    """How a candidate was made; `of` is a seed, or the recipe of a candidate without a row."""

    op: Literal["draw", "perturb", "renoise", "fork", "place"]
    of: Count | Recipe | None = None
    seed: Count | None = None
    at: Count | None = None
    to: Count | None = None
    cosine: Annotated[float, Field(ge=-1, le=1)] | None = None


class Row(Checked):
    id: Count
    prompt: str
    prompt_index: Count
    seed: Count
    recipe: Recipe
    step: Count
    steps: Some
    draft: bool
    guidance: Finite
    batch_size: Some
    score: Finite | None
    nfe: Count
    rows: Count
    path: str | None


def recorded_rows(folder: Path) -> list[dict[str, Any]]:
    """All rows of a run as written; refuses a damaged one, and names it."""
    read_candidates(folder)
    return [row for path in candidate_files(folder) for row in _checked(path)]


def _checked(path: Path) -> Iterator[dict[str, Any]]:
    for number, row in written_rows(path):
        try:
            Row.model_validate(row)
        except ValidationError as error:
            raise UserError(damaged_row(path, number)) from error
        yield row


@contextmanager
def fitting(folder: Path) -> Iterator[None]:
    """Within this block, what does not fit is rows that do not belong together."""
    try:
        yield
    except (AssertionError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise UserError(
            f"The rows of {folder / CANDIDATES} do not fit together ({type(error).__name__}:"
            f" {error}): bring the file back as the run wrote it."
        ) from error
