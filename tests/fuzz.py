"""What fuzzing shares: odd values, damage to JSON and to bytes, running a command in process."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

LONGEST = 60  # seconds: what takes longer hangs

ODD: Sequence[Any] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 64, 255, 10**6, 2**31, 2**63, 10**30, -(10**30), 0.0,
    -0.0, 0.5, 1.5, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"), "", " ", "0", "all",
    "auto", "none", "NaN", "../../x", "/etc/passwd", "C:\\x", "\x00", "\ud800", "\u202eabc",
    "e\u0301\u200d\U0001f984" * 40, "x" * 5000, "a:b", "os:system", "tests.graders:Brightness",
    "name", [], {}, [[]], [None], [1, "a"], {"": {}}, {"a": {"b": {"c": []}}}, {"name": "clip"},
    "random", "halving", "draft", "ensemble", "rank",
)  # fmt: skip


def often(examples: int, *, derandomize: bool) -> settings:
    """Settings of a test that runs so many examples; the default suite runs the same each time."""
    return settings(
        max_examples=examples,
        derandomize=derandomize,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def values() -> st.SearchStrategy[Any]:
    odd = st.sampled_from(ODD).map(copy.deepcopy)
    return odd | st.integers() | st.floats() | st.text(max_size=20)


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON tree, the outermost aside."""
    items: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(tree, dict):
        items = iter(tree.items())
    elif isinstance(tree, list):
        items = iter(enumerate(tree))
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


@st.composite
def changed(draw: st.DrawFn, trees: Sequence[Any]) -> Any:
    """One of some JSON trees after a few changes at random places."""
    tree = copy.deepcopy(draw(st.sampled_from(trees)))
    for _ in range(draw(st.integers(1, 4))):
        found = list(places(tree))
        if not found:
            return draw(values())
        *parents, key = draw(st.sampled_from(found))
        inner = tree
        for parent in parents:
            inner = inner[parent]
        _change(draw, inner, key)
    return tree


def _change(draw: st.DrawFn, inner: Any, key: Any) -> None:
    what = draw(st.sampled_from(("set", "set", "set", "drop", "add", "wrap", "nest", "retype")))
    if what == "set":
        inner[key] = draw(values())
    elif what == "drop":
        del inner[key]
    elif what == "add" and isinstance(inner, dict):
        inner[draw(st.sampled_from([str(key) + "s", "", "seed", "name"]) | st.text(max_size=5))] = (
            draw(values())
        )
    elif what == "wrap":
        inner[key] = draw(st.sampled_from((lambda v: [v], lambda v: {"name": v})))(inner[key])
    elif what == "nest":
        for _ in range(draw(st.sampled_from((1, 30, 300)))):
            inner[key] = [inner[key]]
    else:
        inner[key] = str(inner[key])


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes after one or a few accidents."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        data = draw(st.sampled_from(ACCIDENTS))(data, at)
    return data


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :] if data else data


def _line(data: bytes, at: int) -> tuple[list[bytes], int]:
    lines = data.split(b"\n")
    return lines, at % len(lines)


def _lost_line(data: bytes, at: int) -> bytes:
    lines, i = _line(data, at)
    return b"\n".join(lines[:i] + lines[i + 1 :])


def _doubled_line(data: bytes, at: int) -> bytes:
    lines, i = _line(data, at)
    return b"\n".join([*lines[: i + 1], *lines[i:]])


def _swapped_lines(data: bytes, at: int) -> bytes:
    lines, i = _line(data, at)
    lines[0], lines[i] = lines[i], lines[0]
    return b"\n".join(lines)


ACCIDENTS: Sequence[Callable[[bytes, int], bytes]] = (
    _flipped,
    _flipped,
    _lost_line,
    _doubled_line,
    _swapped_lines,
    lambda data, at: data[:at],  # torn
    lambda data, at: b"",
    lambda data, at: b"\xef\xbb\xbf" + data,  # a byte order mark
    lambda data, at: data.replace(b"\n", b"\r\n"),
    lambda data, at: data[:at] + b"\xff\xfe\x00" + data[at:],
    lambda data, at: data[:at] + b"\0" * 64,
    lambda data, at: data.replace(b":", b": NaN, ", 1),
    lambda data, at: data.replace(b"{", b'{"seed": 1, "seed": 2, ', 1),
    lambda data, at: b"[" * 3000 + data,
    lambda data, at: data.decode("utf-8", "replace").encode("utf-16"),
)


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


class Hung(BaseException):
    """It took too long."""


def command(main: Callable[[list[str]], int], *argv: str) -> Ended:
    """Run a command; any exception but an exit goes through."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _at_most(LONGEST):
        try:
            code = main(list(argv))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return Ended(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def hung(number: int, frame: FrameType | None) -> None:
        raise Hung(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def json_bytes(tree: Any) -> bytes:
    """As JSON, with what JSON has no words for as Python writes it: NaN, lone surrogates."""
    return json.dumps(tree).encode()
