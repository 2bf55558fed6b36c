"""What a feature model says of a run's winners as a set: how varied, how near to real images.

The one part of reading results that loads a model, and only where one is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment.drawing import Unreadable, read_image, readable
from experiment.report_measures import Told
from experiment.video import read_frames
from utils import UserError, find_path

if TYPE_CHECKING:
    from torch import Tensor

    from verifiers.features import Seen
    from verifiers.frechet import Gaussian

BATCH = 16


@dataclass(frozen=True)
class Gallery:
    """Of how many winners, and under which model, these numbers are.

    numbers: `diversity`, the mean over pairs of 1 - cosine of their features; `inception_score`
    where the model classifies; `fid` where statistics of real images are given. Both are of small
    sets and biased by their size (Chong & Forsyth 2020): they compare runs over the same prompts.
    """

    model: str
    images: int
    numbers: dict[str, float]


def galleries(runs: Sequence[Told], checkpoint: str, statistics: str | None) -> list[Gallery]:
    """One for each run; `statistics` are of the same model, as the verifier `fid` takes them."""
    from verifiers.features import VisionModel
    from verifiers.frechet import load_statistics

    target = None
    if statistics is not None:
        path = find_path(statistics)
        if path is None or path.is_dir():
            raise UserError(f"There are no statistics '{statistics}': give an .npz with mu, sigma.")
        target = load_statistics(path)
    model = VisionModel(
        checkpoint, batch_size=BATCH, dtype="fp32", device="cpu", classifies=False
    )  # fmt: skip
    if target is not None and target.width != model.width:
        raise UserError(
            f"The statistics '{statistics}' are of {target.width} features and '{checkpoint}' gives"
            f" {model.width}: take those of the same model."
        )
    return [_gallery(Path(checkpoint).name, list(_seen(model, run)), target) for run in runs]


def _gallery(model: str, seen: Sequence[Seen], target: Gaussian | None) -> Gallery:
    import torch

    from verifiers.frechet import frechet_distance, gaussian_of

    numbers: dict[str, float] = {}
    if len(seen) > 1:
        features = torch.stack([each.features for each in seen])
        numbers["diversity"] = diversity(features)
        if target is not None:
            numbers["fid"] = frechet_distance(gaussian_of([features]), target)
        probs = [each.log_probs.exp() for each in seen if each.log_probs is not None]
        if len(probs) == len(seen):
            numbers["inception_score"] = inception_score(torch.stack(probs))
    return Gallery(model, len(seen), numbers)


def diversity(features: Tensor) -> float:
    """The mean over pairs of 1 - cosine: with n unit vectors of sum s, 1 - (|s|^2 - n) / n(n-1)."""
    unit = features.double()
    unit = unit / unit.norm(dim=1, keepdim=True).clamp(min=1e-12)
    n = len(unit)
    return 1 - (float(unit.sum(0).square().sum()) - float(unit.square().sum())) / (n * (n - 1))


def inception_score(probs: Tensor) -> float:
    from verifiers.inception_score import ClassTally

    tally = ClassTally()
    for each in probs[:-1]:
        tally.add(each)
    return tally.score_with(probs[-1])


def _seen(model: Any, run: Told) -> Iterator[Seen]:
    """What the model sees in each winner that can be read; in a video, its middle frame."""
    from verifiers.features import Seen

    batch: list[Any] = []
    paths = [
        run.run.folder / each.best.path for each in run.run.searched if each.best and each.best.path
    ]
    for at, path in enumerate(paths, 1):
        with suppress(Unreadable):  # which the run's own reading names, or its page
            batch.append(_image(path))
        if batch and (len(batch) == BATCH or at == len(paths)):
            yield from (each for each in model.see(batch) if isinstance(each, Seen))
            batch = []


def _image(path: Path) -> Any:
    if path.suffix != ".mp4":
        return read_image(path)
    with readable(path):
        frames = read_frames(path, 3)
        return frames[len(frames) // 2]
