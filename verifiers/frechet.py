"""Fréchet distance of Gaussians (Dowson & Landau 1982), and of a set that grows one by one."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from utils import UserError


@dataclass(frozen=True)
class Gaussian:
    """What is compared of a set of features: mean [d] and covariance [d, d], in float64."""

    mean: Tensor
    covariance: Tensor

    @property
    def width(self) -> int:
        return len(self.mean)

    def root(self) -> Tensor:  # [d, d]
        """The covariance's symmetric square root; what rounding made negative counts as 0."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1^{1/2} S2 S1^{1/2})^{1/2})."""
    root = a.root()
    cross = _trace_of_root(root @ b.covariance @ root)
    apart = (a.mean - b.mean).square().sum()
    return float(apart + a.covariance.trace() + b.covariance.trace() - 2 * cross)


def gaussian_of(batches: Iterable[Tensor]) -> Gaussian:
    """Mean and covariance (over n - 1) of features [n, d] in batches, all never held at once.

    Chan et al. 1979: scatters add up, and n m / (n + m) times the outer square of how far the
    means lie apart. One image alone has no covariance: zeros.
    """
    n, mean, scatter = 0, torch.zeros(()), torch.zeros(())
    for batch in batches:
        x = batch.double()
        m, centre = len(x), x.mean(0)
        apart = centre - mean
        scatter = scatter + (x - centre).T @ (x - centre) + n * m / (n + m) * apart.outer(apart)
        mean = mean + apart * m / (n + m)
        n += m
    return Gaussian(mean, scatter / max(n - 1, 1))


class GrowingSet:
    """Fréchet distances of a set of features with one more, to fixed statistics.

    With S the fixed covariance, the trace of the root is the nuclear norm of F / sqrt(n - 1), where
    F^T F = S^{1/2} C S^{1/2} and C is the set's scatter. By Welford's update, another x at d from
    the mean of n - 1 adds (n - 1) / n times d d^T to C, which is one row to F. Its Gram matrix
    has a side of at most d + 1 however large the set. An x costs O(d^2) and its eigenvalues.
    """

    def __init__(self, target: Gaussian) -> None:
        self.count = 0
        self._target = target
        self._root = target.root()
        self._target_trace = float(target.covariance.trace())
        self._mean = torch.zeros_like(target.mean)
        self._scatter_trace = 0.0
        self._factor = self._root.new_zeros(0, target.width)
        self._gram = self._root.new_zeros(0, 0)

    def distance_with(self, x: Tensor) -> float:
        """The distance of the set with x [d] in it."""
        n, step, row = self._step(x)
        mean = self._mean + step / n
        spread = self._scatter_trace + (n - 1) / n * float(step.square().sum())
        nuclear = float(_trace_of_root(self._gram_with(row)))
        degrees = max(n - 1, 1)  # a set of one has neither scatter nor norm
        apart = float((mean - self._target.mean).square().sum())
        return apart + spread / degrees + self._target_trace - 2 * nuclear / degrees**0.5

    def add(self, x: Tensor) -> None:  # [d]
        n, step, row = self._step(x)
        self._gram = self._gram_with(row)
        self._factor = torch.cat([self._factor, row[None]])
        self._mean = self._mean + step / n
        self._scatter_trace += (n - 1) / n * float(step.square().sum())
        self.count = n
        if len(self._factor) > self._target.width:  # R of QR has the same F^T F in fewer rows
            self._factor = torch.linalg.qr(self._factor, mode="r").R
            self._gram = self._factor @ self._factor.T

    def _step(self, x: Tensor) -> tuple[int, Tensor, Tensor]:
        """The size with x in it, x from the mean so far, and the row that it adds to F."""
        n, step = self.count + 1, x.double() - self._mean
        return n, step, ((n - 1) / n) ** 0.5 * (self._root @ step)

    def _gram_with(self, row: Tensor) -> Tensor:
        column = (self._factor @ row)[:, None]
        corner = row.square().sum().view(1, 1)
        return torch.cat(
            [torch.cat([self._gram, column], dim=1), torch.cat([column.T, corner], dim=1)]
        )


def load_statistics(path: Path) -> Gaussian:
    """`mu` and `sigma` of an .npz, as pytorch-fid writes it, or of a .safetensors file."""
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            with np.load(path, allow_pickle=False) as arrays:
                found = {k: torch.as_tensor(arrays[k]) for k in ("mu", "sigma") if k in arrays}
        mean, covariance = found["mu"].double(), found["sigma"].double()
    except (OSError, ValueError, TypeError, AttributeError, KeyError, EOFError,
            zipfile.BadZipFile, SafetensorError) as error:  # fmt: skip
        raise UserError(
            f"The statistics '{path}' cannot be read: give an .npz or .safetensors file with"
            " the arrays mu [d] and sigma [d, d]."
        ) from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(
            f"The statistics '{path}' have mu {list(mean.shape)} and sigma"
            f" {list(covariance.shape)}: they must be [d] and [d, d]."
        )
    if not bool(mean.isfinite().all() and covariance.isfinite().all()):
        raise UserError(f"The statistics '{path}' are not finite: compute them anew.")
    return Gaussian(mean, (covariance + covariance.T) / 2)


def _trace_of_root(square: Tensor) -> Tensor:
    """tr(M^{1/2}) of a symmetric M with no negative eigenvalues but those of rounding."""
    return torch.linalg.eigvalsh(square).clamp(min=0).sqrt().sum()
