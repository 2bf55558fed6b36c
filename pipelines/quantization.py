"""Denoisers in fewer bits, through diffusers' own means: a lever of memory, not of speed.

The denoiser alone: it is what is on the device while a search runs. Text encoders run once a prompt
and can leave the device, and a VAE is small and sensitive.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterable
from typing import Any

from pipelines.parts import denoisers
from utils import UserError

WEIGHT_BYTES = {"int8": 1.0, "4bit": 0.5625}  # of a linear layer; 4bit with a scale for each 64
PACKAGES = {"int8": "torchao", "4bit": "bitsandbytes"}


def check_quantization(quantization: str | None, dtype: str, device: str) -> None:
    """Refuse what cannot be done here, before any weight loads."""
    package = PACKAGES.get(quantization or "")
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(
            f"engine_args.quantization '{quantization}' needs {package}: pip install {package}."
        )
    if quantization == "4bit" and device == "cpu":
        raise UserError("engine_args.quantization '4bit' needs a GPU: set it to null, or to 'fp8'.")
    if quantization == "int8" and dtype != "bf16":
        raise UserError("engine_args.quantization 'int8' needs bf16: set torch_dtype to 'bf16'.")


def loading_arguments(quantization: str, names: Iterable[str], dtype: Any) -> dict[str, Any]:
    """What `from_pretrained` is handed to quantise the components of these names as it loads."""
    if quantization not in PACKAGES:
        return {}
    from diffusers import PipelineQuantizationConfig

    make = {"int8": _int8, "4bit": _nf4}[quantization]
    mapping = {name: make(dtype) for name in names}
    return {"quantization_config": PipelineQuantizationConfig(quant_mapping=mapping)}


def _int8(dtype: Any) -> Any:
    """Weights in 8-bit integers with a scale for each output; computed in the run's dtype."""
    from diffusers import TorchAoConfig

    torchao: Any = importlib.import_module("torchao.quantization")
    return TorchAoConfig(torchao.Int8WeightOnlyConfig())


def _nf4(dtype: Any) -> Any:
    """NF4 of QLoRA (Dettmers et al. 2023); computed in the run's dtype."""
    from diffusers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


def kept_from_fp8(model: Any, layer: str) -> bool:
    """Whether a layer of this name keeps its weights as they are: norms, embeddings of patches and
    positions, and what the model's class names."""
    from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN

    patterns = [*DEFAULT_SKIP_MODULES_PATTERN, *(model._skip_layerwise_casting_patterns or ())]
    patterns += model._keep_in_fp32_modules or ()
    names = layer.split(".")
    outer = [".".join(names[: i + 1]) for i in range(len(names))]
    return not layer or any(re.search(p, name) for p in patterns for name in outer)


def store_in_fp8(pipe: Any, dtype: Any) -> None:
    """Keep weights in 8-bit floats; each layer is cast as it computes, norms stay as they are."""
    for model in denoisers(pipe):
        stored_in_fp8(model, dtype)


def stored_in_fp8(model: Any, dtype: Any) -> None:
    """The same for one model."""
    import torch

    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)
