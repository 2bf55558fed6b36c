"""What a run ran on: versions, revision, device, weights, command line."""

from __future__ import annotations

import hashlib
import math
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from utils import ROOT

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "numpy",
    "pillow",
    "av",
    "torchao",
)


def manifest(pipe: Any, checkpoint: str, device: str) -> dict[str, Any]:
    """Everything outside the config that an image may depend on."""
    import torch

    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git_revision": git_revision(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "checkpoint": checkpoint,
        "weights": weights_identity(checkpoint),
        "pipeline": type(pipe).__name__,
        "scheduler": {
            "_class_name": type(pipe.scheduler).__name__,
            **{name: _plain(value) for name, value in pipe.scheduler.config.items()},
        },
    }


def _plain(value: Any) -> Any:
    """A setting as JSON can hold it: DPM-Solver's minus infinity as text."""
    infinite = isinstance(value, float) and not math.isfinite(value)
    return str(value) if infinite else value


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_revision() -> str | None:
    """The project's commit, with "+" behind it when files differ; None outside a checkout."""
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def device_name(device: str) -> str:
    """The device as its maker calls it, whichever of several alike it is."""
    import torch

    if device.startswith("cuda"):
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.processor() or platform.machine()})"


def weights_identity(checkpoint: str) -> str | None:
    """A hub checkpoint's commit; a local one's digest over its files' names and sizes."""
    folder = Path(checkpoint)
    if folder.is_dir():
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        listing = "\n".join(f"{p.relative_to(folder).as_posix()} {p.stat().st_size}" for p in files)
        return "files:" + hashlib.sha256(listing.encode()).hexdigest()[:16]
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(checkpoint, "model_index.json")
    return f"commit:{Path(cached).parent.name}" if isinstance(cached, str) else None
