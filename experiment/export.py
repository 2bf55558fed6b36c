"""Exports of run folders: to data sets that others read, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiment import export_folders, export_parquet
from experiment.export_read import Notes, Sample, samples_of
from experiment.packages import refuse_missing
from experiment.prompt_sets import HUB_ID
from utils import UserError

Write = Callable[[Sequence[Sample], Path, Notes, float], None]


@dataclass(frozen=True)
class Kind:
    """One kind of export. needs: packages."""

    write: Write
    needs: tuple[str, ...] = ()


def _of_pairs(write: Callable[[Sequence[export_parquet.Pair], Path], None]) -> Write:
    return lambda samples, folder, _, margin: write(
        export_parquet.pairs_of(samples, margin), folder
    )


def _of_images(write: Callable[[Sequence[Sample], Path, Notes], None]) -> Write:
    return lambda samples, folder, notes, _: write(samples, folder, notes)


KINDS = {
    "imagefolder": Kind(_of_images(export_folders.image_folder)),
    "parquet": Kind(_of_images(export_parquet.all_images), ("pyarrow",)),
    "preferences": Kind(_of_pairs(export_parquet.preferences), ("pyarrow",)),
    "preferences_trl": Kind(_of_pairs(export_parquet.preferences_trl), ("pyarrow",)),
    "geneval": Kind(_of_images(export_folders.geneval)),
    "t2i_compbench": Kind(_of_images(export_folders.t2i_compbench)),
}


def export(
    runs: Sequence[Path],
    name: str,
    *,
    output: str | Path | None = None,
    margin: float = 0.0,
    repository: str | None = None,
) -> tuple[Path, list[str]]:
    """Write an export of the runs, and push it if a repository is given.

    Returns its folder, and what the user should know of it.
    """
    kind = KINDS[name]
    refuse_missing(f"--export {name}", *kind.needs)
    if not margin >= 0:
        raise UserError(f"--margin must be 0 or more, not {margin}.")
    token = None if repository is None else _token(repository)
    folder = runs[0] / f"export_{name}" if output is None else Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: give another --output, or remove it.")
    notes = Notes()
    samples = samples_of(runs, notes)
    _write_whole(folder, lambda part: kind.write(samples, part, notes, margin))
    lines = list(notes.lines())
    if repository is not None:
        lines.append(f"pushed to {_push(folder, repository, token)}")
    return folder, lines


def _write_whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder beside its place, then move it there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".", suffix=".part"))
    try:
        write(part)
        if not any(part.iterdir()):
            raise UserError("None of the images belongs into this export: see what it is made of.")
        part.chmod(0o755)  # mkdtemp's 0700 would hide it from a shared group
        os.replace(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _token(repository: str) -> str:
    """The token of the environment; what cannot be pushed is refused before anything is written."""
    if not HUB_ID.fullmatch(repository):
        raise UserError(f"--push_to_hub wants a hub id like 'owner/name', not '{repository}'.")
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise UserError("--push_to_hub needs the environment variable HF_TOKEN: set it.")
    return token


def _push(folder: Path, repository: str, token: str | None) -> str:
    """Upload a folder to a dataset repository, made private if it is new; its address."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        url = api.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, repo_type="dataset")
    except Exception as error:  # the hub's client fails in many ways, all of them to the user
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"{folder} is written but cannot be pushed: {reason}.") from error
    return str(url)
