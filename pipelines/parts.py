"""The models that a pipeline consists of, and what each is for."""

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
    """Names and classes of the components with weights, by a pipeline's index; none is loaded."""
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


def named_denoisers(pipe: Any) -> dict[str, nn.Module]:
    """A loaded pipeline's UNet, transformer, or its experts, by their names in the pipeline."""
    return {
        name: part for name, part in pipe.components.items() if kind_of(type(part)) == "denoiser"
    }


def denoisers(pipe: Any) -> list[nn.Module]:
    """A loaded pipeline's UNet, transformer, or its experts."""
    return list(named_denoisers(pipe).values())
