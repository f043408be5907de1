"""The most and the least OOD-looking images of a set."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from grood_jax.data.batching import read_readable
from grood_jax.evaluation.report.contents import ShownSet

SHOWN = 8
SMALL = 64
"""Pixels a side up to which an image is embedded as it is."""

LARGE = 128
"""Pixels a side to which others are brought, as JPEG: a page of photographs must stay small."""


@dataclass(frozen=True)
class Picture:
    """An image on the page.

    Attributes:
      row: which of its set's.
      score: its score.
      address: a data URI.
      small: it has few pixels, which are to be seen as such.
    """

    row: int
    score: float
    address: str
    small: bool


def extremes(
    shown: ShownSet, scores: Float[np.ndarray, " n"]
) -> tuple[list[Picture], list[Picture]]:
    """The images of highest score, highest first, and of lowest, lowest first.

    None where it is not known of which images the scores are.

    Args:
      shown: the set.
      scores: of its rows.
    """
    if len(shown.rows) != len(scores):
        return [], []
    order = np.argsort(scores, kind="stable")
    return _pictures(shown, scores, order[::-1][:SHOWN]), _pictures(shown, scores, order[:SHOWN])


def _pictures(
    shown: ShownSet, scores: Float[np.ndarray, " n"], places: Sequence[int] | np.ndarray
) -> list[Picture]:
    places = np.asarray(places)
    rows = shown.rows[places]
    # Where outputs were remembered, an image may meanwhile have become unreadable.
    pixels, _, readable = read_readable(shown.images, rows, lambda *_: None)
    if pixels is None:
        return []
    return [
        Picture(int(row), float(score), data_uri(image), max(image.shape[:2]) <= SMALL)
        for row, score, image in zip(rows[readable], scores[places][readable], pixels, strict=True)
    ]


def data_uri(image: UInt8[np.ndarray, "h w c"]) -> str:
    """An image as an address that holds it: PNG if it is small, else shrunk, as JPEG."""
    from PIL import Image

    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    buffer = io.BytesIO()
    if max(image.shape[:2]) <= SMALL:
        picture.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        picture.thumbnail((LARGE, LARGE))
        picture.save(buffer, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
