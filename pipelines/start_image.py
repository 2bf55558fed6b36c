"""Image to image: the picture to start from, the pipeline that takes one, and its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from utils import UserError, find_path


def load_picture(name: str) -> Any:
    """The picture at this path as people see it: upright, in RGB, on white where transparent."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = find_path(name)
    if path is None or not path.is_file():
        raise UserError(f"There is no picture '{name}': set init_image to an image file's path.")
    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGBA")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"The picture '{name}' cannot be read: {_line(error)}.") from error
    return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")


def from_image(found: Any) -> Any:
    """The pipeline class itself if its call takes an image, else its sibling that does.

    Which class is whose sibling is diffusers' own table.
    """
    if "image" in inspect.signature(found.__call__).parameters:
        return found
    from diffusers.pipelines import auto_pipeline

    for base in found.__mro__:  # a user's own class has the siblings of the one it refines
        sibling = auto_pipeline._get_task_class(
            auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING, base.__name__, False
        )
        if sibling is not None:
            return sibling
    raise UserError(
        f"{found.__name__} starts from noise, and diffusers knows no form of it that starts from"
        " an image: leave out init_image, or choose another checkpoint."
    )


def image_arguments(
    build: Any, call_args: Mapping[str, Any], picture: Any, strength: float | None
) -> dict[str, Any]:
    """The call arguments with the picture and how much of it is to be painted over.

    A pipeline whose call takes no size makes pictures of its image's: then the image is brought
    to the size asked for, as the others do themselves.
    """
    parameters = inspect.signature(build.__call__).parameters
    arguments = dict(call_args)
    if "height" not in parameters and "width" not in parameters:
        size = arguments.pop("width", picture.width), arguments.pop("height", picture.height)
        picture = picture if size == picture.size else picture.resize(size)
    if strength is not None:
        if "strength" not in parameters:
            raise UserError(
                f"{build.__name__} takes an image, but no strength: leave out 'strength'."
            )
        arguments["strength"] = strength
    return {**arguments, "image": picture}


def first_step(build: Any, scheduler: Any, steps: int, strength: float | None) -> int:
    """The step at which the pipeline starts from an image; `scheduler` is set to its steps.

    Asked of the class itself, whose rule for it needs nothing but the scheduler.
    """
    parameters = inspect.signature(build.__call__).parameters
    if "strength" not in parameters or not hasattr(build, "get_timesteps"):
        return 0
    share = parameters["strength"].default if strength is None else strength
    rest = ("cpu",) if "device" in inspect.signature(build.get_timesteps).parameters else ()
    timesteps, *_ = build.get_timesteps(SimpleNamespace(scheduler=scheduler), steps, share, *rest)
    return len(scheduler.timesteps) - len(timesteps)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
