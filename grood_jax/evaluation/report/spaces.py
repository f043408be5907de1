"""Feature space and gradient space in two dimensions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np
from jaxtyping import Float

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors import Detector
from grood_jax.detectors.grood import GroodState, compared_gradients
from grood_jax.evaluation.fitting import Fitted
from grood_jax.evaluation.report.contents import ShownSet
from grood_jax.support import checks

ID_SAMPLES, OTHER_SAMPLES = 1000, 300

Space = Literal["features", "gradients"]
Method = Literal["PCA", "UMAP"]


@dataclass(frozen=True)
class View:
    """Samples of all sets in two dimensions.

    Attributes:
      space: what was projected.
      method: how.
      points: those of each set, (n, 2), by its name.
      axes: what the two axes are called.
    """

    space: Space
    method: Method
    points: Mapping[str, Float[np.ndarray, "_ 2"]]
    axes: tuple[str, str]


def views(sets: Sequence[ShownSet], detectors: Mapping[str, Fitted]) -> list[View]:
    """Views of features, and of the gradients that the first GROOD compares, if there is one.

    Args:
      sets: the first is the ID test set, on which axes are fitted.
      detectors: all that were evaluated.
    """
    limits = [ID_SAMPLES, *[OTHER_SAMPLES] * (len(sets) - 1)]
    samples = [_sample(shown, most) for shown, most in zip(sets, limits, strict=True)]
    names = [shown.name for shown in sets]
    spaces: dict[Space, list[np.ndarray]] = {
        "features": [np.asarray(outputs.features, np.float64) for outputs in samples]
    }
    for fitted in detectors.values():
        if isinstance(fitted.state, GroodState):
            spaces["gradients"] = [_gradients(fitted, outputs) for outputs in samples]
            break
    all_views = []
    for space, rows in spaces.items():
        points, axes = principal(rows)
        all_views.append(View(space, "PCA", dict(zip(names, points, strict=True)), axes))
    for space, rows in spaces.items():
        placed = neighbouring(rows)
        if placed is not None:
            axes = ("UMAP 1", "UMAP 2")
            all_views.append(View(space, "UMAP", dict(zip(names, placed, strict=True)), axes))
    return all_views


def first_drawn(detectors: Mapping[str, Detector]) -> str | None:
    """The name of the detector whose state `views` draws, before any is fitted; None if none's.

    Args:
      detectors: all that are to be evaluated.
    """
    return next((name for name, own in detectors.items() if own.name == "grood"), None)


def principal(
    rows: Sequence[Float[np.ndarray, "_ d"]],
) -> tuple[list[Float[np.ndarray, "_ 2"]], tuple[str, str]]:
    """All rows on the two principal axes of the first, and what these axes are called.

    Args:
      rows: of several sets.
    """
    from sklearn.decomposition import PCA

    first = rows[0]
    center = first.mean(axis=0)
    # Gradients may be tiny: their squares must not underflow.
    scale = float(np.abs(first - center).max()) or 1.0
    axes = min(2, *first.shape)
    total = ((first - center) / scale).var(axis=0).sum()
    if axes < 1 or len(first) < 2 or total == 0:
        # Nothing to fit: the samples of the first set coincide.
        return [np.zeros((len(part), 2)) for part in rows], ("PC 1", "PC 2")
    fitted = PCA(axes, random_state=0).fit((first - center) / scale)
    points = [_two(fitted.transform((part - center) / scale) * scale) for part in rows]
    shares = [*fitted.explained_variance_ratio_, 0.0]
    return points, (_axis(1, shares[0]), _axis(2, shares[1]))


def neighbouring(rows: Sequence[Float[np.ndarray, "_ d"]]) -> list[np.ndarray] | None:
    """All rows together as UMAP places them; None where the package umap-learn is missing."""
    try:
        from umap import UMAP
    except ImportError:
        return None
    joined = np.concatenate(rows)
    scale = float(np.abs(joined).max()) or 1.0
    if len(joined) < 5:
        return [np.zeros((len(part), 2)) for part in rows]
    neighbours = min(15, len(joined) - 1)
    # One job: with a seed there can be no more, and UMAP would complain.
    umap = UMAP(n_components=2, n_neighbors=neighbours, random_state=0, n_jobs=1)
    placed = np.asarray(umap.fit_transform(joined / scale), np.float64)
    return np.split(placed, np.cumsum([len(part) for part in rows])[:-1])


def _axis(number: int, share: float) -> str:
    return f"PC {number} ({share:.0%} of ID variance)"


def _two(points: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n 2"]:
    return np.pad(points, [(0, 0), (0, 2 - points.shape[1])])


def _sample(shown: ShownSet, most: int) -> Outputs:
    count = len(shown.outputs.logits)
    rows = np.linspace(0, count - 1, min(count, most)).astype(np.int64)
    return jax.tree.map(lambda array: np.asarray(array)[rows], shown.outputs)


def _gradients(fitted: Fitted, outputs: Outputs) -> Float[np.ndarray, "n d"]:
    outputs = jax.tree.map(checks.placed, outputs)
    return np.asarray(compared_gradients(fitted.detector, fitted.state, outputs), np.float64)
