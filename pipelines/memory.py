"""What a pipeline needs of a device's memory, and which placement of its weights fits.

Weights are counted: from the headers of a checkpoint's safetensors files, from its configs alone
where those are missing, or from the loaded models. Decoding is measured on tensors without data:
the VAE's own `decode` runs on torch's meta device while the bytes that are alive are added up.
Denoising is an estimate from the width of the model and its number of tokens. What a text encoder
needs beside its weights, workspaces of kernels and fragmentation are left to `HEADROOM`.
"""

from __future__ import annotations

import inspect
import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipelines.live import peak_bytes
from pipelines.loading import DTYPES, pipeline_index
from pipelines.parts import Kind, kind_of, models_of
from pipelines.quantization import WEIGHT_BYTES, kept_from_fp8

Offload = Literal["none", "model", "group", "sequential"]
Decoding = Literal["plain", "slicing", "tiling"]

HEADROOM = 1.1  # over the expected peak
LAYERS_AT_ONCE = 2  # offloaded by layers: one computes, the next one arrives
TENSORS_A_BLOCK = 24  # of the model's width and number of tokens: q, k, v, a gated feed-forward
TEXT_TOKENS = 512
GB = 10**9
FRAMES_TRIED = 5  # of latents; by then a causal decoder's memory of past frames is full
SIDE = 1024  # where neither the call nor the files say
FILES = ("diffusion_pytorch_model", "model")


@dataclass(frozen=True)
class Part:
    """One model of a pipeline: bytes of its weights, and of its largest single layer's."""

    name: str
    kind: Kind
    weights: int
    layer: int


@dataclass(frozen=True)
class Placement:
    """Where weights live between uses, and how pictures are decoded.

    offload: as diffusers names it. vae: whole batches, one by one ("slicing"), or each in tiles.
    text_leaves: with `offload` "none", text encoders leave the device once a prompt is encoded.
    """

    offload: Offload = "none"
    vae: Decoding = "plain"
    text_leaves: bool = False

    def __str__(self) -> str:
        leaving = ", text encoders leave" if self.text_leaves else ""
        return f"{self.offload}{leaving}" + (f", VAE {self.vae}" if self.vae != "plain" else "")


@dataclass(frozen=True)
class Needs:
    """What a batch needs, in bytes.

    denoising: an estimate of the activations of a step. decoding, tiled: activations of decoding
    one candidate, whole and in tiles; None where they cannot be told, or the VAE has no tiles.
    slices: whether the VAE can decode one by one. chained: whether the pipeline knows the order in
    which its models run, which offloading them needs.
    """

    parts: tuple[Part, ...]
    batch: int
    denoising: int
    decoding: int | None
    tiled: int | None
    slices: bool
    chained: bool

    @property
    def weights(self) -> int:
        return sum(part.weights for part in self.parts)

    def of(self, batch: int) -> Needs:
        """The same pipeline's with batches of another size."""
        return replace(self, batch=batch, denoising=self.denoising * batch // self.batch)

    def decoded(self, vae: Decoding) -> int:
        """Activations of decoding a batch."""
        if vae == "tiling" and self.tiled is not None:
            return self.tiled
        one = self.decoding or 0
        return one if vae != "plain" and self.slices else one * self.batch

    def peak(self, placement: Placement) -> int:
        """The most that is on the device at one time."""
        decoding = self.decoded(placement.vae)
        busiest = max(self.denoising, decoding)
        if placement.offload == "none":
            if not placement.text_leaves:
                return self.weights + busiest
            text = sum(part.weights for part in self.parts if part.kind == "text encoder")
            return max(self.weights, self.weights - text + busiest)
        if placement.offload == "model":
            active = {"denoiser": self.denoising, "decoder": decoding}
            return max(part.weights + active.get(part.kind, 0) for part in self.parts)
        return LAYERS_AT_ONCE * max(part.layer for part in self.parts) + busiest

    def fit(self, placement: Placement, free: int) -> bool:
        return self.peak(placement) * HEADROOM <= free

    def listed(self) -> str:
        """The weights as people read them, the heaviest first."""
        heaviest = sorted(self.parts, key=lambda part: -part.weights)
        each = ", ".join(f"{part.name} {_gb(part.weights)}" for part in heaviest)
        return f"{_gb(self.weights)} GB: {each}"

    def active(self) -> str:
        """Activations of a batch as people read them."""
        decoding = "unknown" if self.decoding is None else f"{_gb(self.decoded('plain'))} GB"
        return (
            f"about {_gb(self.denoising)} GB to denoise {self.batch} at once (an estimate),"
            f" {decoding} to decode them"
        )

    def placements(self, offload: str, vae: str) -> Iterator[Placement]:
        """What the settings leave open, the fastest first; tiles, which change pixels, last."""
        kinds: tuple[tuple[Decoding, ...], ...] = (("plain", "slicing"), ("tiling",))
        for ways in kinds:
            for kind, leaves in self._offloads(offload):
                for way in ways:
                    if vae == way or (vae == "auto" and self._can(way)):
                        yield Placement(kind, way, leaves)

    def _offloads(self, wanted: str) -> Iterator[tuple[Offload, bool]]:
        """The offloads that a setting allows, and whether text encoders leave."""
        if wanted in ("auto", "none"):
            yield "none", False
            if any(part.kind == "text encoder" for part in self.parts):
                yield "none", True
        if wanted == "model" or (wanted == "auto" and self.chained):
            yield "model", False
        if wanted in ("auto", "group"):
            yield "group", False
        if wanted == "sequential":
            yield "sequential", False

    def _can(self, way: Decoding) -> bool:
        return {"plain": True, "slicing": self.slices, "tiling": self.tiled is not None}[way]

    def choose(self, offload: str, vae: str, free: int | None) -> Placement:
        """The fastest placement that fits the free memory, or else the smallest there is."""
        open_ones = list(self.placements(offload, vae))
        if free is None:
            return open_ones[0]
        fitting = (placement for placement in open_ones if self.fit(placement, free))
        return next(fitting, min(open_ones, key=self.peak))


@dataclass(frozen=True)
class Shape:
    """What one candidate is asked to be, as far as it can be told before a call."""

    height: int
    width: int
    frames: int
    rows: int  # through the denoiser for each candidate

    @classmethod
    def of(cls, arguments: Mapping[str, Any], denoiser: Mapping[str, Any], ratio: int) -> Shape:
        """From the call's arguments, defaults included, and the denoiser's config."""
        side = denoiser.get("sample_size")
        usual = side * ratio if isinstance(side, int) else SIDE
        true_scale, scale = arguments.get("true_cfg_scale"), arguments.get("guidance_scale")
        if true_scale is not None:
            guided = true_scale > 1 and arguments.get("negative_prompt") is not None
        else:
            guided = (scale or 0) > 1 and not denoiser.get("guidance_embeds")
        height, width = arguments.get("height") or usual, arguments.get("width") or usual
        return cls(height, width, arguments.get("num_frames") or 1, 2 if guided else 1)


def free_memory(device: str) -> int | None:
    """Bytes that are free on a device; None for the CPU and where nothing tells."""
    kind = torch.device(device).type
    if kind == "cpu":
        return None
    if kind == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    module = getattr(torch, kind)
    if not hasattr(module, "mem_get_info"):
        return None
    module.empty_cache()
    free: int = module.mem_get_info(device)[0]
    return free


def needs_of(pipe: Any, call_args: Mapping[str, Any], batch: int) -> Needs:
    """What a loaded pipeline needs."""
    models = {n: m for n, m in pipe.components.items() if isinstance(m, nn.Module)}
    parts = tuple(
        Part(name, kind_of(type(model)), _bytes(model), max(map(_own_bytes, model.modules())))
        for name, model in models.items()
    )
    configs = {part.name: models[part.name].config for part in parts if part.kind != "other"}
    vae = next((p.name for p in parts if p.kind == "decoder"), None)
    dtype = next(iter(models[vae].parameters())).dtype if vae else torch.float32
    classes = {name: type(model) for name, model in models.items()}
    return _needs(parts, classes, configs, type(pipe), call_args, batch, dtype)


def stored_bytes(checkpoint: str) -> int | None:
    """The size of a local folder's weight files; None unless all of its models have theirs."""
    models = [config.parent for config in Path(checkpoint).glob("*/config.json")]
    files = [_weight_files(folder) for folder in models]
    if not all(files):
        return None
    return sum(file.stat().st_size for found in files for file in found)


def needs_of_folder(
    checkpoint: str,
    dtype: str,
    quantization: str | None,
    build: Any,
    call_args: Mapping[str, Any],
    batch: int,
) -> Needs:
    """What a pipeline of this class from a local folder will need; no weight is loaded."""
    folder = Path(checkpoint)
    index = pipeline_index(checkpoint)
    precision: torch.dtype = getattr(torch, DTYPES[dtype])
    classes: dict[str, type] = {}
    configs: dict[str, Any] = {}
    parts = []
    for name, model in models_of(index):
        kind = kind_of(model)
        config = _config(model, folder / name)
        fewer_bits = quantization if kind == "denoiser" else None
        layers: dict[str, int] = {}
        for tensor, size in _sizes(model, config, folder / name, precision, fewer_bits):
            layer = tensor.rpartition(".")[0]
            layers[layer] = layers.get(layer, 0) + size
        parts.append(Part(name, kind, sum(layers.values()), max(layers.values(), default=0)))
        classes[name], configs[name] = model, config
    return _needs(tuple(parts), classes, configs, build, call_args, batch, precision)


def _arguments(build: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments, the pipeline's defaults included."""
    parameters = inspect.signature(build.__call__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return defaults | dict(given)


def _needs(
    parts: tuple[Part, ...],
    classes: Mapping[str, type],
    configs: Mapping[str, Any],
    build: Any,
    call_args: Mapping[str, Any],
    batch: int,
    dtype: torch.dtype,
) -> Needs:
    arguments = _arguments(build, call_args)
    chained = build.model_cpu_offload_seq is not None
    denoisers = [configs[part.name] for part in parts if part.kind == "denoiser"]
    denoiser = dict(denoisers[0]) if denoisers else {}
    name = next((part.name for part in parts if part.kind == "decoder"), None)
    vae = None
    if name is not None:
        upcast = dtype == torch.float16 and _upcasts(build) and configs[name].get("force_upcast")
        vae = Vae.of(classes[name], configs[name], torch.float32 if upcast else dtype)
    if vae is None:
        shape = Shape.of(arguments, denoiser, 8)
        return Needs(parts, batch, 0, None, None, False, chained)
    shape = Shape.of(arguments, denoiser, vae.ratio)
    latents = vae.latents(shape)
    tokens = math.prod(latents) / denoiser.get("in_channels", latents[1])
    if denoiser.get("in_channels", 0) <= latents[1]:  # else the pipeline has packed the patches
        tokens /= _patch(denoiser)
    each = (tokens + TEXT_TOKENS) * _width(denoiser) * TENSORS_A_BLOCK * dtype.itemsize
    return Needs(
        parts,
        batch,
        int(each * shape.rows * batch),
        vae.peak(latents),
        vae.tiled_peak(latents) if hasattr(vae.model, "use_tiling") else None,
        hasattr(vae.model, "use_slicing"),
        chained,
    )


def _upcasts(build: Any) -> bool:
    """Whether a pipeline decodes in fp32 where its VAE asks for it. Many take no notice: PixArt's
    VAE asks as SDXL's does, and is run in fp16."""
    return hasattr(build, "upcast_vae")


def _patch(denoiser: Mapping[str, Any]) -> int:
    """Latent positions in a token, by the denoiser's config."""
    size = denoiser.get("patch_size") or 1
    return math.prod(size) if isinstance(size, list | tuple) else int(size) ** 2


def _width(denoiser: Mapping[str, Any]) -> int:
    """Channels of a token, or of a UNet's position at full resolution."""
    channels = denoiser.get("block_out_channels")
    if channels:
        return int(channels[0])
    heads, head = denoiser.get("num_attention_heads"), denoiser.get("attention_head_dim")
    if isinstance(heads, int) and isinstance(head, int):
        return heads * head
    found = (denoiser.get(name) for name in ("hidden_size", "inner_dim", "dim"))
    return next((size for size in found if isinstance(size, int)), 3072)


@dataclass(frozen=True)
class Vae:
    """A decoder on the meta device: shapes without data.

    ratio, time: positions of a picture for each of its latents', in space and in time.
    """

    model: Any
    channels: int
    ratio: int
    time: int | None

    @classmethod
    def of(cls, build: Any, config: Mapping[str, Any], dtype: torch.dtype) -> Vae | None:
        """The decoder, its ratios found by a trial; None for one that cannot be tried."""
        channels = int(config.get("latent_channels") or config.get("z_dim") or 0)
        try:
            with torch.device("meta"):
                model = build.from_config(dict(config)).eval()
            nn.Module.to(model, dtype)  # its own method warns
            video = any(isinstance(m, nn.Conv3d) for m in model.modules())
            tried = cls(model, channels, 1, None)
            made = tried.decoded((1, channels, 2, 8, 8) if video else (1, channels, 8, 8))
        except Exception:  # a model with a call of its own: nothing can be said of it
            return None
        return cls(model, channels, made.shape[-1] // 8, made.shape[2] - 1 if video else None)

    def decoded(self, latents: tuple[int, ...]) -> Tensor:
        at = next(self.model.parameters())
        z = torch.empty(latents, dtype=at.dtype, device="meta")
        timed = {}
        if self.model.config.get("timestep_conditioning"):
            timed = {"temb": torch.empty(latents[0], dtype=at.dtype, device="meta")}
        with torch.no_grad():
            sample: Tensor = self.model.decode(z, **timed, return_dict=False)[0]
        return sample

    def latents(self, shape: Shape) -> tuple[int, ...]:
        """The latents of one candidate."""
        plane = (max(1, shape.height // self.ratio), max(1, shape.width // self.ratio))
        if self.time is None:
            return (1, self.channels, *plane)
        return (1, self.channels, 1 + (shape.frames - 1) // self.time, *plane)

    def peak(self, latents: tuple[int, ...]) -> int | None:
        """Bytes alive at the worst moment of decoding one candidate.

        Of a video each further frame of its latents adds the same, once the first few are past,
        and once joining them takes more than decoding them, twice its pixels.
        """
        try:
            if self.time is None or latents[2] <= FRAMES_TRIED:
                return self._measured(latents)
            few, more = (
                self._measured((*latents[:2], frames, *latents[3:]))
                for frames in (FRAMES_TRIED - 1, FRAMES_TRIED)
            )
            pixels = 2 * self._pictures((*latents[:2], 1, *latents[3:])) * (self.time or 1)
            return more + (latents[2] - FRAMES_TRIED) * max(more - few, pixels)
        except Exception:  # an operation that needs data
            return None

    def _measured(self, latents: tuple[int, ...]) -> int:
        return peak_bytes(lambda: self.decoded(latents))

    def tiled_peak(self, latents: tuple[int, ...]) -> int | None:
        """The same in tiles: one of them at a time, and all decoded ones before and after they are
        joined; None without tiles."""
        side = getattr(self.model, "tile_sample_min_size", None)
        height = getattr(self.model, "tile_sample_min_height", side)
        width = getattr(self.model, "tile_sample_min_width", side)
        if not (isinstance(height, int) and isinstance(width, int)):
            return None
        *rest, high, wide = latents
        one = self.peak((*rest, min(high, height // self.ratio), min(wide, width // self.ratio)))
        return one and one + 2 * self._pictures(latents)

    def _pictures(self, latents: tuple[int, ...]) -> int:
        """Bytes of the decoded pixels."""
        frames = 1 if self.time is None else 1 + (latents[2] - 1) * self.time
        pixels = 3 * frames * latents[-2] * latents[-1] * self.ratio**2
        return pixels * next(self.model.parameters()).element_size()


def _gb(size: int) -> str:
    return f"{size / GB:.1f}" if size >= GB / 10 else f"{size / GB:.2g}"


def _bytes(model: nn.Module) -> int:
    return sum(map(tensor_bytes, (*model.parameters(), *model.buffers())))


def _own_bytes(layer: nn.Module) -> int:
    return sum(map(tensor_bytes, (*layer.parameters(False), *layer.buffers(False))))


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor; of a quantised one (torchao), those of the tensors that it is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(tensor_bytes(getattr(tensor, name)) for name in names)
    return tensor.numel() * tensor.element_size()


def _config(model: Any, folder: Path) -> Any:
    """A component's config: a mapping for diffusers' models, transformers' own for theirs."""
    if hasattr(model, "load_config"):
        return model.load_config(str(folder))
    return model.config_class.from_pretrained(str(folder))


def _sizes(
    model: Any, config: Any, folder: Path, dtype: torch.dtype, quantization: str | None
) -> Iterable[tuple[str, int]]:
    """Each tensor's name and bytes, as it will be once it is loaded."""
    files = _weight_files(folder)
    shapes = dict(_headers(files)) if files else _shapes(model, config)
    kept = _kept_in_fp32(model, dtype)
    for name, shape in shapes.items():
        layer, _, tensor = name.rpartition(".")
        size = 4.0 if any(part in kept for part in name.split(".")) else float(dtype.itemsize)
        if quantization == "fp8":
            size = size if kept_from_fp8(model, layer) else 1.0
        elif quantization is not None and len(shape) == 2 and tensor == "weight":
            size = WEIGHT_BYTES[quantization]
        yield name, int(math.prod(shape) * size)


def _kept_in_fp32(model: Any, dtype: torch.dtype) -> set[str]:
    """Names of modules that the libraries keep in fp32."""
    kept = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if hasattr(model, "load_config") or dtype == torch.float16:  # transformers: for fp16 alone
        kept |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    return kept


def _weight_files(folder: Path) -> list[Path]:
    """A component's safetensors files, as from_pretrained picks them; empty where none are."""
    for stem in FILES:
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            files = [folder / name for name in sorted(set(named))]
            return files if all(file.is_file() for file in files) else []
        if (folder / f"{stem}.safetensors").is_file():
            return [folder / f"{stem}.safetensors"]
    return []


def _headers(files: Iterable[Path]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of tensors from the headers of safetensors files."""
    for path in files:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                yield name, tuple(entry["shape"])


def _shapes(model: Any, config: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's parameters from its config alone."""
    with torch.device("meta"):
        made = model.from_config(config) if hasattr(model, "load_config") else model(config)
    return {name: tuple(p.shape) for name, p in made.named_parameters()}
