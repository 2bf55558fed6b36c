"""One static page of one run or several: it opens offline, and holds no more than it shows.

The page's script makes all elements from JSON within the page, a prompt's when it is opened, so a
thousand prompts open as fast as ten. Winners' pictures are small and inside; all others are linked
by relative paths and loaded as they come into view.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from experiment.drawing import Unreadable
from experiment.report_measures import COSTS, Told, best_of_n, best_so_far, mean_curve, pairs
from experiment.report_run import Candidate, LeftOut, Round, Searched
from experiment.report_thumbnails import thumbnails
from experiment.statistics import Estimate, bootstrap
from utils import json_number, write_atomically

HERE = Path(__file__).parent
REPORT = "report.html"
NAMED = 500  # files left out, beyond which they are only counted


def write_report(runs: Sequence[Told], path: Path) -> list[LeftOut]:
    """Write the page; returns the pictures that could not be read."""
    thumbs, unreadable = _thumbs(runs)
    keys = list(dict.fromkeys(each.key for run in runs for each in run.run.searched))
    left_out = [
        [at, each.name, each.why]
        for at, run in enumerate(runs)
        for each in (*run.run.left_out, *unreadable.get(at, ()))
    ]
    index = {
        "runs": [_run(run, path.parent) for run in runs],
        "costs": list(COSTS),
        "pairs": _pairs(runs),
        "prompts": [_prompt(runs, key) for key in keys],
        "leftOut": left_out[:NAMED],
        "leftOutCount": len(left_out),
    }
    details = "\n".join(
        f'<script type="application/json" id="p{at}">{_json(_detail(runs, key, thumbs))}</script>'
        for at, key in enumerate(keys)
    )
    write_atomically(path, _page(runs, index, details, len(keys)).encode("utf-8", "replace"))
    return [each for found in unreadable.values() for each in found]


def _page(runs: Sequence[Told], index: Mapping[str, Any], details: str, prompts: int) -> str:
    template, style, script = (
        (HERE / f"report.{suffix}").read_text(encoding="utf-8") for suffix in ("html", "css", "js")
    )
    title = " / ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs"
    count = f"{prompts} prompt{'s' if prompts != 1 else ''}"
    where = f"{len(runs)} runs" if len(runs) > 1 else str(runs[0].run.folder)
    parts = {
        "policy": _policy(script),
        "title": html.escape(title),
        "subtitle": html.escape(f"{count}, {where}"),
        "style": style,
        "script": script,
        "index": _json(index),
        "prompts": details,
    }
    page = []
    for piece in template.split("{{"):  # in one pass, so that no part is searched for marks
        name, closed, rest = piece.partition("}}")
        page.append(parts[name] + rest if closed else piece)
    return "".join(page)


def _policy(script: str) -> str:
    """Only this script runs and nothing is fetched but pictures: a second lock on the door."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    media = "'self' file: data:"
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline';"
        f" img-src {media}; media-src {media}; base-uri 'none'; form-action 'none'"
    )


def _json(content: Any) -> str:
    """JSON that nothing inside of can end the element it stands in."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))  # ASCII only
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# The index: what is shown before any prompt is opened.


def _run(run: Told, page: Path) -> dict[str, Any]:
    means = {
        metric.label: _estimate(bootstrap(known))
        for metric in run.metrics
        if (known := [score for score in run.scores(metric.label) if not math.isnan(score)])
    }
    return {
        "name": run.name,
        "folder": _href(run.run.folder, page),
        "method": run.setting("search_args", "search_method"),
        "model": run.setting("pretrained_model_name_or_path").rstrip("/").rsplit("/", 1)[-1],
        "verifier": run.setting("verifier_args", "name"),
        "metrics": [[metric.label, metric.judge] for metric in run.metrics],
        "prompts": len(run.run.searched),
        "winners": len(run.winners),
        "means": means,
        "totals": {cost: json_number(run.total(cost)) for cost in COSTS},
        "failures": dict(run.failures.most_common()),
        "fooled": len(run.fooled),
        "correlations": {name: json_number(rho) for name, rho in run.correlations.items()},
        "curves": {
            cost: [[_round(x), *_estimate(mean)] for x, mean in mean_curve(run, cost)]
            for cost in run.costs
        },
        "bestOfN": [[n, *_estimate(mean)] for n, mean in best_of_n(run)],
    }


def _href(folder: Path, page: Path) -> str:
    """The way from the page's folder to another, as the start of an address."""
    way = Path(os.path.relpath(folder.resolve(), page.resolve())).as_posix()
    return "" if way == "." else quote(way) + "/"


def _pairs(runs: Sequence[Told]) -> list[list[Any]]:
    places = {id(run): at for at, run in enumerate(runs)}
    return [
        [
            each.metric,
            places[id(each.ours)],
            places[id(each.theirs)],
            each.prompts,
            _estimate(each.difference),
            _estimate(each.wins),
        ]
        for each in pairs(runs)
    ]


def _prompt(runs: Sequence[Told], key: tuple[str, int]) -> dict[str, Any]:
    found = [(run, run.run.by_key.get(key)) for run in runs]
    categories = (searched.category for _, searched in found if searched)
    return {
        "text": key[0],
        "category": next(filter(None, categories), ""),
        "runs": [
            searched
            and {
                "values": _values(run, searched.best) if searched.best else None,
                "failures": sum(1 for c in searched.candidates if c.status in run.failures),
                "fooled": key in run.fooled,
            }
            for run, searched in found
        ],
    }


# The details: what is shown of a prompt that is opened.


def _detail(
    runs: Sequence[Told], key: tuple[str, int], thumbs: Mapping[Path, str]
) -> list[dict[str, Any] | None]:
    found: list[dict[str, Any] | None] = []
    for run in runs:
        searched = run.run.by_key.get(key)
        found.append(_searched(run, searched, thumbs) if searched else None)
    return found


def _searched(run: Told, searched: Searched, thumbs: Mapping[Path, str]) -> dict[str, Any]:
    best = searched.best
    return {
        "stem": searched.stem,
        "best": best.id if best else None,
        "thumb": thumbs.get(run.run.folder / best.path) if best and best.path else None,
        "rounds": _rounds(run, searched),
        "curves": {
            cost: [[_round(x), _round(y)] for x, y in best_so_far(searched, cost)]
            for cost in run.costs
        },
        "rows": [_row(run, searched, each) for each in searched.candidates],
    }


def _rounds(run: Told, searched: Searched) -> list[dict[str, Any]]:
    """Every round: those with a record by it, others with the reason why there is none."""
    recorded: dict[int, Round] = {each.number: each for each in searched.rounds}
    sizes: dict[int, int] = {}
    scored: set[int] = set()
    rejected: set[int] = set()  # only of such rounds pictures are not kept
    for candidate in searched.candidates:
        if candidate.finished:
            sizes[candidate.round] = sizes.get(candidate.round, 0) + 1
            if not math.isnan(candidate.score):
                scored.add(candidate.round)
                if candidate.path is None:
                    rejected.add(candidate.round)
    rounds = []
    for number in sorted(recorded.keys() | sizes.keys()):
        each = recorded.get(number)
        shown = each is not None and each.path in run.run.names
        missing = "no winner recorded" if number in scored else "nothing scored"
        missing = "rejected: no better one" if number in rejected else missing
        rounds.append(
            {
                "number": number,
                "id": each.id if each else None,
                "score": _round(each.score) if each else None,
                "n": each.num_noises if each else sizes.get(number, 0),
                "name": each.path if each and shown else None,
                "why": "image missing" if each else missing,
                "explanation": each.explanation if each else "",
            }
        )
    return rounds


def _row(run: Told, searched: Searched, each: Candidate) -> list[Any]:
    """A candidate's fields in the order that the script names them."""
    return [
        each.id,
        each.round,
        each.step,
        each.steps,
        each.seed,
        each.status,
        _values(run, each),
        _round(each.guidance),
        each.draft,
        _round(each.nfe),
        _round(each.seconds),
        each.parents,
        _picture(run, searched, each),
        each.explanation,
        _sound(each.recipe),
    ]


def _picture(run: Told, searched: Searched, each: Candidate) -> int | str:
    """0 for none, 1 for the name that the row implies, 2 for one that is missing, or a name."""
    if each.path is None:
        return 0
    if each.path not in run.run.names:
        return 2
    return 1 if each.path == f"{searched.stem}_i@{each.round}_s@{each.seed}.png" else each.path


def _thumbs(
    runs: Sequence[Told],
) -> tuple[dict[Path, str], dict[int, list[LeftOut]]]:
    """Small pictures of all winners, and by run those that cannot be read."""
    where = {
        run.run.folder / each.best.path: at
        for at, run in enumerate(runs)
        for each in run.run.searched
        if each.best and each.best.path and each.best.path in run.run.names
    }
    found: dict[Path, str] = {}
    unreadable: dict[int, list[LeftOut]] = {}
    for path, thumb in thumbnails(where):
        if isinstance(thumb, Unreadable):
            unreadable.setdefault(where[path], []).append(LeftOut(path.name, str(thumb)))
        else:
            found[path] = thumb
    return found, unreadable


# Numbers.


def _sound(value: Any) -> Any:
    """The same without what JSON cannot hold, which a foreign row may."""
    if isinstance(value, dict):
        return {name: _sound(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_sound(each) for each in value]
    return json_number(value) if isinstance(value, float) else value


def _values(run: Told, candidate: Candidate) -> list[float | None]:
    return [_round(value) for value in run.values(candidate)]


def _estimate(estimate: Estimate) -> list[float | None]:
    return list(map(_round, (estimate.mean, estimate.low, estimate.high)))


def _round(value: float) -> float | int | None:
    """A number in six significant digits, whole ones as such: a page has a million of them."""
    if not math.isfinite(value):
        return None
    short = float(f"{value:.6g}")
    return int(short) if short == int(short) and abs(short) < 2**53 else short
