"""Budgets of whole runs on the bundled pipelines: never exceeded, and never without an image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.test_run import on_stable_diffusion, ran, rows_of


def spent(folder: Path) -> dict[str, Any]:
    total: dict[str, Any] = json.loads((folder / "summary.json").read_text())["total"]
    return total


def test_guidance_that_is_switched_on_on_the_way_stays_within_a_budget_of_rows(
    tmp_path: Path,
) -> None:
    sd = on_stable_diffusion(steps=4)
    sd["pipeline_call_args"]["guidance_scale"] = 1.0
    search = {"search_method": "monitor", "check_interval": 1, "quality_threshold": 5}
    folder = ran(tmp_path, search_args=search, budget={"rows": 40}, **sd)
    assert any(row["guidance"] > 1 for row in rows_of(folder))
    assert spent(folder)["rows"] <= 40


@pytest.mark.parametrize("search", [
    {"search_method": "halving"},
    {"search_method": "draft", "inner": {"search_method": "zero-order"}},
], ids=lambda search: str(search["search_method"]))  # fmt: skip
def test_few_verifications_still_end_with_an_image(search: dict[str, Any], tmp_path: Path) -> None:
    folder = ran(tmp_path, search_args=search, budget={"verifications": 4})
    rows = rows_of(folder)
    assert len(rows) == 4
    (image,) = [row for row in rows if row["path"]]
    best = max(rows[:-1], key=lambda row: row["score"])
    assert image["id"] == 3 and image["parents"] == [best["id"]]


def test_random_search_with_noisy_steps_is_the_plain_sample_of_the_methods_that_branch(
    tmp_path: Path,
) -> None:
    """rbf with one noise and one child a step, cut at every step, makes the same image."""
    call = {"num_inference_steps": 4, "height": 64, "width": 64}
    shared = {"pipeline_call_args": call, "batch_size_for_img_gen": 1, "budget": {"nfe": 4}}

    def image(name: str, **search: Any) -> bytes:
        folder = ran(tmp_path / name, search_args={"search_method": name, **search}, **shared)
        (row,) = [row for row in rows_of(folder) if row["path"]]
        return (folder / row["path"]).read_bytes()

    noisy = image("random", stochastic=True)
    assert noisy == image("rbf", chains=1, init_particles=1, quota=1)
    assert noisy != image("halving", pool=1, checkpoints=[])
