"""Oracle for class-conditional models: the Fréchet distance of the set chosen so far.

Heusel et al. 2017: the distance of Gaussians fitted to the features of two sets of images. Ma et
al. 2025 search by it to show what a verifier could reach at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from utils import UserError, find_path
from verifiers.base import Item, Score
from verifiers.features import Seen, VisionVerifier
from verifiers.frechet import GrowingSet, gaussian_of, load_statistics

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
WANTED = "an .npz or .safetensors file with mu and sigma, or a folder of images"


@dataclass
class Fid(VisionVerifier):
    """negative_fid: minus the distance of all prompts' winners so far and the candidate.

    statistics: of the real images, under the same model: an .npz as pytorch-fid writes it, a
    .safetensors file, or a folder of images (subfolders too), seen once at load. Published
    statistics are mostly of Inception-v3; the distance works with any model's features (with
    DINOv2's it follows human judgement better: Stein et al. 2023).
    """

    statistics: str = ""

    metrics: ClassVar[tuple[str, ...]] = ("negative_fid",)
    needs: ClassVar[str] = "the weights of a vision model (model_name), and statistics"

    _chosen: Any = field(default=None, init=False, repr=False)

    def check(self) -> None:
        super().check()
        if not self.statistics:
            raise UserError(f"The verifier 'fid' needs verifier_args.statistics: {WANTED}.")
        path = find_path(self.statistics)
        if path is None:
            raise UserError(f"There are no statistics '{self.statistics}': give {WANTED}.")
        if path.is_dir():
            if len(_pictures(path)) < 2:
                raise UserError(f"The folder '{path}' needs two images or more to compare with.")
        elif path.suffix not in (".npz", ".safetensors"):
            raise UserError(f"The statistics '{path}' are of no known kind: give {WANTED}.")

    def load(self, device: str) -> None:
        path = find_path(self.statistics)
        assert path is not None, "checked"
        given = None if path.is_dir() else load_statistics(path)
        super().load(device)
        target = given or gaussian_of(self._folder(path))
        if target.width != self._vision.width:
            raise UserError(
                f"The statistics '{path}' are of {target.width} features and {self.model_name}"
                f" gives {self._vision.width}: take those of the same model, or a folder of images."
            )
        self._chosen = GrowingSet(target)

    def judge(self, item: Item, seen: Seen) -> Score:
        distance = self._chosen.distance_with(seen.features)
        return Score.of(details={"chosen": self._chosen.count}, negative_fid=-distance)

    def chose(self, item: Item) -> None:
        for seen in self.seen_in(item):
            self._chosen.add(seen.features)

    def _folder(self, folder: Path) -> Iterator[Tensor]:
        """The features of a folder's images, a batch at a time."""
        from PIL import Image

        paths = _pictures(folder)
        for begin in range(0, len(paths), self.batch_size):
            batch = paths[begin : begin + self.batch_size]
            images = []
            for path in batch:
                try:
                    with Image.open(path) as image:
                        images.append(image.convert("RGB"))
                except (OSError, SyntaxError, ValueError) as error:
                    raise UserError(f"The image '{path}' cannot be read: remove it.") from error
            rows = []
            for path, seen in zip(batch, self._vision.see(images), strict=True):
                if isinstance(seen, Score):
                    raise UserError(f"The image '{path}' gives no features: {seen.explanation}.")
                rows.append(seen.features)
            yield torch.stack(rows)


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
