"""Reads a picture of the shapes world from its pixels alone: background, objects, where, how big.

Pixels are named by the nearest color; thick patches of one name are objects; an object's soft
coverage mask, brought to unit area, is compared with the renderer's own shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from shapes.grammar import BACKGROUNDS, COLORS, SHAPES
from shapes.world import SIZE, Item, signed_distances

UNCLEAR = "unclear"  # a color or shape that is none of the world's
SMALLEST = 50.0  # pixels; the smallest object of the world covers 170, a smudge fewer than this
ROUNDING, SHARPENING = 1.6, 2.0  # pixels of blur, contrast after it: how a decoder draws
LEAST_OVERLAP = 0.75  # generated shapes with a name reach 0.79; torn and merged ones 0.70
FARTHEST_COLOR = 0.25  # RGB distance in [0, 1]; the light moves a color by 0.07

_NAMES = (*COLORS, *BACKGROUNDS)
_PALETTE = np.array([*COLORS.values(), *BACKGROUNDS.values()], dtype=np.float32) / 255
_NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0))
_GRID = 44  # points a side of the frame in which unit-area masks are compared

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Picture:
    """What is to be seen: the background's name and every object, the largest first."""

    background: str
    items: tuple[Item, ...]


def look(image: Image.Image | NDArray[np.generic]) -> Picture:
    """Read an RGB image of any size: PIL, or [height, width, 3] of uint8 or of floats in [0, 1]."""
    pixels = _pixels(image)
    ground, name = _background(pixels)
    regions = _components(_eroded(_nearest_colors(pixels, name)))
    territories = _grown(regions)
    found = []
    for region in range(1, int(regions.max()) + 1):
        color = np.median(pixels[:, regions == region], axis=1)
        mask = _coverage(pixels, ground, color) * (territories == region)
        if mask.sum() >= SMALLEST:
            found.append((float(mask.sum()), _item(mask, color)))
    found.sort(key=lambda pair: -pair[0])
    return Picture(name, tuple(item for _, item in found))


def _pixels(image: Image.Image | NDArray[np.generic]) -> Floats:
    """RGB in [0, 1] with SIZE pixels on the longer side: [3, height, width]."""
    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        if array.dtype != np.uint8:
            array = np.nan_to_num(array.astype(np.float32)).clip(0, 1)
            array = (array * 255).round().astype(np.uint8)
        image = Image.fromarray(array)
    image = image.convert("RGB")
    scale = SIZE / max(image.size)
    wide, high = (max(1, round(side * scale)) for side in image.size)
    if image.size != (wide, high):
        image = image.resize((wide, high), Image.Resampling.BICUBIC)
    # Channels first: numpy reduces over a short last axis ten times slower.
    pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1), dtype=np.float32)
    return pixels / np.float32(255)


def _background(pixels: Floats) -> tuple[Floats, str]:
    """The background as a plane through its pixels [3, height, width], and its name."""
    some = pixels[:, ::2, ::2]
    neutral = some.max(0) - some.min(0) < 0.2  # an object's color is far from gray
    if neutral.mean() < 0.05:
        neutral = np.ones_like(neutral)
    typical = np.median(some[:, neutral], axis=1)[:, None, None]
    names = _PALETTE[len(COLORS) :]
    name = tuple(BACKGROUNDS)[int(((names - typical.ravel()) ** 2).sum(1).argmin())]
    offsets = some - typical
    ys, xs = np.nonzero(np.abs(offsets).max(0) < 0.12)
    basis = np.stack([np.ones_like(xs), xs, ys]).astype(np.float32)
    # Normal equations will do for three unknowns; the ridge is for images of few such pixels.
    square = basis @ basis.T + 1e-3 * np.eye(3, dtype=np.float32)
    plane = np.linalg.solve(square, basis @ offsets[:, ys, xs].T)[:, :, None, None]
    _, high, wide = pixels.shape
    across = np.arange(wide, dtype=np.float32) / 2
    down = np.arange(high, dtype=np.float32)[:, None] / 2
    return typical + plane[0] + plane[1] * across + plane[2] * down, name


def _nearest_colors(pixels: Floats, background: str) -> Labels:
    """For each pixel the index of the nearest name plus 1; 0 for the background's."""
    # By hand: a matrix product would start threads, which stall when other work has the cores.
    red, green, blue = 2 * _PALETTE.T[:, :, None, None]
    products = red * pixels[0] + green * pixels[1] + blue * pixels[2]
    labels = ((_PALETTE**2).sum(1)[:, None, None] - products).argmin(0) + 1
    labels[labels == _NAMES.index(background) + 1] = 0
    return labels


def _shifted(labels: Labels, dy: int, dx: int) -> Labels:
    """The map moved by one pixel, with background coming in at the border."""
    out = np.zeros_like(labels)
    high, wide = labels.shape
    to_y, from_y = slice(max(dy, 0), high + min(dy, 0)), slice(max(-dy, 0), high - max(dy, 0))
    to_x, from_x = slice(max(dx, 0), wide + min(dx, 0)), slice(max(-dx, 0), wide - max(dx, 0))
    out[to_y, to_x] = labels[from_y, from_x]
    return out


def _eroded(labels: Labels) -> Labels:
    """Keep pixels whose neighbours agree: blends at edges pass other colors, one pixel wide."""
    same = labels > 0
    for dy, dx in _NEIGHBOURS:
        same &= _shifted(labels, dy, dx) == labels
    return np.where(same, labels, 0)


def _components(labels: Labels) -> Labels:
    """Number the 4-connected patches of equal label from 1; 0 stays 0.

    Union-find over horizontal runs: a picture has a few hundred, so plain Python is quick.
    """
    runs = _runs(labels)
    parents = list(range(len(runs)))

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = parents[parents[run]]
            run = parents[run]
        return run

    above: list[int] = []
    row: list[int] = []
    for index, (y, start, stop, label) in enumerate(runs):
        if row and runs[row[0]][0] != y:
            above, row = row, []
        row.append(index)
        for other in above:
            other_y, other_start, other_stop, other_label = runs[other]
            touches = other_start < stop and start < other_stop and other_y == y - 1
            if touches and other_label == label:
                parents[root(index)] = root(other)
    numbers: dict[int, int] = {}
    out = np.zeros_like(labels)
    for index, (y, start, stop, _) in enumerate(runs):
        out[y, start:stop] = numbers.setdefault(root(index), len(numbers) + 1)
    return out


def _runs(labels: Labels) -> list[tuple[int, int, int, int]]:
    """Horizontal runs of equal label other than 0: row, first column, end, label."""
    padded = np.pad(labels, ((0, 0), (1, 1)))
    ys, xs = np.nonzero(padded[:, 1:] != padded[:, :-1])
    runs = []
    for y, start, next_y, stop in zip(ys[:-1], xs[:-1], ys[1:], xs[1:], strict=True):
        if y == next_y and labels[y, start]:
            runs.append((int(y), int(start), int(stop), int(labels[y, start])))
    return runs


def _grown(regions: Labels, steps: int = 3) -> Labels:
    """Each patch with its surroundings, up to where another's begin."""
    for _ in range(steps):
        for dy, dx in _NEIGHBOURS:
            regions = np.where(regions == 0, _shifted(regions, dy, dx), regions)
    return regions


def _coverage(pixels: Floats, ground: Floats, color: Floats) -> Floats:
    """How far each pixel is on the way from the background to the color: [height, width]."""
    way = color[:, None, None] - ground
    return (((pixels - ground) * way).sum(0) / ((way**2).sum(0) + 1e-6)).clip(0, 1)


def _item(mask: Floats, color: Floats) -> Item:
    """The object with this coverage mask."""
    area = float(mask.sum())
    high, wide = mask.shape
    x = float(mask.sum(0) @ (np.arange(wide) + 0.5)) / area
    y = float(mask.sum(1) @ (np.arange(high) + 0.5)) / area
    side = area**0.5
    templates = _templates(2 * round(side / 2))
    seen = _framed(mask, x, y, side)
    overlaps = torch.minimum(seen, templates.masks).sum((1, 2)) / torch.maximum(
        seen, templates.masks
    ).sum((1, 2))
    best = int(overlaps.argmax())
    shape = SHAPES[best % len(SHAPES)] if overlaps[best] >= LEAST_OVERLAP else UNCLEAR
    radius = float(templates.radii[best]) * side
    return Item(_color_name(color), shape, x / SIZE, y / SIZE, radius / SIZE)


def _color_name(color: Floats) -> str:
    distances = np.sqrt(((_PALETTE - color) ** 2).sum(1))
    best = int(distances.argmin())
    return _NAMES[best] if distances[best] < FARTHEST_COLOR else UNCLEAR


def _framed(mask: Floats, x: float, y: float, side: float) -> Tensor:
    """The mask around a centre, in a frame of twice the side: [_GRID, _GRID]."""
    high, wide = mask.shape
    line = torch.linspace(-1, 1, _GRID) * side
    at_x, at_y = (x + line) * 2 / wide - 1, (y + line) * 2 / high - 1
    grid = torch.stack(torch.meshgrid(at_x, at_y, indexing="xy"), dim=-1)
    image = torch.from_numpy(mask)[None, None]
    return functional.grid_sample(image, grid[None], align_corners=False)[0, 0]


@dataclass(frozen=True)
class Templates:
    """The world's shapes at unit area, as drawn and then with corners as a decoder rounds them."""

    masks: Tensor  # [2 * len(SHAPES), _GRID, _GRID], coverage
    radii: Tensor  # [2 * len(SHAPES)]


@cache
def _templates(side: int) -> Templates:
    """For objects with the area of a square of `side` pixels: blur is a matter of pixels."""
    pairs = [
        _template(shape, side, blur) for blur in (0.0, ROUNDING) for shape in range(len(SHAPES))
    ]
    masks, radii = zip(*pairs, strict=True)
    return Templates(torch.stack(masks), torch.tensor(radii))


def _template(shape: int, side: int, blur: float) -> tuple[Tensor, float]:
    """One shape's coverage at unit area [_GRID, _GRID], and its radius."""
    line, step = torch.linspace(-1, 1, _GRID), 2 / (_GRID - 1)
    spread = torch.exp(-0.5 * ((line[:, None] - line) * side / max(blur, 1e-3)) ** 2)
    spread = spread / spread.sum(1, keepdim=True)  # Gaussian blur of one axis as a matrix
    radius = 0.7
    for _ in range(3):  # without its corners a shape needs a larger radius for the same area
        points = torch.meshgrid(line / radius, line / radius, indexing="xy")
        mask = (0.5 - signed_distances(*points)[shape] * radius * side).clamp(0, 1)
        # Blurred, then sharpened: edges stay where they are, corners and tips go.
        mask = ((spread @ mask @ spread.T - 0.5) * SHARPENING + 0.5).clamp(0, 1) if blur else mask
        radius /= float(mask.sum() * step**2) ** 0.5
    return mask, radius
