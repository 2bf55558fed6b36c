"""Scenes of the shapes world: drawn at random, captioned, contradicted, and rendered.

The bundled weights were trained on this distribution: the order of the random calls is part of it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shapes.grammar import BACKGROUNDS, COLORS, RELATIONS, SHAPES, SIZES, Claim, Thing, parse
from shapes.negatives import draw_negatives, draw_things

__all__ = [
    "BACKGROUNDS", "COLORS", "KINDS", "RELATIONS", "SHAPES", "SIZE", "SIZES",
    "Batch", "Claim", "Item", "Light", "Scene", "Thing",
    "draw_light", "draw_scene", "pack", "paint", "parse", "render", "signed_distances",
]  # fmt: skip

SIZE = 128  # pixels a side
MOST_ITEMS = 4
KINDS = {"single": 1, "two": 3, "three": 2, "spatial": 4, "count": 3, "mixed": 3, "sized": 2}

_COLOR_NAMES, _BACKGROUND_NAMES = tuple(COLORS), tuple(BACKGROUNDS)
_RADII = {"small": (0.085, 0.11), "large": (0.19, 0.22)}
_PLAIN_RADII, _CROWDED_RADII = (0.10, 0.17), (0.09, 0.14)


@dataclass(frozen=True)
class Item:
    """One object; centre and radius as shares of the image's side, y pointing down."""

    color: str
    shape: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """What is in a picture, a caption that is true of it, and captions that contradict it."""

    kind: str
    claim: Claim
    negatives: tuple[str, ...]
    background: str
    items: tuple[Item, ...]

    @property
    def caption(self) -> str:
        return str(self.claim)


def draw_scene(rng: random.Random) -> Scene:
    """One scene of a random kind; 35 % of the captions name the background."""
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    claim, radii = _draw_claim(kind, rng)
    names = [thing for thing in claim.things for _ in range(thing.count)]
    centres, radii = _place(len(names), claim.relation, radii, rng)
    background = rng.choice(_BACKGROUND_NAMES)
    if rng.random() < 0.35:
        claim = replace(claim, background=background)
    items = tuple(
        Item(name.color, name.shape, x, y, radius)
        for name, (x, y), radius in zip(names, centres, radii, strict=True)
    )
    return Scene(kind, claim, draw_negatives(claim, rng), background, items)


def _draw_claim(kind: str, rng: random.Random) -> tuple[Claim, list[float] | None]:
    """What a scene of this kind shows, and the objects' radii where the caption speaks of them."""
    if kind == "count":
        (thing,) = draw_things(1, rng)
        return Claim((replace(thing, count=rng.choice([2, 3, 4])),)), None
    if kind == "mixed":
        first, second = draw_things(2, rng)
        return Claim((replace(first, count=rng.choice([2, 3])), second)), None
    if kind == "spatial":
        return Claim(draw_things(2, rng), rng.choice(RELATIONS)), None
    if kind == "sized":
        things = draw_things(rng.choice([1, 2]), rng)
        sizes = [rng.choice(SIZES) for _ in things]
        radii = [rng.uniform(*_RADII[size]) for size in sizes]
        sized = (replace(t, size=size) for t, size in zip(things, sizes, strict=True))
        return Claim(tuple(sized)), radii
    return Claim(draw_things({"single": 1, "two": 2, "three": 3}[kind], rng)), None


def _place(
    count: int, relation: str | None, radii: list[float] | None, rng: random.Random
) -> tuple[list[tuple[float, float]], list[float]]:
    """Centres and radii of objects that keep apart, inside the image, and in the relation."""
    plain = _PLAIN_RADII if count < MOST_ITEMS else _CROWDED_RADII
    for _ in range(400):
        sizes = radii or [rng.uniform(*plain) for _ in range(count)]
        centres = [
            (rng.uniform(r + 0.03, 0.97 - r), rng.uniform(r + 0.03, 0.97 - r)) for r in sizes
        ]
        if _apart(centres, sizes) and (relation is None or _clearly(relation, *centres)):
            return centres, sizes
    return _place(count, relation, [0.10] * count, rng)  # too crowded: smaller ones fit


def _apart(centres: Sequence[tuple[float, float]], radii: Sequence[float]) -> bool:
    return all(
        math.dist(centres[i], centres[j]) > radii[i] + radii[j] + 0.04
        for i in range(len(centres))
        for j in range(i)
    )


def _clearly(relation: str, first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Whether the relation holds by a margin, so that nobody could see another one."""
    dx, dy = first[0] - second[0], first[1] - second[1]
    along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    towards = -1 if relation in ("left of", "above") else 1
    return along * towards > 0.2 and abs(across) < abs(along) * 0.8


@dataclass(frozen=True)
class Batch:
    """Scenes as tensors; items that a scene does not have carry index -1."""

    shapes: Tensor  # [n, MOST_ITEMS], index into SHAPES
    colors: Tensor  # [n, MOST_ITEMS], index into COLORS
    geometry: Tensor  # [n, MOST_ITEMS, 3]: x, y, radius
    backgrounds: Tensor  # [n], index into BACKGROUNDS

    def __len__(self) -> int:
        return len(self.backgrounds)

    def __getitem__(self, rows: Tensor | slice) -> Batch:
        return Batch(
            self.shapes[rows], self.colors[rows], self.geometry[rows], self.backgrounds[rows]
        )

    def to(self, device: torch.device | str) -> Batch:
        return Batch(
            self.shapes.to(device),
            self.colors.to(device),
            self.geometry.to(device),
            self.backgrounds.to(device),
        )


@dataclass(frozen=True)
class Light:
    """What differs between two pictures of one scene."""

    tilt: Tensor  # [n], how much lighter the background is at the right edge than at the left
    tint: Tensor  # [n, MOST_ITEMS, 3], added to each item's color


def pack(scenes: Sequence[Scene]) -> Batch:
    shapes = torch.full((len(scenes), MOST_ITEMS), -1)
    colors = torch.full((len(scenes), MOST_ITEMS), -1)
    geometry = torch.zeros(len(scenes), MOST_ITEMS, 3)
    for i, scene in enumerate(scenes):
        for j, item in enumerate(scene.items):
            shapes[i, j] = SHAPES.index(item.shape)
            colors[i, j] = _COLOR_NAMES.index(item.color)
            geometry[i, j] = torch.tensor([item.x, item.y, item.radius])
    backgrounds = torch.tensor([_BACKGROUND_NAMES.index(scene.background) for scene in scenes])
    return Batch(shapes, colors, geometry, backgrounds)


def signed_distances(x: Tensor, y: Tensor) -> Tensor:
    """How far a point [...] is outside each shape of unit radius: [len(SHAPES), ...].

    Scaled so that its slope at the edge is about 1; negative inside.
    """
    radius, angle = torch.sqrt(x * x + y * y + 1e-9), torch.atan2(x, -y)
    circle = radius - 0.95
    square = torch.maximum(x.abs(), y.abs()) - 0.82
    slopes = torch.maximum(0.866 * x - 0.5 * y, -0.866 * x - 0.5 * y)
    triangle = torch.maximum(y - 0.62, slopes - 0.62)
    diamond = (x.abs() + y.abs()) * 0.7071 - 0.72
    tenth = math.pi / 5  # the angle from a tip of the star to the next notch
    fold = torch.remainder(angle, 2 * tenth)
    fold = torch.minimum(fold, 2 * tenth - fold)
    edge = 1.05 * 0.45 * math.sin(tenth)
    star = (radius - edge / (torch.sin(tenth - fold) + 0.45 * torch.sin(fold) + 1e-6)) * 0.7
    upright = torch.maximum(x.abs() - 0.34, y.abs() - 0.95)
    level = torch.maximum(x.abs() - 0.95, y.abs() - 0.34)
    cross = torch.minimum(upright, level)
    ring = (radius - 0.72).abs() - 0.24
    return torch.stack([circle, square, triangle, diamond, star, cross, ring])


def draw_light(
    count: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> Light:
    """Tilts of up to 5 % and tints of up to 2 %, drawn where the generator lives."""
    at = generator.device if generator is not None else device
    tilt = torch.rand(count, generator=generator, device=at) - 0.5
    tint = torch.rand(count, MOST_ITEMS, 3, generator=generator, device=at) - 0.5
    return Light((tilt * 0.10).to(device), (tint * 0.04).to(device))


def paint(batch: Batch, light: Light, size: int = SIZE) -> Tensor:
    """Flat shapes in a soft light, in [-1, 1]: [n, 3, size, size]."""
    device = batch.geometry.device
    line = (torch.arange(size, device=device) + 0.5) / size
    yy, xx = torch.meshgrid(line, line, indexing="ij")
    ground = _rgb(BACKGROUNDS, device)[batch.backgrounds]
    image = ground[:, :, None, None] + light.tilt[:, None, None, None] * (xx - 0.5)
    image = image + 0.05 * (0.5 - yy)
    for j in range(MOST_ITEMS):
        x0, y0, radius = batch.geometry[:, j, :, None, None].unbind(1)
        radius = radius.clamp_min(1e-3)  # absent items have radius 0
        x, y = (xx - x0) / radius, (yy - y0) / radius
        which = batch.shapes[:, j].clamp_min(0)[None, :, None, None].expand(1, *x.shape)
        distance = signed_distances(x, y).gather(0, which)[0] * radius * size  # in pixels
        alpha = (0.5 - distance).clamp(0, 1) * (batch.shapes[:, j] >= 0)[:, None, None]
        color = _rgb(COLORS, device)[batch.colors[:, j].clamp_min(0)] + light.tint[:, j]
        shaded = color[:, :, None, None] * (1.06 - 0.12 * (y[:, None] * 0.5 + 0.5))
        image = torch.lerp(image, shaded, alpha[:, None])
    return image.clamp(0, 1) * 2 - 1


def render(
    scenes: Sequence[Scene], size: int = SIZE, generator: torch.Generator | None = None
) -> Tensor:
    """One picture of each scene, in [-1, 1]: [n, 3, size, size]."""
    return paint(pack(scenes), draw_light(len(scenes), generator), size)


def _rgb(palette: dict[str, tuple[int, int, int]], device: torch.device) -> Tensor:
    """A palette's colors in [0, 1]: [len(palette), 3]."""
    return torch.tensor(list(palette.values()), dtype=torch.float32, device=device) / 255
