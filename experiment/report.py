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
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from experiment.drawing import Unreadable
from experiment.report_detail import detail, ends, short, values
from experiment.report_measures import COSTS, Told, best_of_n, mean_curve, pairs
from experiment.report_run import LeftOut
from experiment.report_thumbnails import thumbnails
from experiment.statistics import FEWEST, LEVEL, estimate
from utils import json_number, write_atomically

ASSETS = Path(__file__).parent / "page"
SCRIPTS = (
    "elements", "numbers", "records", "pictures", "tips", "charts", "runs", "gallery", "prompts",
    "detail", "candidates", "lineage", "main",
)  # fmt: skip
REPORT = "report.html"
REASONS = 5  # for failed prompts, the most frequent
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
        "fewest": FEWEST,
        "error": round(1 - LEVEL, 6),
        "prompts": [_prompt(runs, key) for key in keys],
        "leftOut": left_out[:NAMED],
        "leftOutCount": len(left_out),
    }
    details = "\n".join(
        f'<script type="application/json" id="p{at}">{_json(detail(runs, key, thumbs))}</script>'
        for at, key in enumerate(keys)
    )
    write_atomically(path, _page(runs, index, details, len(keys)).encode("utf-8", "replace"))
    return [each for found in unreadable.values() for each in found]


def _page(runs: Sequence[Told], index: Mapping[str, Any], details: str, prompts: int) -> str:
    script = "\n".join(_asset(f"{name}.js") for name in SCRIPTS)
    title = " / ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs"
    parts = {
        "policy": _policy(script),
        "title": html.escape(title),
        "subtitle": html.escape(_subtitle(runs, prompts)),
        "style": _asset("page.css"),
        "script": script,
        "index": _json(index),
        "prompts": details,
    }
    page = []
    for piece in _asset("page.html").split("{{"):  # in one pass: no part is searched for marks
        name, closed, rest = piece.partition("}}")
        page.append(parts[name] + rest if closed else piece)
    return "".join(page)


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _subtitle(runs: Sequence[Told], prompts: int) -> str:
    """What all runs share. No path: pages are sent to others."""
    told = [_counted(prompts, "prompt")]
    if len(runs) > 1:
        told.append(_counted(len(runs), "run"))
    for setting in (_model, _verifier):
        shared = {setting(run) for run in runs}
        told += filter(None, shared) if len(shared) == 1 else ()
    if len(runs) == 1 and runs[0].run.folder.resolve().name != runs[0].name:
        told.append(runs[0].run.folder.resolve().name)
    return " · ".join(told)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _model(run: Told) -> str:
    return run.setting("pretrained_model_name_or_path").rstrip("/").rsplit("/", 1)[-1]


def _verifier(run: Told) -> str:
    return run.setting("verifier_args", "name")


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
        metric.label: ends(estimate(known))
        for metric in run.metrics
        if (known := [score for score in run.scores(metric.label) if not math.isnan(score)])
    }
    return {
        "name": run.name,
        "folder": _href(run.run.folder, page),
        "method": run.setting("search_args", "search_method"),
        "model": _model(run),
        "verifier": _verifier(run),
        "metrics": [[metric.label, metric.judge] for metric in run.metrics],
        "prompts": run.run.wanted,
        "done": run.run.done,
        "unfinished": run.run.unfinished,
        "failed": Counter(run.run.failed.values()).most_common(REASONS),
        "failedPrompts": len(run.run.failed),
        "winners": len(run.winners),
        "means": means,
        "totals": {cost: json_number(run.total(cost)) for cost in COSTS},
        "failures": dict(run.failures.most_common()),
        "fooled": len(run.fooled),
        "correlations": {name: json_number(rho) for name, rho in run.correlations.items()},
        "curves": {
            cost: [[short(x), *ends(mean)] for x, mean in mean_curve(run, cost)]
            for cost in run.costs
        },
        "bestOfN": [[n, *ends(mean)] for n, mean in best_of_n(run)],
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
            ends(each.difference),
            ends(each.wins),
            json_number(each.difference.p),
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
                "values": values(run, searched.best) if searched.best else None,
                "failures": sum(1 for c in searched.candidates if c.status in run.failures),
                "fooled": key in run.fooled,
                **({"failed": searched.failed} if searched.failed else {}),
                **({"unfinished": True} if searched.unfinished else {}),
            }
            for run, searched in found
        ],
    }


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
