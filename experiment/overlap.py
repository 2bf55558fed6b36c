"""Work that overlaps: a batch is finished while the next is made, prompts take turns."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TypeVar

Made = TypeVar("Made")
Judged = TypeVar("Judged")
Done = TypeVar("Done")

WRITERS = 2  # threads that compress a batch's pictures, which Pillow does beside Python


def side_by_side(work: Callable[..., Done], *columns: Sequence[object]) -> list[Done]:
    """`work` on each row of the columns, a few at a time; the results in order."""
    rows = list(zip(*columns, strict=True))
    if len(rows) < 2:
        return [work(*row) for row in rows]
    with ThreadPoolExecutor(min(WRITERS, len(rows)), "write") as pool:
        return list(pool.map(work, *columns))


def one_behind(
    made: Iterable[Made], first: Callable[[Made], Judged], finish: Callable[[Judged], Done]
) -> Generator[Done, None, None]:
    """Finish each thing in a thread while the next is made; yield in order.

    first: done to each, once the one before is finished, by the caller's own thread.
    Nothing that was made is lost: where making fails, what is in hand is finished before that is
    raised, and where the consumer leaves, so is the next. Where finishing fails, nothing after it
    is finished.
    """
    error: Exception | None = None
    source = iter(made)
    waiting: Future[Done] | None = None
    with _pool(1, "finish") as pool:
        while error is None:
            try:
                each = next(source)
            except StopIteration:
                break
            except Exception as raised:
                error = raised
                break
            if waiting is not None:
                done = waiting.result()
                try:
                    yield done
                except GeneratorExit:
                    with suppress(Exception):  # it will be met again when this is gone on with
                        finish(first(each))
                    raise
            waiting = pool.submit(finish, first(each))
        if waiting is not None:
            yield waiting.result()
    if error is not None:
        raise error


def in_turn(
    items: Iterable[Made], work: Callable[[Made], Done], at_once: int, halt: Callable[[], object]
) -> Generator[tuple[Made, Done], None, None]:
    """Work on several items at once, each in a thread of its own; yield in the items' order.

    The first error, or the consumer's leaving, calls `halt`, which has to make the others end; it
    is raised when they have.
    """
    if at_once == 1:
        for item in items:
            yield item, work(item)
        return
    source = iter(items)
    running: dict[Future[Done], Made] = {}
    with _pool(at_once, "prompt") as pool:
        try:
            while True:
                while len(running) < 4 * at_once and _busy(running) < at_once:
                    try:
                        item = next(source)
                    except StopIteration:
                        break
                    running[pool.submit(work, item)] = item
                if not running:
                    return
                wait(running, return_when=FIRST_EXCEPTION, timeout=0.05)
                first = next(iter(running))
                for future in running:
                    if future.done() and future.exception() is not None:
                        future.result()
                if first.done():
                    yield running.pop(first), first.result()
        except BaseException:
            halt()
            raise


def _busy(futures: Iterable[Future[Done]]) -> int:
    return sum(not future.done() for future in futures)


def _pool(size: int, name: str) -> ThreadPoolExecutor:
    """Threads whose current GPU is the one of the thread that starts them: CUDA gives each thread
    the first one, and what waits for "the current stream" would wait for that of another GPU."""
    import torch

    if not torch.cuda.is_initialized():
        return ThreadPoolExecutor(size, name)
    return ThreadPoolExecutor(size, name, torch.cuda.set_device, (torch.cuda.current_device(),))
