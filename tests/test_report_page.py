"""The report's page in a browser: found, sorted, opened, compared, on a desk and on a phone."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image

from experiment.report_measures import (
    pair,
    told,
)
from experiment.report_read import read_run
from tests.made_runs import (
    HOSTILE,
    PROMPTS,
    Made,
    categorised,
    graded_run,
    lineage_run,
    run_main,
)
from tests.test_report_failures import REASON, failed_run
from utils import prompt_stem

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable",
            "chromium-headless-shell")  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        api = import_module("playwright.sync_api")
    except ImportError:
        pytest.skip("Playwright is not installed: pip install playwright")
    with api.sync_playwright() as playwright:
        path = next(filter(None, map(shutil.which, BROWSERS)), None)
        try:
            chromium = playwright.chromium.launch(executable_path=path)
        except api.Error:
            pytest.skip("No Chromium is installed: playwright install chromium")
        yield chromium
        chromium.close()


def opened(browser: Any, page: Path, width: int) -> tuple[Any, list[str]]:
    """A tab with the page, and all that goes wrong in it."""
    tab = browser.new_page(viewport={"width": width, "height": 900})
    wrong: list[str] = []
    tab.on("console", lambda message: wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("dialog", lambda dialog: wrong.extend([dialog.message] * (dialog.dismiss() is None)))
    tab.on("request", lambda request: wrong.extend([request.url] * ("http" in request.url)))
    tab.goto(page.as_uri())
    return tab, wrong


def until(found: Any, script: str) -> None:
    """Wait until a function of an element holds; the page's policy forbids Playwright's own way."""
    ends = time.monotonic() + 10
    while not found.evaluate(script):
        assert time.monotonic() < ends, script
        time.sleep(0.02)


def texts(found: Any) -> list[str]:
    """Of hidden ones too: what is out of view is not laid out."""
    return [text.strip() for text in found.all_text_contents()]


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(browser: Any, tmp_path: Path, width: int) -> None:
    runs: Sequence[Path] = [graded_run(tmp_path / "one"), lineage_run(tmp_path / "two")]
    assert run_main(*runs, "--report", "--output", tmp_path / "out") == 0
    tab, wrong = opened(browser, tmp_path / "out" / "report.html", width)
    assert tab.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out

    # Both runs are compared.
    first, second = told(list(map(read_run, runs)))
    found = pair(second, first, "overall_score")
    assert found is not None
    compared = tab.locator("#pairs tbody tr").first.text_content()
    assert "zero-order" in compared and f"{found.wins.mean:.0%}".replace("%", " %") in compared
    tab.locator("#curves svg .curve").nth(1).wait_for()

    # Pictures come first, and lead to their prompts.
    exhibits = tab.locator("#gallery .exhibit")
    assert exhibits.count() == len(PROMPTS)
    tab.locator("#gallery img.thumb").nth(11).wait_for()
    box = exhibits.first.bounding_box()
    assert box is not None and box["y"] < 400
    exhibits.nth(2).click()
    opened_prompt = tab.locator("#list > .prompt[open]")
    assert opened_prompt.locator("summary b").first.text_content() == PROMPTS[2]
    opened_prompt.locator("summary").click()
    tab.evaluate("document.querySelectorAll('.detail').forEach((each) => each.remove())")

    # Prompts are sorted, filtered and found.
    listed = tab.locator("#list > .prompt > summary b")
    assert texts(listed)[0] == PROMPTS[0]
    tab.get_by_label("sort prompts").select_option("overall_score of random down")
    assert texts(listed)[0] == PROMPTS[-1]
    tab.get_by_label("show", exact=True).select_option("fooled")
    assert texts(listed) == [PROMPTS[-1]]
    tab.get_by_label("show", exact=True).select_option("all")
    tab.get_by_label("find in prompts").fill("cat")
    assert texts(listed) == ["a cat"]

    # A prompt is built when it is opened; its winners are framed.
    assert tab.locator(".detail").count() == 0
    tab.locator(".prompt > summary").click()
    tab.locator(".detail").wait_for()
    assert tab.locator(".strip .won").count() == 2
    tab.locator(".detail svg .curve").nth(1).wait_for()

    # Candidates are sorted by any metric, and filtered.
    table = tab.locator(".candidates tbody")
    column = tab.locator(".candidates th", has_text="overall_score")
    column.get_by_role("button").click()
    assert column.get_attribute("aria-sort") == "descending"
    scores = [float(text) for text in texts(table.locator("td:nth-child(4)")) if text != "–"]
    assert scores == sorted(scores, reverse=True) and len(scores) == 6
    assert texts(table.locator("td:nth-child(4)"))[-1] == "–"
    assert tab.evaluate("document.activeElement.dataset.key") == "overall_score"
    tab.keyboard.press("Enter")
    assert column.get_attribute("aria-sort") == "ascending"
    assert texts(table.locator("td:nth-child(4)"))[-1] == "–"  # what has none stays last
    tab.get_by_role("button", name="without a score 1").click()
    assert table.locator("tr").count() == 1 and "blocked" in table.inner_text()

    # Explanations, by keyboard.
    table.locator("td.why button").focus()
    assert tab.locator("#tip").inner_text() == "SAFETY <b>bold</b>"
    tab.keyboard.press("Escape")
    assert tab.locator("#tip").is_hidden()

    # The other run's winner comes from a draw by way of two images.
    tab.locator(".candidates").get_by_role("button", name="zero-order").click()
    tab.get_by_role("button", name="previews 1").click()
    assert "×1.50" in table.inner_text()
    tab.get_by_role("button", name="Where it comes from").click()
    stages = tab.locator("#lineage .stage")
    assert stages.count() == 3
    assert [stages.nth(i).locator(".node").count() for i in range(3)] == [1, 2, 1]
    assert "fresh noise" in stages.nth(0).inner_text()
    assert "neighbour of #1, #2" in stages.nth(2).inner_text()
    assert texts(tab.locator("#lineage .origin li")) == [
        "fresh noise (seed 2000)",
        "neighbour, cosine 0.9 (seed 2001)",
        "neighbour (seed 2003)",
    ]
    command = f"python main.py --replay {runs[1]} --candidate 2:3"
    assert tab.locator("#lineage code").inner_text() == command
    tab.keyboard.press("Escape")
    assert not tab.locator("#lineage").is_visible()

    # Hostile text is only text, and no image was refused.
    tab.get_by_label("find in prompts").fill("script")
    assert tab.locator(".prompt > summary b").text_content() == HOSTILE
    tab.locator(".prompt > summary").click()
    tab.locator(".candidates img").first.scroll_into_view_if_needed()
    tab.wait_for_timeout(300)
    loaded = "[...document.images].filter(i => i.complete).every(i => i.naturalWidth > 0)"
    assert tab.evaluate(loaded) and tab.locator(".candidates img").count() > 0
    assert wrong == []
    tab.close()


@pytest.mark.slow
def test_videos_play_in_the_page_or_are_linked(browser: Any, tmp_path: Path) -> None:
    from experiment.video import mp4_bytes

    made = Made(tmp_path / "run")
    colors = ((250, 20, 20), (20, 20, 250))
    for number, color in enumerate(colors):
        name = f"{prompt_stem('a cat')}_i@1_s@{number}.mp4"
        made.row("a cat", 1.0 + number, seed=number, path=name)
        frames = [Image.new("RGB", (64, 64), color) for _ in range(8)]
        (made.folder / name).write_bytes(mp4_bytes(frames, 8))
    broken = f"{prompt_stem('a cat')}_i@1_s@9.mp4"
    made.row("a cat", 0.5, seed=9, path=broken)
    (made.folder / broken).write_bytes(b"no video")
    assert run_main(made.write(), "--report") == 0
    tab, wrong = opened(browser, made.folder / "report.html", 1280)
    tab.locator(".prompt > summary").click()
    rows = tab.locator(".candidates tbody tr")
    hrefs = [rows.nth(i).locator("a.picture").get_attribute("href") for i in range(3)]
    assert [unquote(str(href)) for href in hrefs] == [row["path"] for row in made.rows]
    plays = "document.createElement('video').canPlayType('video/mp4; codecs=\"avc1.64001f\"')"
    if not tab.evaluate(plays):  # a Chromium without H.264
        assert tab.locator("video").count() == 0
        assert tab.locator(".winner a.picture img").count() == 1  # the winner's thumbnail
        tab.close()
        return
    rows.last.scroll_into_view_if_needed()
    until(rows.first, "r => r.parentElement.querySelectorAll('video').length === 2")
    assert not tab.locator(".strip video").evaluate(
        "v => v.controls"
    )  # which would hide half of it
    winner = tab.locator(".winner video")
    assert winner.get_attribute("poster").startswith("data:image/webp")
    small = rows.nth(0).locator("video")
    until(small, "v => v.readyState >= 1")
    assert small.evaluate("v => [v.videoWidth, v.videoHeight, v.duration]") == [64, 64, 1.0]
    small.hover()
    until(small, "v => !v.paused && v.currentTime > 0.1")
    tab.mouse.move(0, 0)
    until(small, "v => v.paused")
    winner.evaluate("v => v.play()")
    until(winner, "v => v.currentTime > 0.2")
    assert wrong == []
    tab.close()


@pytest.mark.slow
def test_lineages_come_to_an_end(browser: Any, tmp_path: Path) -> None:
    """Rows that were damaged may be missing, or name each other as parents."""
    made = Made(tmp_path / "run")
    made.row("a cat", 1.0, parents=[2])
    made.row("a cat", 2.0, parents=[77])
    made.row("a cat", 3.0, parents=[0, 1])
    assert run_main(made.write(), "--report") == 0
    tab, wrong = opened(browser, made.folder / "report.html", 1280)
    tab.locator(".prompt > summary").click()
    tab.get_by_role("button", name="Where it comes from").click()
    assert tab.locator("#lineage .node").count() == 3
    assert "Not recorded: #77" in tab.locator("#lineage").inner_text()
    assert wrong == []
    tab.close()


@pytest.mark.slow
def test_prompts_are_filtered_by_category(browser: Any, tmp_path: Path) -> None:
    assert run_main(categorised(tmp_path / "run"), "--report") == 0
    tab, wrong = opened(browser, tmp_path / "run" / "report.html", 1280)
    rows = [texts(row.locator("th, td")) for row in tab.locator("#categories tbody tr").all()]
    assert [row[:3] for row in rows] == [["shapes", "2", "1.50"], ["animals", "1", "5.00"]]
    tab.get_by_label("show", exact=True).select_option("category animals")
    assert texts(tab.locator("#list > .prompt > summary b")) == ["a cat"]
    assert wrong == []
    tab.close()


@pytest.mark.slow
def test_a_thousand_prompts_are_painted_within_three_seconds(browser: Any, tmp_path: Path) -> None:
    from benchmarks.report import make_run

    (tmp_path / "run").mkdir()
    make_run(tmp_path / "run", prompts=1000, candidates=30, size=32)
    assert run_main(tmp_path / "run", "--report") == 0
    tab, wrong = opened(browser, tmp_path / "run" / "report.html", 1280)
    tab.wait_for_selector("#list > .prompt:nth-child(1000)", state="attached")
    tab.locator("#gallery img.thumb").first.wait_for()
    tab.wait_for_timeout(300)
    paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    assert tab.evaluate(paint) < 3000
    tab.locator("#list > .prompt:nth-child(1000)").scroll_into_view_if_needed()
    tab.locator("#list > .prompt:nth-child(1000) .thumbs img").wait_for()
    # Pictures of prompts that nobody has seen are not made.
    assert tab.locator(".thumbs img").count() < 200
    assert wrong == []
    tab.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_failures_are_seen_at_once_and_listed(browser: Any, tmp_path: Path, width: int) -> None:
    folder = failed_run(tmp_path / "run")
    assert run_main(folder, "--report") == 0
    tab, wrong = opened(browser, folder / "report.html", width)
    notice = tab.locator("#notices")
    assert "2 of 3 prompts failed" in notice.inner_text() and REASON in notice.inner_text()
    assert "1 of 3" in tab.locator("#overview tbody").inner_text()
    notice.get_by_role("button").click()
    assert texts(tab.locator("#list > .prompt > summary b")) == [
        "a lost one", "failed:", HOSTILE, "failed:"
    ]  # fmt: skip
    tab.locator(".prompt > summary").first.click()
    assert REASON in tab.locator(".winner").inner_text()
    assert tab.locator(".candidates").count() == 0
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert wrong == []
    tab.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_many_runs_stay_readable(browser: Any, tmp_path: Path, width: int) -> None:
    runs = [graded_run(tmp_path / f"a_rather_long_name_of_run_{i:02}", 0.1 * i) for i in range(12)]
    assert run_main(*runs, "--report", "--output", tmp_path / "out") == 0
    tab, wrong = opened(browser, tmp_path / "out" / "report.html", width)
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    # Differences to one run, which can be chosen; not of all to all.
    rows = tab.locator("#pairs tbody tr")
    assert rows.count() == 11
    last = rows.nth(10).locator("td").first
    assert (last.text_content() or "").startswith("+1.10")
    tab.get_by_label("compared with").select_option("11")
    assert (rows.first.locator("td").first.text_content() or "").startswith("−1.10")
    assert texts(rows.nth(0).locator("td"))[1].startswith("0 %")
    # Each has a number where names have no room, and lines that are told apart.
    numbers = texts(tab.locator("#list > .prompt").first.locator(".swatch"))
    assert numbers == [str(i) for i in range(1, 13)]
    curves = tab.locator("#curves .chart").first.locator(".curve")
    curves.nth(11).wait_for()
    style = "e => [getComputedStyle(e).stroke, e.getAttribute('stroke-dasharray')].join()"
    assert len({curves.nth(i).evaluate(style) for i in range(12)}) == 12
    assert tab.locator("#curves .chart .band:visible").count() == 0
    assert tab.locator("#list > .prompt").first.evaluate("e => e.offsetHeight") < 330
    tab.locator("#list > .prompt > summary").first.click()
    tab.locator(".detail .winner").nth(11).wait_for()
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert wrong == []
    tab.close()


@pytest.mark.slow
def test_a_long_name_without_a_break_fits_on_a_phone(browser: Any, tmp_path: Path) -> None:
    folder = graded_run(tmp_path / ("abcdefghij" * 8), method="klmnopqrst" * 6)
    assert run_main(folder, "--report") == 0
    tab, wrong = opened(browser, folder / "report.html", 390)
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    tab.locator("#list > .prompt > summary").first.click()
    tab.locator(".detail").wait_for()
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    tab.get_by_role("button", name="How to make it again").click()
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert wrong == []
    tab.close()


@pytest.mark.slow
def test_runs_that_cannot_be_compared_say_so(browser: Any, tmp_path: Path) -> None:
    one, two, three = Made(tmp_path / "one"), Made(tmp_path / "two"), Made(tmp_path / "3", "b", "x")
    one.row("a cat", 1.0)
    two.row("a dog", 2.0)
    three.row("a cat", 3.0, scores={})
    folders = [one.write(), two.write(), three.write()]
    for others, said in (((0, 1), "No prompt is in more than one"), ((0, 2), "No metric is in")):
        out = tmp_path / f"out{others[1]}"
        assert run_main(*(folders[i] for i in others), "--report", "--output", out) == 0
        tab, wrong = opened(browser, out / "report.html", 1280)
        assert said in tab.locator("#pairs").inner_text()
        assert wrong == []
        tab.close()


@pytest.mark.slow
def test_the_winner_of_a_strip_is_in_view(browser: Any, tmp_path: Path) -> None:
    made = Made(tmp_path / "run", "zero-order")
    for number in range(1, 25):
        made.row("a cat", 9.0 if number == 20 else 1.0, round=number)
    assert run_main(made.write(), "--report") == 0
    for width in (1280, 390):
        tab, wrong = opened(browser, made.folder / "report.html", width)
        tab.locator("#list > .prompt > summary").click()
        won = tab.locator(".strip .won")
        won.wait_for()
        assert "round 20" in won.inner_text()
        box = won.bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width
        frame = tab.locator(".frame", has=tab.locator(".strip")).last
        until(frame, "f => f.hasAttribute('data-before') && f.hasAttribute('data-behind')")
        assert wrong == []
        tab.close()
