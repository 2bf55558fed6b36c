"""Which batches a number of candidates is denoised in: sizes from a fixed ladder, never by timing.

An image depends on its batch size in the last bits, so the sizes must depend on nothing but the
rollout's own size: then a run repeated, or resumed, gives the same images.
"""

from __future__ import annotations


def ladder(top: int) -> list[int]:
    """Powers of two up to the run's batch size, and that size itself; largest first."""
    sizes = {top}
    power = 1
    while power < top:
        sizes.add(power)
        power *= 2
    return sorted(sizes, reverse=True)


def spans(n: int, top: int) -> list[tuple[int, int]]:
    """Positions [begin, end) of each batch of n candidates, the largest sizes first."""
    begin, found = 0, []
    for size in ladder(top):
        while n - begin >= size:
            found.append((begin, begin + size))
            begin += size
    return found
