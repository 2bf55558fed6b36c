"""Every test runs offline, on one thread, from the project's folder."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch

from utils import ROOT


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)  # tiny models: two threads only wait for each other
    monkeypatch.chdir(ROOT)
