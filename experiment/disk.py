"""Whether what a run will write finds room."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiment.plan import Plan

BYTES_A_PIXEL = 1.5  # of PNG at its fastest: measured on pictures with much detail
SIDE = 1024  # where the call does not say


def short_of_room(planned: Plan, call: Mapping[str, Any], folder: Path) -> str | None:
    """A sentence if all images may need more than is free; None where that cannot be told."""
    if planned.most is None:
        return None
    pixels = _whole(call, "height", SIDE) * _whole(call, "width", SIDE)
    frames = _whole(call, "num_frames", 1)
    images = planned.most.images
    if frames == 1:
        need = BYTES_A_PIXEL * pixels * images * len(planned.prompts)
    else:  # small as MP4, but while a prompt is searched for its frames are kept
        need = 3.0 * pixels * frames * images
    free = shutil.disk_usage(folder).free
    if need <= free:
        return None
    return (
        f"Up to {need / 1e9:.1f} GB may be written to {folder}, where {free / 1e9:.1f} GB are free:"
        " a full disk stops the run, and it can be resumed."
    )


def _whole(call: Mapping[str, Any], name: str, default: int) -> int:
    value = call.get(name)
    return value if isinstance(value, int) else default
