"""Where local verifiers judge: beside the pipeline, in turns with it, or elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from pipelines.denoiser import Denoiser
from pipelines.devices import on
from pipelines.loading import choose_device
from pipelines.placement import Residence
from verifiers.base import Chosen, Item, Score
from verifiers.turns import taking


@dataclass(frozen=True)
class Guest(Chosen):
    """A verifier for whom the pipeline leaves the device, and who leaves it when it is done."""

    residence: Residence

    def score(self, items: Sequence[Item]) -> list[Score]:
        self.residence.leave()
        scores = super().score(items)
        self.offload()
        return scores

    def chose(self, item: Item) -> None:
        self.residence.leave()
        super().chose(item)
        self.offload()


@dataclass(frozen=True)
class Neighbor(Chosen):
    """A verifier beside the pipeline, whose model works while nothing is being denoised."""

    turn: AbstractContextManager[object]
    _asked: threading.RLock = field(  # processors of pictures and texts are for one thread each
        default_factory=threading.RLock, init=False, repr=False, compare=False
    )

    def score(self, items: Sequence[Item]) -> list[Score]:
        with self._asked, taking(self.turn) if self.takes_turns else self.turn:
            return super().score(items)

    def chose(self, item: Item) -> None:
        with self.turn:
            super().chose(item)


@dataclass(frozen=True)
class Apart(Chosen):
    """A verifier on a device of its own, who judges a batch while the next is denoised."""

    device: str
    _turn: threading.RLock = field(
        default_factory=threading.RLock, init=False, repr=False, compare=False
    )

    @property
    def remote(self) -> bool:
        return True

    def load(self, device: str) -> None:
        super().load(self.device)

    def score(self, items: Sequence[Item]) -> list[Score]:
        with self._turn, on(self.device):
            return super().score(items)

    def chose(self, item: Item) -> None:
        with self._turn, on(self.device):
            super().chose(item)


def verifier_device(wanted: str, device: str) -> str:
    """Where verifiers run whose pipeline is on `device`.

    wanted: "auto" is another GPU where the pipeline's own has no number: then the process is not
    one of several that have one each, and no user has shared the GPUs out.
    """
    import torch

    if wanted != "auto":
        return choose_device(wanted, "verifier_device")
    if device != "cuda" or torch.cuda.device_count() < 2:
        return device
    return f"cuda:{(torch.cuda.current_device() + 1) % torch.cuda.device_count()}"


def placed(verifier: Chosen, device: str, pipeline_device: str) -> Chosen:
    """The verifier, as one that judges apart if its device is not the pipeline's."""
    if verifier.remote or _number(device) == _number(pipeline_device):
        return verifier
    return Apart(verifier.verifier, verifier.name, verifier.metric, device)


def _number(device: str) -> tuple[str, int]:
    import torch

    found = torch.device(device)
    current = torch.cuda.current_device() if found.type == "cuda" and found.index is None else 0
    return found.type, found.index or current


def seated(verifier: Chosen, denoiser: Denoiser) -> Chosen:
    """The verifier, where need be as one that waits its turn or has the device to itself."""
    if verifier.remote:
        return verifier
    residence = denoiser.residence
    if residence is not None and residence.alone:
        return Guest(verifier.verifier, verifier.name, verifier.metric, residence)
    return Neighbor(verifier.verifier, verifier.name, verifier.metric, denoiser.turn)
