"""Writes small sets as tensorflow-datasets prepares them."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from grood_jax.data import Preprocessing
from grood_jax.data.tfds import quiet_tfds


def encoded(image: np.ndarray, file_format: str = "PNG") -> bytes:
    """An image file's bytes, of (H, W, 1) or (H, W, 3) uint8."""
    file = io.BytesIO()
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    picture.save(file, file_format, **({"lossless": True} if file_format == "WEBP" else {}))
    return file.getvalue()


def sized(size: int, channels: int) -> Preprocessing:
    """Brings images to a size and leaves their values as they are."""
    return Preprocessing(size, channels, (0.0,) * channels, (1.0,) * channels)


def random_images(count: int, size: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(
        0, 256, (count, size, size, channels), dtype=np.uint8
    )


def write(
    data_dir: Path,
    dataset: str,
    splits: Mapping[str, Sequence[tuple[bytes, int]]],
    *,
    version: str = "1.0.0",
    shards: int = 1,
    image_feature: str = "image",
) -> Path:
    """Writes images with labels; returns the folder of the prepared version."""
    with quiet_tfds() as tfds:
        tfds.disable_progress_bar()

        class Writer(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            name = dataset
            VERSION = tfds.core.Version(version)

            def _info(self) -> Any:
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(
                        {
                            image_feature: tfds.features.Image(),
                            "label": tfds.features.ClassLabel(num_classes=1000),
                        }
                    ),
                    disable_shuffling=True,
                )

            def _split_generators(self, dl_manager: Any) -> Any:
                return {split: self._generate_examples(rows) for split, rows in splits.items()}

            def _generate_examples(self, rows: Any) -> Any:
                for index, (image, label) in enumerate(rows):
                    yield index, {image_feature: image, "label": label}

        builder = Writer(data_dir=str(data_dir), file_format="array_record")
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(num_shards=shards)
        )
    return data_dir / dataset / version
