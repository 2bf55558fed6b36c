"""Seconds and peak memory of a report on many prompts, on a run folder made for it.

    python -m benchmarks.report                       # 1,000 prompts of 30 candidates
    python -m benchmarks.report --prompts 10 --size 64

The images are PNGs of noise over a gradient, about as hard to read as photographs; few differ, and
the rest are links to them. The making of the folder is not counted. Where Playwright and a Chromium
are installed (`--browser`), also the time until the page is first painted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from utils import ROOT, png_bytes, prompt_stem

DIFFERENT = 8
ROUNDS = 3
EXPLANATION = "The image shows what was asked for; its light is soft and its composition balanced. "


def make_run(folder: Path, prompts: int, candidates: int, size: int) -> None:
    """A finished run of best of N, graded with explanations, each winner judged."""
    rng = random.Random(0)
    sources = _images(folder, size)
    config = {"search_args": {"search_method": "random"}, "verifier_args": {"name": "grader"}}
    (folder / "config.json").write_text(json.dumps(config))
    summary = []
    with open(folder / "candidates.jsonl", "w", encoding="utf-8") as file:
        for index in range(prompts):
            prompt = f"prompt {index}: a small robot that waters flowers on a balcony at dusk"
            rows = [_row(rng, index, prompt, i, candidates) for i in range(candidates)]
            best = max(rows, key=lambda row: float(row["score"]))
            best["judges"] = {"clip": {"clip_score": rng.random()}}
            for row in rows:
                os.link(rng.choice(sources), folder / str(row["path"]))
                file.write(json.dumps(row) + "\n")
            summary.append({"prompt": prompt, "prompt_index": index, "best": best})
            _write_rounds(folder, prompt, rows)
    (folder / "summary.json").write_text(json.dumps({"prompts": summary}))
    for source in sources:
        source.unlink()


def _images(folder: Path, size: int) -> list[Path]:
    from PIL import Image

    paths = []
    for number in range(DIFFERENT):
        gradient = Image.linear_gradient("L").resize((size, size)).rotate(45 * number)
        noise = Image.effect_noise((size, size), 24)
        flat = Image.new("L", (size, size), 30 * number)
        image = Image.merge("RGB", (Image.blend(gradient, noise, 0.3), gradient, flat))
        paths.append(folder / f".source{number}.png")
        paths[-1].write_bytes(png_bytes(image))
    return paths


def _row(rng: random.Random, index: int, prompt: str, at: int, count: int) -> dict[str, Any]:
    seed, number, score = rng.getrandbits(31), 1 + at * ROUNDS // count, rng.gauss(6, 1)
    return {
        "id": at, "prompt": prompt, "prompt_index": index, "round": number, "step": 28,
        "steps": 28, "seed": seed, "recipe": {"op": "draw", "index": at}, "parents": [],
        "status": "ok", "score": score,
        "scores": {"grader": {"overall_score": score, "accuracy_to_prompt": rng.gauss(6, 1)}},
        "judges": {}, "explanation": EXPLANATION * 2, "details": {}, "guidance": 1.0,
        "draft": False, "nfe": 28, "rows": 28, "batch_size": 8, "seconds": 1.25,
        "path": f"{prompt_stem(prompt)}_i@{number}_s@{seed}.png",
    }  # fmt: skip


def _write_rounds(folder: Path, prompt: str, rows: Sequence[dict[str, Any]]) -> None:
    for number in range(1, ROUNDS + 1):
        own = [row for row in rows if row["round"] == number]
        if not own:
            continue
        won = max(own, key=lambda row: float(row["score"]))
        record = {
            "prompt": prompt, "search_round": number, "num_noises": len(own),
            "best_noise_seed": won["seed"], "choice_of_metric": "overall_score",
            "best_score": {"explanation": won["explanation"], "score": won["score"]},
            "best_img_path": won["path"], "best_id": won["id"],
        }  # fmt: skip
        (folder / won["path"]).with_suffix(".json").write_text(json.dumps(record))


def measure(folder: Path) -> dict[str, Any]:
    """The command, as its user gives it."""
    command = [sys.executable, "process_results.py", "--path", str(folder), "--report"]
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # KiB on Linux
    page = folder / "report.html"
    return {"seconds": seconds, "peak_mib": peak, "page_mb": page.stat().st_size / 1e6}


def first_paint(page: Path, browser: str) -> dict[str, float]:
    """Seconds until the page is first painted, and until all of it has been read."""
    playwright_api: Any = import_module("playwright.sync_api")
    with playwright_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser)
        tab = chromium.new_page()
        tab.goto(page.as_uri(), wait_until="load")
        tab.wait_for_timeout(500)
        painted = tab.evaluate(
            "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        )  # fmt: skip
        loaded = tab.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
        chromium.close()
    return {"first_paint": painted / 1000, "loaded": loaded / 1000}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--candidates", type=int, default=30)
    parser.add_argument("--size", type=int, default=1024, help="side of the images, in pixels")
    parser.add_argument("--browser", help="a Chromium, to time the page's first paint")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    arguments = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="report_"))
    try:
        make_run(folder, arguments.prompts, arguments.candidates, arguments.size)
        found = measure(folder)
        if arguments.browser:
            found |= first_paint(folder / "report.html", arguments.browser)
    finally:
        shutil.rmtree(folder)
    size = f"{arguments.prompts} prompts of {arguments.candidates} candidates"
    print(f"{size}, images of {arguments.size} pixels a side")
    for name, value in found.items():
        print(f"  {name:12}{value:10.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
