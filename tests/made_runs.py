"""Run folders written row by row, as a run does it, for what is made of them."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from process_results import main
from utils import prompt_stem

HOSTILE = '</script><script>alert(1)</script> "a" & <img src=x onerror=alert(2)> \u2028 \ud83d'
PROMPTS = ("a red circle", HOSTILE, "a cat", "a dog", "a robot", "a boat")


class Made:
    """A run folder written row by row, as a run does it."""

    def __init__(self, folder: Path, method: str = "random", metric: str = "overall_score") -> None:
        folder.mkdir(parents=True)
        self.folder, self.metric = folder, metric
        self.rows: list[dict[str, Any]] = []
        config = {
            "pretrained_model_name_or_path": "models/tiny",
            "verifier_args": {"name": "grader", "choice_of_metric": metric},
            "search_args": {"search_method": method},
        }
        (folder / "config.json").write_text(json.dumps(config))

    def row(self, prompt: str, score: float | None, **fields: Any) -> dict[str, Any]:
        """A finished candidate with its image, unless the fields say otherwise."""
        index = PROMPTS.index(prompt) if prompt in PROMPTS else int(fields["prompt_index"])
        number = sum(row["prompt_index"] == index for row in self.rows)
        row = {
            "id": number, "prompt": prompt, "prompt_index": index, "round": 1, "step": 20,
            "steps": 20, "seed": 1000 * index + number, "recipe": {"op": "draw", "index": number},
            "parents": [], "status": "unscored" if score is None else "ok", "score": score,
            "scores": {"grader": {self.metric: score, "realism": 2.0}} if score else {},
            "judges": {}, "explanation": "", "details": {}, "guidance": 1.0, "draft": False,
            "nfe": 20, "rows": 40, "batch_size": 2, "seconds": 0.5, "path": "",
        } | fields  # fmt: skip
        if row["path"] == "":
            row["path"] = f"{prompt_stem(prompt)}_i@{row['round']}_s@{row['seed']}.png"
            color = (37 * number % 256, 60 * index % 256, 99)
            Image.new("RGB", (48, 48), color).save(self.folder / row["path"])
        self.rows.append(row)
        return row

    def write(self) -> Path:
        """The rows, and for each round of a prompt its winner's record."""
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        (self.folder / "candidates.jsonl").write_text(text)
        rounds: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for row in self.rows:
            if row["path"] and row["score"] is not None:
                rounds.setdefault((row["prompt_index"], row["round"]), []).append(row)
        for (_, number), own in rounds.items():
            won = max(own, key=lambda row: float(row["score"]))
            record = {
                "prompt": won["prompt"], "search_round": number, "num_noises": len(own),
                "best_noise_seed": won["seed"], "choice_of_metric": self.metric,
                "best_score": {"explanation": won["explanation"], "score": won["score"]},
                "best_img_path": "gone", "best_id": won["id"], "judges": won["judges"],
            }  # fmt: skip
            (self.folder / won["path"]).with_suffix(".json").write_text(json.dumps(record))
        return self.folder


def categorised(folder: Path) -> Path:
    """Two prompts of one category, one of another, one of none."""
    made = Made(folder)
    for prompt, category, score in (
        ("a red circle", "shapes", 1.0),
        ("a boat", "shapes", 2.0),
        ("a cat", "animals", 5.0),
        ("a dog", None, 7.0),
    ):
        made.row(prompt, score, category=category)
    return made.write()


def graded_run(folder: Path, shift: float = 0.0, method: str = "random") -> Path:
    """Six prompts of three rounds; the judge goes with the verifier but for the last prompt."""
    made = Made(folder, method)
    rng = np.random.default_rng(7)
    for at, prompt in enumerate(PROMPTS):
        scores = np.sort(rng.uniform(1, 5, size=6)) + at + shift
        for i in (3, 0, 5, 1, 4, 2):
            judged = {"clip": {"clip_score": 0.1 if prompt == PROMPTS[-1] else 0.2 + 0.1 * at}}
            made.row(
                prompt,
                float(scores[i]),
                round=1 + i % 3,
                judges=judged if i == 5 else {},
                explanation=f"{HOSTILE} says {i}",
            )
        made.row(prompt, None, round=3, status="blocked", explanation="SAFETY <b>bold</b>")
    return made.write()


class Page(HTMLParser):
    """What of a page is markup, and its JSON."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: dict[str, Any] = {}
        self._id: str | None = None
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._id = dict(attrs).get("id") if tag == "script" else None

    def handle_data(self, data: str) -> None:
        if self._id:
            self.data[self._id] = json.loads(data)
            self._id = None


def run_main(*arguments: object) -> int:
    return main(["--path", *map(str, arguments)])


def lineage_run(folder: Path) -> Path:
    """A winner that comes from two earlier images, these from a draw."""
    made = Made(folder, "zero-order")
    for prompt in PROMPTS:
        first = made.row(prompt, 1.0)
        near = {"op": "perturb", "of": first["seed"], "at": 0, "cosine": 0.9}
        second = made.row(prompt, 2.0, parents=[0], recipe=near)
        made.row(prompt, 2.5, parents=[0], recipe=near)
        last = {"op": "perturb", "of": second["seed"]}
        made.row(prompt, 9.0, parents=[1, 2], round=2, recipe=last)
        made.row(prompt, 0.5, step=10, path=None, guidance=1.5)
    return made.write()
