"""The output tree: where a run's files go, and how each is written whole."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment.config import ExperimentConfig, ExportArgs
from experiment.prompts import Prompt
from experiment.records import CANDIDATES, STATE, SUMMARY, mend_lines
from utils import UserError, path_part, png_bytes, write_atomically
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
    """One run's folder, below output/<model>/<verifier>/<metric>/."""

    def __init__(self, folder: Path, export: ExportArgs) -> None:
        self.folder = folder
        self.export = export

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
        text = json.dumps(content, indent=4, allow_nan=False)
        write_atomically(self.folder / name, (text + "\n").encode())

    def write_summary(self, content: Any) -> None:
        self.write_json(SUMMARY, content)

    def append_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of `candidates.jsonl`, on disk when this returns."""
        self.append_lines(self.folder / CANDIDATES, rows)

    def append_lines(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows at the end of a file, on disk when this returns."""
        with open(path, "ab") as file:
            file.write(b"".join(map(encoded_row, rows)))
            file.flush()
            os.fsync(file.fileno())

    def keep_rows(self, done: Collection[int]) -> None:
        """Drop the rows of prompts that are not done; order those left as the prompts are.

        A last row that an interruption cut short is dropped; damage elsewhere is an error.
        """
        path = self.folder / CANDIDATES
        rows = [row for _, row in mend_lines(path) if row["prompt_index"] in done]
        if path.exists():
            rows.sort(key=lambda row: row["prompt_index"])
            write_atomically(path, b"".join(map(encoded_row, rows)))

    def keep_files(self, stems: Collection[str], paths: Collection[str]) -> None:
        """Drop the pictures and records of all prompts but these, save those at these paths."""
        for path in self.folder.glob("prompt@*_i@*"):
            if path.name not in paths and path.name.rsplit("_i@", 1)[0] not in stems:
                path.unlink()
        for folder in (self.folder, self.state):
            for path in folder.glob(".*.part"):  # of a file that was being written
                path.unlink()

    @property
    def state(self) -> Path:
        """Where unfinished prompts are kept."""
        return self.folder / STATE

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        from safetensors.torch import save

        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        write_atomically(self.state / name, save(plain))

    def read_tensors(self, name: str) -> dict[str, Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load((self.state / name).read_bytes())
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{self.state / name} cannot be read: restore it, or start a new run."
            ) from error

    def settle_names(self) -> None:
        """Have the names of new files on disk too, as far as the file system can promise that."""
        for folder in (self.folder, self.state):
            handle = os.open(folder, os.O_RDONLY)
            try:
                with contextlib.suppress(OSError):  # some know no such promise
                    os.fsync(handle)
            finally:
                os.close(handle)

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
        write_atomically(self.folder / name, data)
        return name

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
        write_atomically(self.folder / name, (self.folder / source).read_bytes())
        return name

    def write_round(self, prompt: Prompt, round: int, seed: int, content: Any) -> None:
        self.write_json(self.name(prompt, round, seed, ".json"), content)


def encoded_row(row: Mapping[str, Any]) -> bytes:
    """A JSON object as a line."""
    return (json.dumps(row, allow_nan=False) + "\n").encode()
