"""Pure functions of images as files that need only jax to run."""

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import Outputs
from grood_jax.support import checks
from grood_jax.support.errors import UserError
from grood_jax.support.files import written_whole

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

EXPORTED_BLOCK = 32
"""Rows that an exported detector scores at once."""

Score = Callable[[Any, Outputs], Float[Array, " b"]]
"""``(state, Outputs) -> (B,)``, as `grood_jax.detectors.Detector.score`."""


def export(
    answers: Callable[[Float[Array, "b ..."]], dict[str, Array]],
    path: Path,
    image_shape: Sequence[int],
    platforms: Sequence[str],
) -> None:
    """Writes a `jax.export` artefact, for any number of images.

    Args:
      answers: pure, of float32 images (B, H, W, C).
      path: of the file, replaced whole or not at all.
      image_shape: of one image, (H, W, C).
      platforms: where it is to run.

    Raises:
      UserError: the package flatbuffers is missing, or the file cannot be written.
      ValueError: an unknown platform.
    """
    if not platforms or isinstance(platforms, str):
        raise ValueError(f"platforms is {platforms!r}; expected some of {', '.join(PLATFORMS)}")
    for platform in platforms:
        checks.choice("platforms", platform, PLATFORMS)
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError(
            "jax.export needs the package flatbuffers; install it with pip install flatbuffers"
        )
    # What is no regular file, a device for example, would be replaced by one.
    if not path.name or "\0" in path.name or (os.path.lexists(path) and not os.path.isfile(path)):
        raise UserError(f"path is {str(path)!r}; expected a new file, or one to be replaced")
    (count,) = jax_export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((count, *image_shape), jnp.float32)
    exported = jax_export.export(jax.jit(answers), platforms=tuple(platforms))(images)
    try:
        with written_whole(path) as unfinished:
            unfinished.write_bytes(exported.serialize())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def in_blocks(score: Score) -> Score:
    """Scores of any number of rows: detectors choose their blocks by a number that is known."""

    def blockwise(state: Any, outputs: Outputs) -> Float[Array, " b"]:
        count = outputs.logits.shape[0]
        blocks = (count + EXPORTED_BLOCK - 1) // EXPORTED_BLOCK

        def divided(array: Array) -> Array:
            missing = blocks * EXPORTED_BLOCK - count
            padded = jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1), mode="edge")
            return padded.reshape(blocks, EXPORTED_BLOCK, *array.shape[1:])

        # Leaf by leaf: as a whole, blocks of outputs would be no `Outputs`.
        leaves, structure = jax.tree.flatten(outputs)

        def of_block(block: list[Array]) -> Float[Array, " r"]:
            return score(state, jax.tree.unflatten(structure, block))

        scores = jax.lax.map(of_block, [divided(leaf) for leaf in leaves])
        return scores.reshape(blocks * EXPORTED_BLOCK)[:count]

    return blockwise
