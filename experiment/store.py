"""The output tree: where a run's files go, and how each is written whole."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment.config import ExperimentConfig, ExportArgs
from experiment.lock import refuse_lost
from experiment.prompts import Prompt
from experiment.records import CANDIDATES, STATE, SUMMARY
from experiment.rows import Sum, kept_rows, sum_of
from utils import UserError, append_whole, path_part, png_bytes, settle, write_atomically
from verifiers.base import metric_name

if TYPE_CHECKING:
    from torch import Tensor

SHORT_NAMES = {  # tt-scale-flux's folder names
    "black-forest-labs/FLUX.1-dev": "flux.1-dev",
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": "pixart-sigma-1024-ms",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl-base",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd-v1.5",
}


def model_folder(checkpoint: str) -> str:
    """A checkpoint's folder name: tt-scale-flux's for those it knows, else its own, lowercased."""
    own = Path(checkpoint.rstrip("/")).name.lower()
    return path_part(SHORT_NAMES.get(checkpoint, own))


def runs_of(root: str, config: ExperimentConfig) -> Path:
    """The folder that holds the runs of a model, a verifier and a metric."""
    return Path(
        root,
        model_folder(config.pretrained_model_name_or_path),
        path_part(config.verifier_args.name),
        path_part(metric_name(config.verifier_args.metric)),
    )


def refuse_unwritable(root: str) -> None:
    """Refuse an output folder that cannot be made or written, before anything loads."""
    path = Path(root).absolute()
    there = next(p for p in (path, *path.parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"Nothing can be written to '{root}': choose another --output_dir.")


def time_stamp() -> str:
    """The name of a run that begins now."""
    return datetime.now().strftime("%Y%m%d_%H%M%S")


class RunStore:
    """One run's folder, below output/<model>/<verifier>/<metric>/.

    A process that has lost its lock on the folder writes nothing to it: `Lost` is raised instead.
    """

    def __init__(self, folder: Path, export: ExportArgs) -> None:
        self.folder = folder
        self.export = export
        self._sums: dict[str, Sum] = {}  # of pictures and records, by name
        self._rows: dict[int, Sum] = {}  # by prompt
        self._turn = threading.Lock()  # of prompts that are searched for at once

    @classmethod
    def create(cls, root: str, config: ExperimentConfig, name: str | None = None) -> RunStore:
        """A folder of this name, or a new one named by the time; a second run within the second
        gets a number."""
        parent = runs_of(root, config)
        stamp = time_stamp()
        try:
            parent.mkdir(parents=True, exist_ok=True)
            if name is not None:
                (parent / name).mkdir(exist_ok=True)
                return cls(parent / name, config.export)
            for number in range(1, 10_000):
                folder = parent / (stamp if number == 1 else f"{stamp}_{number}")
                try:
                    folder.mkdir()
                except FileExistsError:
                    continue
                return cls(folder, config.export)
        except OSError as error:
            raise UserError(f"Nothing can be written to '{parent}': {error.strerror}.") from error
        raise UserError(f"There are too many runs at '{parent / stamp}': wait a second.")

    def write_json(self, name: str, content: Any) -> None:
        """A JSON file in the run folder; what cannot be a JSON number must be null by now."""
        refuse_lost()
        write_atomically(self.folder / name, _json(content))

    def write_summary(self, content: Any) -> None:
        """The run has ended: the names of all else are on disk before the summary's is, and that
        one when this returns."""
        settle(self.folder)
        self.write_json(SUMMARY, content)
        settle(self.folder)

    def rows_path(self, index: int) -> Path:
        """Where the rows of a prompt go."""
        return self.folder / CANDIDATES

    def append_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of one prompt for `candidates.jsonl`, on disk when this returns."""
        index, data = rows[0]["prompt_index"], b"".join(map(_row, rows))
        refuse_lost()
        with self._turn:
            append_whole(self.rows_path(index), data)
        self._rows[index] = sum_of(data, self._rows.get(index, (0, 0)))

    @property
    def rows_size(self) -> int:
        """Bytes of `candidates.jsonl`."""
        path = self.folder / CANDIDATES
        return path.stat().st_size if path.exists() else 0

    def keep_rows(self, done: Mapping[int, Sum | None]) -> None:
        """Drop the rows of prompts that are not done; order those left as the prompts are.

        done: by index, the sum of a prompt's rows where it is known. A last row that an
        interruption cut short is dropped; damage elsewhere is an error.
        """
        refuse_lost()
        path = self.folder / CANDIDATES
        before = path.read_bytes() if path.exists() else b""
        rows = kept_rows(path, before, done)
        if before.startswith(rows):
            if len(rows) < len(before):
                os.truncate(path, len(rows))
        else:
            write_atomically(path, rows)

    def written(self, prompt: Prompt) -> tuple[dict[str, Sum], Sum]:
        """What was written of a prompt that is done: its files by name, and its rows; each with
        its size and checksum. Asked once."""
        names = [name for name in list(self._sums) if name.rsplit("_i@", 1)[0] == prompt.stem]
        return {name: self._sums.pop(name) for name in names}, self._rows.pop(prompt.index, (0, 0))

    def check(self, name: str, expected: Sum | None, remedy: str) -> bytes:
        """A file of the run, which is refused if it is not as it was written."""
        path = self.folder / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: restore it, or {remedy}.") from error
        if expected is not None and sum_of(data) != expected:
            raise UserError(f"{path} has been changed: restore it, or {remedy}.")
        return data

    def keep_files(self, stems: Collection[str], paths: Collection[str]) -> None:
        """Drop the pictures and records of all prompts but these, save those at these paths."""
        for path in self.folder.glob("prompt@*_i@*"):
            if path.name not in paths and path.name.rsplit("_i@", 1)[0] not in stems:
                path.unlink()
        self.drop_parts()

    def drop_parts(self) -> None:
        """Remove files that a killed process was writing."""
        for folder in (self.folder, self.state):
            for path in folder.glob(".*.part"):
                path.unlink()

    @property
    def state(self) -> Path:
        """Where unfinished prompts are kept."""
        return self.folder / STATE

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> Sum:
        from safetensors.torch import save

        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        data = save(plain)
        refuse_lost()
        write_atomically(self.state / name, data)
        return sum_of(data)

    def read_tensors(self, name: str, expected: Sum | None, remedy: str) -> dict[str, Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load

        data = self.check(f"{STATE}/{name}", expected, remedy)
        try:
            return load(data)
        except SafetensorError as error:
            raise UserError(
                f"{self.state / name} cannot be read: restore it, or {remedy}."
            ) from error

    def media_sum(self, name: str) -> Sum:
        """Of a picture that was written here."""
        return self._sums[name]

    def check_media(self, name: str, expected: Sum | None, remedy: str) -> None:
        """Take on a picture of an earlier sitting."""
        self._sums[name] = sum_of(self.check(name, expected, remedy))

    def settle_names(self) -> None:
        """Have the names of new files on disk too."""
        settle(self.folder)
        settle(self.state)

    def name(self, prompt: Prompt, round: int, seed: int, suffix: str) -> str:
        return f"{prompt.stem}_i@{round}_s@{seed}{suffix}"

    def write_media(self, prompt: Prompt, round: int, seed: int, media: Any) -> str:
        """A candidate's image, or its video if it is a list of frames; returns its path relative
        to the run folder."""
        if isinstance(media, list):
            from experiment.video import mp4_bytes

            name = self.name(prompt, round, seed, ".mp4")
            data = mp4_bytes(media, self.export.fps, crf=self.export.rate_factor)
        else:
            name = self.name(prompt, round, seed, ".png")
            data = png_bytes(media)
        return self._written(name, data)

    def read_media(self, path: str) -> Any:
        """What was written: of an image every pixel, of a video's frames nearly."""
        from PIL import Image

        if path.endswith(".mp4"):
            from experiment.video import read_frames

            return read_frames(self.folder / path)
        with Image.open(self.folder / path) as image:
            return image.convert("RGB")

    def copy_media(self, prompt: Prompt, round: int, seed: int, source: str) -> str:
        """An earlier round's image or video under this round's name."""
        name = self.name(prompt, round, seed, Path(source).suffix)
        return self._written(name, (self.folder / source).read_bytes())

    def write_round(self, prompt: Prompt, round: int, seed: int, content: Any) -> None:
        self._written(self.name(prompt, round, seed, ".json"), _json(content))

    def _written(self, name: str, data: bytes) -> str:
        """Write a result's file whole, and know it again."""
        refuse_lost()
        write_atomically(self.folder / name, data)
        self._sums[name] = sum_of(data)
        return name


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=4, allow_nan=False) + "\n").encode()


def _row(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row, allow_nan=False) + "\n").encode()
