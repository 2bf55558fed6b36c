"""How long an image takes at the least: its arithmetic, at the speed of plain matrix products.

TFLOP were counted by torch's FlopCounterMode on the models of `benchmarks.full_size` without data,
a multiply-add as two: linear layers, convolutions and attention, no norms, activations or rotary
embeddings. A row is one forward pass for one image; guidance takes two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

PEAK = 790.0  # TFLOP/s of a bf16 matrix product of random values, measured on one H200


@dataclass(frozen=True)
class Work:
    """TFLOP of one image at a published size.

    row: of a pass through the denoiser. around: encoding its prompt alone, and decoding it. steps:
    that people take. batch: images at once in the benchmark's runs. more: another number of them,
    measured beside.
    """

    row: float
    around: float
    steps: int
    batch: int
    more: int | None = None

    @property
    def most(self) -> int:
        return max(self.batch, self.more or 0)

    def small(self) -> Work:
        """The same for a small model, where only that it runs is asked."""
        more = 2 if self.more else None
        return replace(self, steps=2, batch=1 if more else 2, more=more)

    def floor(self, rows: float, peak: float = PEAK) -> float:
        """Seconds of an image that takes so many rows."""
        return (rows * self.row + self.around) / peak


WORK = {
    # 1024x1024, 512 tokens of text. A single image is what "auto" takes by the H200's seconds.
    "flux.1-dev": Work(74.385, 15.3, steps=50, batch=1, more=4),
    "sdxl": Work(6.761, 10.7, steps=50, batch=4),  # 1024x1024
    "sd1.5": Work(0.803, 2.5, steps=50, batch=16),  # 512x512
    "pixart-sigma": Work(6.634, 16.1, steps=20, batch=8),  # 1024x1024, 300 tokens
    "flux.2-klein-4b": Work(34.820, 14.3, steps=4, batch=4),  # 1024x1024, 512 tokens
}
