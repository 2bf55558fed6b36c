"""Pure helpers that know none of the project's types: errors, names, files, image bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import fcntl
import functools
import hashlib
import io
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

ROOT = Path(__file__).resolve().parent


class UserError(Exception):
    """Something the user can mend; its message is one sentence that says how."""


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known name, or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known: {', '.join(known)}." if known else "none is known."


def counted(number: int, thing: str, things: str | None = None) -> str:
    """So many of a thing; its plural ends in s where none is given."""
    return f"{number} {thing}" if number == 1 else f"{number} {things or f'{thing}s'}"


def declared(found: Any, name: str) -> bool:
    """Whether a class has this attribute, or its objects will, as a field of a dataclass."""
    return hasattr(found, name) or name in getattr(found, "__dataclass_fields__", {})


def fixed(found: Any, name: str, otherwise: Any) -> Any:
    """A class's own value of an attribute; `otherwise` where each object has one of its own."""
    value = getattr(found, name, otherwise)
    return otherwise if isinstance(value, property | functools.cached_property) else value


def check_options(
    who: str,
    build: Any,
    options: Mapping[str, Any],
    *,
    beside: Iterable[str] = (),
    remedy: Callable[[str], str | None] = lambda option: None,
) -> None:
    """Refuse options that are no fields of the class.

    beside: further names that may stand there, and so may be meant. remedy: the end of the
    sentence for an option of which more is known than its spelling.
    """
    fields = {field.name for field in dataclasses.fields(build) if field.init}
    for option in options:
        if option not in fields:
            end = remedy(option) or did_you_mean(option, fields.union(beside))
            raise UserError(f"{who} has no option '{option}': {end}")


def named_class(kind: str, name: str, table: Mapping[str, str], method: str) -> Any:
    """The dataclass of this name in a table of "module:Class", or the user's own at such a path."""
    path = table.get(name, name)
    if ":" not in path:
        raise UserError(f"There is no {kind} '{name}': {did_you_mean(name, table)}")
    found = imported(kind, name, path)
    if not (dataclasses.is_dataclass(found) and hasattr(found, method)):
        raise UserError(
            f"'{name}' is no {kind}: it must be a dataclass (@dataclass) with a method '{method}'."
        )
    return found


def imported(kind: str, name: str, path: str) -> Any:
    """What stands at "package.module:Class"; `name` is how the user asked for it.

    A user's own module may lie in the working directory, wherever the command itself lies.
    """
    module, _, attribute = path.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # behind all else, so that it hides nothing
    try:
        found = import_module(module)
    except Exception as error:  # a user's own module can fail in any way as it is imported
        lost = isinstance(error, ModuleNotFoundError) and module.startswith(error.name or ".")
        where = f" in {here} or on Python's path" if lost else ""
        said = str(error).rstrip(".") or type(error).__name__
        raise UserError(f"The {kind} '{name}' cannot be imported: {said}{where}.") from error
    try:
        return getattr(found, attribute)
    except AttributeError as error:
        own = [value for value in vars(found).values() if isinstance(value, type)]
        classes = [each.__name__ for each in own if each.__module__ == module]
        raise UserError(
            f"The {kind} '{name}' cannot be imported: '{module}' has no '{attribute}':"
            f" {did_you_mean(attribute, classes)}"
        ) from error


def free_name(name: str, taken: Iterable[str]) -> str:
    """The name, or with a number behind it where it is taken: clip, clip#2, clip#3."""
    number = sum(other.split("#")[0] == name for other in taken) + 1
    return name if number == 1 else f"{name}#{number}"


def digest(text: str) -> str:
    """Hex SHA-256 of the exact UTF-8 bytes; lone surrogates (undecodable argv bytes) are kept."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def seed_of(*parts: object) -> int:
    """31 bits of SHA-256 over the parts: a seed that depends on them and on nothing else."""
    return int(digest("\x1f".join(map(str, parts)))[:8], 16) >> 1


def slug(text: str, longest: int = 85) -> str:
    """Letters, digits and single underscores only: safe in any path (tt-scale-flux's rule)."""
    return re.sub(r"[^a-zA-Z0-9]+", "_", text.strip())[:longest] or "_"


def prompt_stem(prompt: str, occurrence: int = 0, digits: int = 8) -> str:
    """The first part of a prompt's file names, as tt-scale-flux builds it.

    A prompt that stands in the list more than once gets a counter, so that no two share files.
    """
    again = f"-{occurrence + 1}" if occurrence else ""
    return f"prompt@{slug(prompt)}_hash@{digest(prompt)[:digits]}{again}"


def path_part(name: str) -> str:
    """One harmless path component made of a name that the user chose."""
    return re.sub(r"[^a-zA-Z0-9._+-]+", "_", name).strip("._") or "_"


def find_path(name: str, *bases: Path) -> Path | None:
    """The first existing path among `name` as it is, under each base, and under the project."""
    for base in (Path(), *bases, ROOT):
        path = base / Path(name).expanduser()
        try:
            if path.exists():
                return path
        except OSError:  # a name too long for the file system names no file
            return None
    return None


def find_checkpoint(name: str) -> str:
    """A local checkpoint's folder, or the hub id as it is; raises `UserError` for neither."""
    folder = find_path(name)
    if folder is not None:
        return str(folder)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return name
    raise UserError(
        f"There is no checkpoint '{name}': give an existing folder or a hub id like 'owner/name'."
    )


def write_atomically(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: a temporary file in the same folder, then a rename."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide results from a shared group
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def assignment(text: str) -> tuple[str, Any]:
    """The key and the value in KEY=VALUE, as flags take it; a value that is no JSON is text."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--set wants KEY=VALUE, not '{text}'.")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def append_whole(path: Path, data: bytes) -> None:
    """Add to a file all of it or nothing; it is on disk when this returns, under its name."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        before = os.fstat(handle).st_size
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        except BaseException:
            os.ftruncate(handle, before)  # else the next line would be added to a part of one
            raise
    finally:
        os.close(handle)
    if not before:
        settle(path.parent)


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Wait until no other process works out what this file keeps; a dead one's turn is over.

    Where the file system has no locks nobody waits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def settle(folder: Path) -> None:
    """Have the names of new files on disk too, as far as the file system can promise that."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some know no such promise
            os.fsync(handle)
    finally:
        os.close(handle)


def png_bytes(image: Image) -> bytes:
    """PNG at compression level 1: the same pixels 4 times faster than level 6, 11 % larger."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def cache_folder() -> Path:
    """Where what may be worked out again is kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "inference-time-scaling")


def json_number(value: float) -> float | None:
    """A float that JSON can hold: nan and infinities become null."""
    return value if math.isfinite(value) else None


def significant(value: float) -> str:
    """A score as people read it: three significant digits, trailing zeros kept."""
    if not math.isfinite(value):
        return "-"
    text = f"{value:#.3g}"
    return f"{value:.3g}" if "e" in text else text.rstrip(".")
