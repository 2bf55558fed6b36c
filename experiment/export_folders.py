"""Exports that are folders of images: for `datasets`, and for the scorers of two benchmarks."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment.export_read import Notes, Sample, dealt, metric_names
from experiment.prompt_sets import NAMED, WebFiles
from utils import UserError, find_path

GENEVAL_IMAGES = 4  # its README: 4 images a prompt
COMPBENCH_IMAGES = 10  # its README: 10 images a prompt
LONGEST_NAME = 255  # bytes; of common file systems
SAMPLES, METADATA = "samples", "metadata.jsonl"  # a folder and a file of both layouts


def image_folder(samples: Sequence[Sample], folder: Path, notes: Notes) -> None:
    """`datasets`' imagefolder: images, and metadata.jsonl with a row for each."""
    (folder / "images").mkdir()
    rows = []
    for number, (sample, described) in enumerate(zip(samples, rows_of(samples), strict=True)):
        name = f"images/{number:06d}.png"
        shutil.copyfile(sample.image, folder / name)
        rows.append({"file_name": name, **described})
    _write_lines(folder / METADATA, rows)


def rows_of(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """What is recorded of each image, all rows with the same keys down to the last metric.

    Columns that nothing fills are left out: their type could not be told.
    """
    scores = metric_names(sample.scores for sample in samples)
    judges = metric_names(sample.judges for sample in samples)
    rows: list[dict[str, Any]] = [
        {
            "prompt": sample.prompt,
            "seed": sample.seed,
            "score": sample.score,
            "scores": _filled(scores, sample.scores),
            "judges": _filled(judges, sample.judges),
            "category": sample.category,
            "prompt_index": sample.prompt_index,
            "round": sample.round,
            "chosen": sample.chosen,
            "run": sample.run_name,
        }
        for sample in samples
    ]
    empty = {name for name in rows[0] if not any(row[name] not in (None, {}) for row in rows)}
    return [{name: row[name] for name in row if name not in empty} for row in rows]


def _filled(
    names: Mapping[str, Sequence[str]], scores: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float | None]]:
    return {
        verifier: {metric: scores.get(verifier, {}).get(metric) for metric in metrics}
        for verifier, metrics in names.items()
    }


def geneval(samples: Sequence[Sample], folder: Path, notes: Notes) -> None:
    """GenEval's: a numbered folder a prompt, with its line of the metadata and 4 images."""
    prompts: dict[int, list[Sample]] = defaultdict(list)
    metadata: dict[int, dict[str, Any]] = {}
    for run in dict.fromkeys(sample.run for sample in samples):
        lines = _geneval_lines(run)
        places = {line["prompt"].strip(): number for number, line in reversed([*enumerate(lines)])}
        for sample in (sample for sample in samples if sample.run == run):
            number = sample.prompt_index  # a prompt may stand twice: its own line, if that fits
            if number >= len(lines) or lines[number]["prompt"].strip() != sample.prompt:
                if sample.prompt not in places:
                    notes.add("left out, not a prompt of GenEval", str(sample.image))
                    continue
                number = places[sample.prompt]
            prompts[number].append(sample)
            metadata[number] = lines[number]
    for number, group in sorted(prompts.items()):
        images = dealt(group, GENEVAL_IMAGES)
        _note_few(f"{number:05d}", images, GENEVAL_IMAGES, notes)
        target = folder / f"{number:05d}" / SAMPLES
        target.mkdir(parents=True)
        _write_lines(target.parent / METADATA, [metadata[number]])
        for place, sample in enumerate(images):
            shutil.copyfile(sample.image, target / f"{place:04d}.png")


def _geneval_lines(run: Path) -> list[dict[str, Any]]:
    """GenEval's metadata, from the file that the run took its prompts from."""
    path = _prompt_file(run)
    lines: list[Any] = []
    if path is not None:
        try:
            content = path.read_text(encoding="utf-8").split("\n")
            lines = [json.loads(line) for line in content if line.strip()]
        except (OSError, ValueError, RecursionError):
            lines = []
    asked = {"prompt", "tag", "include"}  # by GenEval's evaluate_images.py
    if not lines or not all(isinstance(line, dict) and asked <= line.keys() for line in lines):
        raise UserError(
            f"The prompts of {run} do not come from GenEval's metadata, which its scorer needs:"
            " search with --set prompts=geneval."
        )
    return lines


def _prompt_file(run: Path) -> Path | None:
    """The file with the run's prompts, as its config names it."""
    try:
        name = json.loads((run / "config.json").read_bytes()).get("prompts")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    kept = NAMED.get(str(name))
    if isinstance(kept, WebFiles):
        return kept.files(str(name))[0]
    path = find_path(str(name))
    return path if path is not None and path.is_file() else None


def t2i_compbench(samples: Sequence[Sample], folder: Path, notes: Notes) -> None:
    """T2I-CompBench's: `<prompt>_<number>.png` in a folder `samples` for each category.

    Its scorers take the prompt from the name, up to the first underscore, and score one category
    at a time.
    """
    prompts: dict[tuple[str, int, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        name = f"{sample.prompt}_000000.png"
        if set(sample.prompt) & set("_/\0") or len(name.encode()) > LONGEST_NAME:
            notes.add("left out, with a prompt that cannot be a name there", str(sample.image))
        else:
            prompts[sample.category or "", sample.prompt_index, sample.prompt].append(sample)
    written: dict[Path, int] = defaultdict(int)
    for (category, _, prompt), group in sorted(prompts.items()):
        target = folder / category.replace("/", "_").lstrip(".") / SAMPLES
        target.mkdir(parents=True, exist_ok=True)
        images = dealt(group, COMPBENCH_IMAGES)
        _note_few(prompt, images, COMPBENCH_IMAGES, notes)
        for sample in images:
            shutil.copyfile(sample.image, target / f"{prompt}_{written[target]:06d}.png")
            written[target] += 1


def _note_few(prompt: str, images: Sequence[Sample], usual: int, notes: Notes) -> None:
    if len(images) < usual:
        notes.add(f"with fewer than {usual} images", prompt)


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
