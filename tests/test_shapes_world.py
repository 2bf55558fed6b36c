"""The shapes world: the distribution the weights were trained on, its grammar and its renderer."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter

import pytest
import torch

from shapes.prompts import FILE, NUMBER, as_text, draw_prompts
from shapes.world import (
    KINDS,
    SHAPES,
    Claim,
    Light,
    Scene,
    Thing,
    draw_light,
    draw_scene,
    pack,
    paint,
    parse,
    render,
    signed_distances,
)

# What the recipe of the bundled weights drew: five scenes from each of three seeds.
GOLDEN = {
    0: [
        "three purple circles and a cyan star",
        "a purple star",
        "four purple crosses",
        "a blue circle below a pink circle",
        "a small orange cross",
    ],
    1: [
        "an orange triangle and an orange diamond",
        "a red diamond below a red triangle on a white background",
        "a purple triangle",
        "a yellow star and a green triangle on a white background",
        "a small pink triangle on a black background",
    ],
    2: [
        "a large orange circle on a gray background",
        "a large red ring and a large red triangle on a black background",
        "a red circle right of a blue triangle",
        "a red square below a green cross on a white background",
        "two pink triangles and a blue diamond on a gray background",
    ],
}


def scenes(count: int, seed: int) -> list[Scene]:
    rng = random.Random(seed)
    return [draw_scene(rng) for _ in range(count)]


@pytest.mark.parametrize("seed", GOLDEN)
def test_a_seed_draws_the_scenes_of_the_recipe(seed: int) -> None:
    assert [scene.caption for scene in scenes(5, seed)] == GOLDEN[seed]


def test_placement_and_negatives_are_the_recipes_too() -> None:
    scene = scenes(1, seed=0)[0]
    item = scene.items[0]
    assert (item.x, item.y, item.radius) == pytest.approx(
        (0.17972659353343745, 0.22251757463509614, 0.12234628599176614), abs=1e-12
    )
    assert scene.background == "white"
    assert set(scene.negatives) == {
        "three cyan circles and a purple star",
        "three purple circles and a yellow star",
        "three purple rings and a cyan star",
    }


def test_parsing_2000_captions_gives_the_scenes_objects() -> None:
    for scene in scenes(2000, seed=11):
        claim = parse(scene.caption)
        assert claim is not None
        said: Counter[tuple[str, str]] = Counter()
        for thing in claim.things:
            said[thing.color, thing.shape] += thing.count
        assert said == Counter((item.color, item.shape) for item in scene.items)
        assert claim.background in (None, scene.background)
        assert (claim.relation is not None) == (scene.kind == "spatial")
        assert all((thing.size is not None) == (scene.kind == "sized") for thing in claim.things)


def test_a_parsed_caption_is_written_as_it_was() -> None:
    for scene in scenes(500, seed=12):
        for text in (scene.caption, *scene.negatives):
            assert str(parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "Two Green Stars and a purple ring on a black background.",
        "  two green  stars and a PURPLE ring on a black   background ",
        "two green stars and a purple ring on a black background .",
    ],
)
def test_case_spaces_and_a_full_stop_are_free(text: str) -> None:
    things = (Thing("green", "star", 2), Thing("purple", "ring"))
    assert parse(text) == Claim(things, background="black")


def test_commas_need_no_particular_spaces() -> None:
    expected = parse("a red star, a blue ring and a pink cross")
    assert expected is not None
    assert parse("a red star ,a blue ring and a pink cross") == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a photo of a cat",
        "two red circle",
        "a red circles",
        "five red circles",
        "a tiny red circle",
        "a red circle, a blue star",
        "a red circle and a blue star and a green ring",
        "a red circle left of a blue star above a green ring",
        "a red circle, a pink star and a cyan ring left of a blue star",
        "a red circle on a green background",
        "a red circle on a white background on a black background",
        "a red circle on a white background and a blue star",
        "red circle",
    ],
)
def test_text_outside_the_grammar_is_no_claim(text: str) -> None:
    assert parse(text) is None


def test_rendering_repeats_with_a_generator_and_leaves_the_global_one_alone() -> None:
    drawn = scenes(4, seed=1)
    before = torch.random.get_rng_state()
    first, again, other = (
        render(drawn, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_render_has_the_right_form_and_shows_its_items() -> None:
    drawn = scenes(16, seed=2)
    images = render(drawn, size=96, generator=torch.Generator().manual_seed(0))
    assert images.shape == (16, 3, 96, 96)
    assert images.abs().max() <= 1
    for image, scene in zip(images, drawn, strict=True):
        for item in scene.items:
            if item.shape != "ring":  # a ring's centre shows the background
                color = image[:, int(item.y * 96), int(item.x * 96)]
                assert color.max() - color.min() > 0.5


def test_a_batch_paints_as_its_rows_do() -> None:
    batch, light = pack(scenes(6, seed=3)), draw_light(6, torch.Generator().manual_seed(0))
    whole = paint(batch, light)
    for at in range(6):
        rows = slice(at, at + 1)
        alone = paint(batch[rows], Light(light.tilt[rows], light.tint[rows]))
        assert torch.allclose(whole[rows], alone, atol=1e-6)


def test_prompts_file_is_what_the_command_makes() -> None:
    assert FILE.read_text(encoding="utf-8") == as_text(draw_prompts())


def test_prompts_differ_and_cover_all_kinds_evenly() -> None:
    prompts = draw_prompts()
    assert len({caption for caption, _ in prompts}) == len(prompts) == NUMBER
    numbers = Counter(kind for _, kind in prompts)
    assert set(numbers) == set(KINDS)
    assert max(numbers.values()) - min(numbers.values()) <= 1
    assert all(parse(caption) is not None for caption, _ in prompts)


def test_importing_the_world_is_cheap() -> None:
    code = (
        "import shapes.world, sys; print('diffusers' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_every_shape_has_a_field() -> None:
    zero = torch.zeros(1)
    assert signed_distances(zero, zero).shape == (len(SHAPES), 1)
