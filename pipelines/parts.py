"""The models that a pipeline consists of, and what each is for; no weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Literal

from torch import nn

Kind = Literal["denoiser", "decoder", "text encoder", "other"]


def kind_of(model: Any) -> Kind:
    """What a pipeline's model is for, by what it can do."""
    from diffusers import ModelMixin

    if issubclass(model, ModelMixin):
        return "decoder" if hasattr(model, "decode") else "denoiser"
    # transformers' models name what they take first: token ids, or pixels.
    return "text encoder" if getattr(model, "main_input_name", "") == "input_ids" else "other"


def models_of(index: Mapping[str, Any]) -> Iterator[tuple[str, type]]:
    """Names and classes of the pipeline's components that have weights."""
    for name, value in index.items():
        if not (isinstance(value, list) and len(value) == 2 and all(value)):
            continue
        library, class_name = value
        known = library in ("diffusers", "transformers")
        try:
            place = import_module(library if known else f"diffusers.pipelines.{library}")
        except ImportError:
            continue
        found = getattr(place, class_name, None)
        if isinstance(found, type) and issubclass(found, nn.Module):
            yield name, found
