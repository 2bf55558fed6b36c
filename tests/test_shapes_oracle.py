"""The oracle against the renderer, the bundled decoder, and every kind of near miss."""

from __future__ import annotations

import math
import random
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shapes.oracle import judge, size_of, weigh
from shapes.vision import Picture, look
from shapes.world import Claim, Item, Scene, Thing, draw_scene, parse, render

VAE = Path(__file__).parents[1] / "shapes/models/shapes-flux/vae"


@cache
def drawn(count: int, seed: int) -> tuple[Scene, ...]:
    rng = random.Random(seed)
    return tuple(draw_scene(rng) for _ in range(count))


def as_bytes(images: torch.Tensor) -> np.ndarray:
    """Images in [-1, 1] as 8-bit arrays: [n, height, width, 3]."""
    return ((images.clamp(-1, 1).permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()


@cache
def rendered(count: int, seed: int) -> np.ndarray:
    scenes, generator = drawn(count, seed), torch.Generator().manual_seed(seed)
    parts = [render(scenes[at : at + 50], generator=generator) for at in range(0, count, 50)]
    return as_bytes(torch.cat(parts))


@cache
def pictures(count: int, seed: int) -> list[Picture]:
    return [look(image) for image in rendered(count, seed)]


def claim_of(caption: str) -> Claim:
    claim = parse(caption)
    assert claim is not None
    return claim


def is_true(claim: Claim, scene: Scene) -> bool:
    """Whether a claim holds of the scene as it was drawn; written without the oracle's code."""
    said: Counter[tuple[str, str]] = Counter()
    for thing in claim.things:
        said[thing.color, thing.shape] += thing.count
    if said != Counter((item.color, item.shape) for item in scene.items):
        return False
    for thing in claim.things:
        for item in scene.items:
            if thing.size and (item.color, item.shape) == (thing.color, thing.shape):
                low, high = {"small": (0.085, 0.11), "large": (0.19, 0.22)}[thing.size]
                if not low <= item.radius <= high:
                    return False
    if claim.relation:
        first, second = (
            next(i for i in scene.items if (i.color, i.shape) == (t.color, t.shape))
            for t in claim.things
        )
        dx, dy = first.x - second.x, first.y - second.y
        amount = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[claim.relation]
        if amount < max(abs(dx), abs(dy)):
            return False
    return claim.background in (None, scene.background)


@pytest.mark.slow
def test_renders_are_right_by_their_captions() -> None:
    verdicts = [
        weigh(scene.claim, picture)
        for scene, picture in zip(drawn(1000, 21), pictures(1000, 21), strict=True)
    ]
    assert np.mean([verdict.right for verdict in verdicts]) >= 0.99


@pytest.mark.slow
def test_hard_negatives_are_wrong_unless_they_are_true() -> None:
    # A negative made up from nothing can be true of its scene: "a red star" of a scene with one
    # small red star says less than the caption, not something else. Such are judged by the scene.
    wrong, total, true = 0, 0, 0
    for scene, picture in zip(drawn(1000, 21), pictures(1000, 21), strict=True):
        for text in scene.negatives:
            claim = claim_of(text)
            holds = is_true(claim, scene)
            true += holds
            total += 1
            wrong += weigh(claim, picture).right != holds
    assert total == 3000
    assert true <= 0.01 * total  # negatives are negatives, but for accidents
    assert wrong <= 0.01 * total


def test_reading_a_render_finds_its_objects_where_they_are() -> None:
    for scene, picture in zip(drawn(1000, 21)[:100], pictures(1000, 21), strict=False):
        assert len(picture.items) == len(scene.items)
        for item in scene.items:
            near = min(picture.items, key=lambda i: math.dist((i.x, i.y), (item.x, item.y)))
            assert math.dist((near.x, near.y), (item.x, item.y)) < 0.005
            assert near.radius == pytest.approx(item.radius, abs=0.01)


@pytest.mark.slow
def test_decoded_renders_are_right_by_their_captions() -> None:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(VAE, torch_dtype=torch.float32).eval()
    images = torch.from_numpy(rendered(200, 22)).permute(0, 3, 1, 2) / 127.5 - 1
    vae = vae.to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    with torch.no_grad():  # in fours: more fall out of the processor's cache
        decoded = [vae.decode(vae.encode(part).latent_dist.mean).sample for part in images.split(4)]
    right = [
        judge(image, scene.caption).right
        for image, scene in zip(as_bytes(torch.cat(decoded)), drawn(200, 22), strict=True)
    ]
    assert np.mean(right) >= 0.97


@pytest.mark.parametrize("size", [64, 200, 384])
def test_other_sizes_are_judged_alike(size: int) -> None:
    scenes = drawn(12, 23)
    images = as_bytes(render(scenes, size, torch.Generator().manual_seed(0)))
    right = [judge(i, s.caption).right for i, s in zip(images, scenes, strict=True)]
    assert all(right)


def test_all_forms_of_an_image_get_one_verdict() -> None:
    scene, image = drawn(1000, 21)[0], rendered(1000, 21)[0]
    expected = judge(image, scene.caption)
    assert judge(Image.fromarray(image), scene.caption) == expected
    assert judge(image.astype(np.float32) / 255, scene.caption) == expected
    assert judge(image.astype(np.float64) / 255, scene.caption.upper() + ".") == expected


def test_a_caption_outside_the_grammar_has_no_score() -> None:
    verdict = judge(rendered(1000, 21)[0], "a watercolor of a cat")
    assert math.isnan(verdict.score)
    assert not verdict.right
    assert "outside the grammar" in verdict.detail


@pytest.mark.parametrize("level", [0, 128, 255])
def test_an_empty_picture_shows_nothing(level: int) -> None:
    verdict = judge(np.full((128, 128, 3), level, np.uint8), "a red circle")
    assert not verdict.right
    assert verdict.score == 0


def test_noise_and_one_flat_color_are_judged_without_an_error() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert not judge(noise, "a red circle").right
    flat = np.full((128, 128, 3), (214, 40, 40), np.uint8)
    assert not judge(flat, "a red circle").right
    assert not judge(np.full((16, 16, 3), np.nan), "a red circle").right


def picture(*items: Item, background: str = "black") -> Picture:
    return Picture(background, items)


STAR, RING = Item("red", "star", 0.2, 0.3, 0.12), Item("blue", "ring", 0.8, 0.5, 0.12)


def test_more_true_facts_score_higher() -> None:
    claim = claim_of("a red star left of a blue ring on a black background")
    ladder = [
        picture(background="white"),
        picture(Item("red", "ring", 0.2, 0.3, 0.12), background="white"),
        picture(STAR, background="white"),
        picture(STAR),
        picture(STAR, Item("blue", "cross", 0.2, 0.8, 0.12)),
        picture(STAR, Item("blue", "ring", 0.2, 0.8, 0.12)),
        picture(STAR, RING),
    ]
    scores = [weigh(claim, step).score for step in ladder]
    assert scores == sorted(scores)
    assert len(set(scores)) == len(scores)
    assert scores[0] == 0 and scores[-1] == 1


def test_graded_scores_are_shares_of_facts() -> None:
    # Two colors, two shapes, two counts, the total: seven facts.
    claim = claim_of("a red star and a blue ring")
    assert weigh(claim, picture(STAR, RING)).score == 1
    assert weigh(claim, picture(STAR, RING, RING)).score == pytest.approx(5 / 7)
    # One color wrong spoils its object's count as well.
    pink = Item("pink", "ring", 0.8, 0.5, 0.12)
    assert weigh(claim, picture(STAR, pink)).score == pytest.approx(5 / 7)


def test_graded_scores_rise_on_real_renders() -> None:
    generator = torch.Generator().manual_seed(3)
    scenes = [s for s in drawn(1000, 21) if s.kind in ("three", "mixed")][:10]
    for scene, image in zip(scenes, as_bytes(render(scenes, generator=generator)), strict=True):
        thing = scene.claim.things[0]
        other = "ring" if thing.shape != "ring" else "star"
        spoiled = Thing(thing.color, other, thing.count)
        near = str(Claim((spoiled, *scene.claim.things[1:])))
        far = str(Claim((Thing("red", "circle"),)))
        scores = [judge(image, text).score for text in (scene.caption, near, far)]
        assert scores[0] == 1 > scores[1] > scores[2]


@pytest.mark.parametrize(
    ("radius", "size"),
    [(0.085, "small"), (0.11, "small"), (0.15, "medium"), (0.19, "large"), (0.22, "large")],
)
def test_size_classes_hold_the_radii_that_scenes_are_drawn_with(radius: float, size: str) -> None:
    assert size_of(Item("red", "star", 0.5, 0.5, radius)) == size


def test_a_caption_without_a_size_leaves_it_open() -> None:
    for radius in (0.09, 0.15, 0.21):
        assert weigh(claim_of("a red star"), picture(Item("red", "star", 0.5, 0.5, radius))).right


def test_sizes_are_matched_to_the_objects_that_have_them() -> None:
    small, large = Item("red", "star", 0.2, 0.2, 0.1), Item("red", "star", 0.7, 0.7, 0.2)
    assert weigh(claim_of("a large red star and a small red star"), picture(large, small)).right
    assert weigh(claim_of("a small red star and a large red star"), picture(large, small)).right
    assert not weigh(claim_of("two small red stars"), picture(large, small)).right


@pytest.mark.parametrize("relation", ["left of", "right of", "above", "below"])
@pytest.mark.parametrize(
    ("dx", "dy", "true"),
    [(-3, 1, "left of"), (3, -1, "right of"), (1, -3, "above"), (-1, 3, "below")],
)
def test_a_relation_is_that_of_the_longer_way(relation: str, dx: int, dy: int, true: str) -> None:
    first = Item("red", "star", 0.5 + dx / 10, 0.5 + dy / 10, 0.1)
    second = Item("blue", "ring", 0.5, 0.5, 0.1)
    claim = claim_of(f"a red star {relation} a blue ring")
    assert weigh(claim, picture(first, second)).right == (relation == true)
