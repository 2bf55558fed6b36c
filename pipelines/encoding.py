"""Text encoders run once for the same arguments, whoever asks, and in few visits to the device."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelines.placement import Residence

logger = logging.getLogger(__name__)

REMEMBERED = 16  # calls: for each batch size in use a prompt, often a negative one too
ROUNDING = 0.05  # of a row's norm, by which the encodings of copies may differ in bf16
PARKED = 64  # calls encoded ahead, in main memory
AHEAD = 8  # prompts that a visit of the text encoders serves


@dataclass(frozen=True)
class Parked:
    """A tensor in main memory, and where it belongs."""

    tensor: Tensor
    device: torch.device


class Unlike(ValueError):
    """Prompts whose encodings do not fit into one batch."""


class Encodings:
    """Stands in for a pipeline's `encode_prompt`, and remembers what the last calls came to.

    Where text encoders leave the device once a prompt is encoded, they encode the prompts that
    `expect` names before they go. Each prompt by itself, as its own search would have asked: in one
    batch with others its last bits could differ.
    """

    def __init__(self, encode: Any, residence: Residence | None = None) -> None:
        self._encode = encode
        self._residence = residence
        self._memory: OrderedDict[Any, Any] = OrderedDict()
        self._parked: OrderedDict[Any, Any] = OrderedDict()
        self._expected: list[str] = []
        self.texts: Sequence[str] = ()  # the prompts in hand, one for each candidate
        self.remembered = REMEMBERED
        functools.update_wrapper(self, encode)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(set(self.texts)) > 1:
            return self._mixed(args, kwargs)
        key = _frozen((args, kwargs))
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        if key in self._parked:
            found = _each(self._parked.pop(key), Parked, lambda p: p.tensor.to(p.device))
        else:
            with torch.no_grad():
                found = self._encode(*args, **kwargs)
                self._look_ahead(key, args, kwargs)
            if self._residence is not None:
                self._residence.encoded()
        self._memory[key] = found
        _bound(self._memory, self.remembered)
        return found

    @property
    def _text(self) -> str:
        return self.texts[0] if self.texts else ""

    def _mixed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call for several prompts: of each the rows that a call for it alone would have made."""
        whole = list(self.texts)
        texts = whole if _asks_for(args, kwargs, whole) else whole[:1] * len(whole)
        found: dict[str, Any] = {}
        try:
            for text in dict.fromkeys(texts):
                self.texts = [text] * len(texts)
                own = {name: _instead(value, texts, self.texts) for name, value in kwargs.items()}
                found[text] = self(*(_instead(value, texts, self.texts) for value in args), **own)
        finally:
            self.texts = whole
        return _rows_of([found[text] for text in texts])

    def expect(self, prompts: Iterable[str]) -> None:
        """The prompts to come, in their order."""
        self._expected = list(dict.fromkeys(prompts))

    def forget(self) -> None:
        self._memory.clear()
        self._parked.clear()

    def _look_ahead(self, own: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What prompts to come will ask in place of this call, while the encoders are there."""
        if self._residence is None or not self._residence.encoders_leave:
            return
        for other in self._following():
            theirs = _swapped(args, self._text, other), _swapped(kwargs, self._text, other)
            key = _frozen(theirs)
            if key == own or key in self._memory or key in self._parked:
                continue
            try:
                found = self._encode(*theirs[0], **theirs[1])
            except (ValueError, RuntimeError) as error:  # it will be met, and told, in its own turn
                logger.debug("'%s' could not be encoded ahead: %s", other, error)
                return
            self._parked[key] = _each(found, Tensor, lambda t: Parked(t.cpu(), t.device))
            _bound(self._parked, PARKED)

    def _following(self) -> Sequence[str]:
        """The next prompts after the one in hand."""
        known = self._text in self._expected
        begin = self._expected.index(self._text) + 1 if known else 0
        return self._expected[begin : begin + AHEAD - 1]


def _bound(memory: OrderedDict[Any, Any], size: int) -> None:
    if len(memory) > size:
        memory.popitem(last=False)


def _each(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """What an `encode_prompt` returns, with everything of a kind in it changed."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return type(value)({name: _each(v, kind, change) for name, v in value.items()})
    if isinstance(value, list | tuple):
        return type(value)([_each(v, kind, change) for v in value])
    return value


def _swapped(value: Any, text: str, other: str) -> Any:
    """A call's arguments with another prompt in place of this one."""
    if isinstance(value, str):
        return other if value == text else value
    if isinstance(value, dict):
        return {name: _swapped(v, text, other) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_swapped(v, text, other) for v in value])
    return value


def _asks_for(args: Sequence[Any], kwargs: Mapping[str, Any], texts: Sequence[str]) -> bool:
    """Whether a call is for these prompts, or for what is the same for all (a negative prompt).

    Raises `Unlike` where it is for others, one for each: the pipeline has rewritten them.
    """
    given = (*args, *kwargs.values())
    if any(_is_list_of(value, texts) for value in given):
        return True
    lists = [value for value in given if isinstance(value, list) and len(value) == len(texts)]
    if any(isinstance(v[0], str) and len(set(v)) > 1 for v in lists):
        raise Unlike("these prompts are not encoded as they are written")
    return False


def _is_list_of(value: Any, texts: Sequence[str]) -> bool:
    return isinstance(value, list | tuple) and list(value) == list(texts)


def _instead(value: Any, texts: Sequence[str], others: Sequence[str]) -> Any:
    """An argument of a call, with other prompts if it is the list of these."""
    return list(others) if _is_list_of(value, texts) else value


def _rows_of(each: Sequence[Any]) -> Any:
    """Row i of the i-th of these encodings, each of copies of one text.

    What is no row of any is the same in all; what is neither (rows within layers, texts of
    different lengths) raises `Unlike`.
    """
    first, n = each[0], len(each)
    if isinstance(first, dict):
        return type(first)({name: _rows_of([one[name] for one in each]) for name in first})
    if isinstance(first, Tensor):
        return _tensor_rows(each)
    if isinstance(first, list | tuple):
        if any(len(one) != len(first) for one in each):
            raise Unlike("the encodings of these prompts are of different lengths")
        if isinstance(first, list) and len(first) == n and all(map(_copies, each)):
            rows = [one[i] for i, one in enumerate(each)]
            if len({getattr(row, "shape", None) for row in rows}) > 1:
                raise Unlike("the encodings of these prompts are of different lengths")
            return rows
        return type(first)([_rows_of(leaves) for leaves in zip(*each, strict=True)])
    if any(one is not first and one != first for one in each):
        raise Unlike("the encodings of these prompts differ in more than their rows")
    return first


def _tensor_rows(each: Sequence[Tensor]) -> Tensor:
    first = each[0]
    if any(one.shape != first.shape for one in each):
        raise Unlike("the encodings of these prompts are of different lengths")
    if all(one is first or torch.equal(one, first) for one in each):
        return first
    if first.ndim and len(first) == len(each) and all(map(_copies, each)):
        return torch.stack([one[i] for i, one in enumerate(each)])
    raise Unlike("the encodings of these prompts differ in more than their rows")


def _copies(rows: Any) -> bool:
    """Whether these are the encodings of copies, up to rounding, and not layers of one."""
    if not all(isinstance(row, Tensor) and row.shape == rows[0].shape for row in rows):
        return False
    first = rows[0].float()
    apart = torch.stack([(row.float() - first).norm() for row in rows]).max()
    return bool(apart <= ROUNDING * first.norm())


def _frozen(value: Any) -> Any:
    """A hashable image of call arguments; tensors and pictures count by their content."""
    if isinstance(value, Mapping):
        return tuple((name, _frozen(v)) for name, v in sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(_frozen(v) for v in value)
    if isinstance(value, Tensor):
        bits = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        return (value.shape, value.dtype, hashlib.sha256(bits.numpy().tobytes()).digest())
    if hasattr(value, "tobytes"):  # PIL images, numpy arrays
        size = getattr(value, "size", None), getattr(value, "shape", None)
        return (type(value), size, hashlib.sha256(value.tobytes()).digest())
    try:
        hash(value)
    except TypeError:
        return object()  # equal to nothing else, so never taken for another
    return value
