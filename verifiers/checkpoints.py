"""Checkpoints of judges: found without a download, opened without running their code."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils import UserError, find_checkpoint, find_path

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")


def find_file(name: str, filenames: Sequence[str]) -> Path | None:
    """A local checkpoint: the file `name`, or the first of `filenames` in it; None on the hub."""
    path = find_path(name)
    if path is None:
        if Path(name).suffix in SUFFIXES:
            raise UserError(f"There is no file '{name}': give an existing file or a hub id.")
        find_checkpoint(name)  # raises what is no hub id either
        return None
    if path.is_file():
        return path
    for filename in filenames:
        if (path / filename).is_file():
            return path / filename
    raise UserError(f"The folder '{name}' has no {' or '.join(filenames)}: give the file itself.")


def fetch_file(name: str, filenames: Sequence[str]) -> Path:
    """The local checkpoint, or the hub's first of `filenames`, downloaded if it is not cached."""
    local = find_file(name, filenames)
    if local is not None:
        return local
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    with _refused(f"The checkpoint '{name}'"):
        for filename in filenames[:-1]:
            try:
                return Path(hf_hub_download(name, filename))
            except EntryNotFoundError:
                continue
        return Path(hf_hub_download(name, filenames[-1]))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A file's tensors by name; a pickle that holds anything else is not opened."""
    from safetensors.torch import load_file

    with _refused(f"The checkpoint '{path}'"):
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, EOFError) as error:
            raise UserError(
                f"The checkpoint '{path}' is no file of plain tensors and was not opened, since it"
                " could run code: give an intact copy, best as safetensors."
            ) from error
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def without_prefix(tensors: Mapping[str, Tensor], known: str, source: object) -> dict[str, Tensor]:
    """The tensors that share the prefix which wraps the name `known`, with it taken off."""
    for name in tensors:
        if name == known or name.endswith("." + known):
            prefix = name.removesuffix(known)
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    raise UserError(f"The checkpoint '{source}' has no '{known}': it is not of the right model.")


def from_pretrained(build: Any, name: str, dtype: str) -> Any:
    """A transformers model from a folder or the hub; one that lacks weights is refused."""
    checkpoint = find_checkpoint(name)
    with _refused(f"The {build.__name__} '{checkpoint}'"), _quiet():
        model, told = build.from_pretrained(
            checkpoint, dtype=DTYPES[dtype], output_loading_info=True
        )
    _refuse(told["missing_keys"], checkpoint, "lacks")
    return model.requires_grad_(False).eval()


def from_tensors(
    build: Any, config: Any, tensors: Mapping[str, Tensor], dtype: str, source: object, **more: Any
) -> Any:
    """A transformers model made of these tensors, all of them and nothing else."""
    with _refused(f"The checkpoint '{source}'"), _quiet():
        model, told = build.from_pretrained(
            None, config=config, state_dict=dict(tensors), dtype=DTYPES[dtype],
            output_loading_info=True, **more,
        )  # fmt: skip
    _refuse(told["missing_keys"], source, "lacks")
    _refuse(told["unexpected_keys"], source, "has an unknown")
    return model.requires_grad_(False).eval()


def tokenizer_of(name: str) -> Any:
    """A tokenizer from a folder or the hub."""
    from transformers import AutoTokenizer

    checkpoint = find_checkpoint(name)
    with _refused(f"The tokenizer '{checkpoint}'"):
        return AutoTokenizer.from_pretrained(checkpoint)


def clip_processor_of(name: str) -> Any:
    """A CLIP image processor from a folder or the hub, the one that works in PIL."""
    from transformers import CLIPImageProcessorPil

    checkpoint = find_checkpoint(name)
    with _refused(f"The image processor '{checkpoint}'"):
        return CLIPImageProcessorPil.from_pretrained(checkpoint)


def linear_head(tensors: Mapping[str, Tensor]) -> nn.Sequential:
    """Linear layers and nothing between them: `layers.N.weight` and `.bias`, in the order of N.

    The originals have dropout between, which scoring leaves out. Kept in fp32.
    """
    numbers = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("layers.")})
    head = nn.Sequential()
    for number in numbers:
        weight, bias = tensors[f"layers.{number}.weight"], tensors[f"layers.{number}.bias"]
        linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        state = {"weight": weight.float(), "bias": bias.float()}
        linear.load_state_dict(state, assign=True)
        head.append(linear)
    return head.requires_grad_(False).eval()


def _refuse(names: Sequence[str], source: object, verb: str) -> None:
    if names:
        raise UserError(
            f"The checkpoint '{source}' {verb} '{min(names)}' and {len(names) - 1} more tensors: it"
            " is not of the right model."
        )


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """Make one sentence of a library's failure to load."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"{what} cannot be loaded ({reason}): give the path of a local copy, or a hub id that"
            " can be reached."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No report of tensors left over; those that matter are refused instead."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
