"""One tracker of accelerate's: how it is opened, shown a picture, and kept from ending a run."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils import UserError, did_you_mean

PROJECT = "inference-time-scaling"
PLACES = {"tensorboard": "tensorboard"}  # by tracker: a folder in the run's, not a project
PATIENCE = 3  # failures in a row, after which a tracker is left alone
PACKAGES = {"comet_ml": "comet-ml"}  # by tracker, where pip knows it by another name
LAUNCHED = ("LOCAL_RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def asked_trackers(names: Sequence[str]) -> tuple[str, ...]:
    """The trackers of these names; refuses those that are unknown or not installed."""
    if not names:
        return ()
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    named = tuple(dict.fromkeys(part for name in names for part in re.split(r"[,\s]+", name)))
    for name in named:
        if name not in LOGGER_TYPE_TO_CLASS:
            near = did_you_mean(name, LOGGER_TYPE_TO_CLASS)
            raise UserError(f"There is no tracker '{name}': {near}")
        if not installed(name):
            package = PACKAGES.get(name, name)
            raise UserError(f"The tracker '{name}' is not installed: pip install {package}")
    return named


def installed(name: str) -> bool:
    from accelerate.tracking import get_available_trackers

    return name in map(str, get_available_trackers())


def be_alone() -> None:
    """Let accelerate take this process for the only one, and leave its device alone.

    Its trackers ask its state who is to log. Made by them, it would find a launcher's variables,
    open a process group and choose a device.
    """
    from accelerate import PartialState

    launched = {name: os.environ.pop(name) for name in LAUNCHED if name in os.environ}
    try:
        PartialState(cpu=True)
    finally:
        os.environ.update(launched)


@dataclass(frozen=True)
class Sitting:
    """What a tracker is opened with. id: the same in all sittings of a run."""

    folder: Path
    name: str
    id: str

    def place(self, tracker: str) -> str:
        """The project to log to; of files in the run's folder, their own folder there."""
        return PLACES.get(tracker, PROJECT)

    def options(self, tracker: str) -> dict[str, Any]:
        """Of a tracker's class: so that a resumed run goes on where it was, if that can be."""
        known: dict[str, dict[str, Any]] = {
            "wandb": {
                "name": self.name, "id": self.id, "resume": "allow", "dir": str(self.folder)
            },
            "trackio": {"name": self.name, "resume": "allow"},
            "comet_ml": {"experiment_key": self.id},
            "mlflow": {"run_name": self.name},
            "swanlab": {"experiment_name": self.name, "id": self.id, "resume": "allow"},
            "clearml": {"task_name": self.name},
            "dvclive": {
                "dir": str(self.folder / "dvclive"), "resume": True, "save_dvc_exp": False
            },
        }  # fmt: skip
        return known.get(tracker, {})


class Teller:
    """One tracker, which may fail at any time and never stops the run."""

    def __init__(self, name: str, sitting: Sitting) -> None:
        self._name = name
        self._sitting = sitting
        self._failures = 0
        self._warned = False
        self._tracker: Any = None

    def start(self) -> None:
        """Open the tracker; one that does not open is left alone."""
        self.tell(lambda _: self._open())
        if self._failures:
            self._failures = PATIENCE

    def _open(self) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        build = LOGGER_TYPE_TO_CLASS[self._name]
        where = {"logging_dir": str(self._sitting.folder)}
        self._tracker = build(
            self._sitting.place(self._name),
            **(where if build.requires_logging_directory else {}),
            **self._sitting.options(self._name),
        )
        self._tracker.start()

    def tell(self, what: Callable[[Any], object]) -> None:
        """Say something to the tracker; one that does not listen is left alone after a while."""
        if self._failures >= PATIENCE:
            return
        try:
            what(self._tracker)
        except Exception as error:
            self._failures += 1
            self._warn(error)
        else:
            self._failures = 0

    def show(self, tag: str, pixels: np.ndarray, step: int) -> None:
        """Hand it a picture, if it takes any. pixels: uint8 [height, width, 3]."""
        show = SHOWN.get(self._name, _log_images)
        if self._name in SHOWN or hasattr(self._tracker, "log_images"):
            self.tell(lambda tracker: show(tracker, tag, pixels, step))

    def _warn(self, error: Exception) -> None:
        from tqdm import tqdm

        if self._warned:
            return
        self._warned = True
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        tqdm.write(f"The tracker {self._name} fails, the run goes on without it ({reason}).")


def _log_images(tracker: Any, tag: str, pixels: np.ndarray, step: int) -> None:
    tracker.log_images({tag: pixels[None]}, step=step)


def _tensorboard_image(tracker: Any, tag: str, pixels: np.ndarray, step: int) -> None:
    tracker.log_images({tag: pixels[None]}, step=step, dataformats="NHWC")


def _aim_image(tracker: Any, tag: str, pixels: np.ndarray, step: int) -> None:
    tracker.log_images({tag: pixels}, step=step)


def _trackio_image(tracker: Any, tag: str, pixels: np.ndarray, step: int) -> None:
    import trackio

    tracker.log({tag: trackio.Image(pixels)}, step=step)


SHOWN = {"tensorboard": _tensorboard_image, "aim": _aim_image, "trackio": _trackio_image}
