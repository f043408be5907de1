"""A directory to ship: classifier, detector, threshold, and how images are prepared."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from grood_jax.backbone.backbone import Backbone
from grood_jax.data import Preprocessing
from grood_jax.deploying.ood_classifier import HOW_TO_MAKE, KIND, OODClassifier, Prediction
from grood_jax.models import Staged
from grood_jax.storage import checkpoints, saving
from grood_jax.storage.checkpoints import ModelSpec
from grood_jax.support import checks
from grood_jax.support import manifest as manifests
from grood_jax.support.errors import UserError
from grood_jax.support.structures import put_together, take_apart


@dataclass(frozen=True, eq=False)
class Deployment:
    """What answers for images as they are stored, bytes from 0 to 255.

    Attributes:
      classifier: classifier, detector and threshold.
      model: the network.
      spec: what it is.
      cut: the stage after which it is cut.
      class_names: of its classes, in order.
    """

    classifier: OODClassifier
    model: Staged
    spec: ModelSpec
    cut: str
    class_names: tuple[str, ...]

    @property
    def preprocessing(self) -> Preprocessing:
        """Size, channels and normalisation of images."""
        return self.spec.preprocessing

    def predict(self, pixels: UInt8[np.ndarray, "b h w c"]) -> Prediction:
        """`OODClassifier.predict` for images of bytes, of the network's size and channels."""
        return self.classifier.predict(_bytes(pixels))

    def nearest(
        self, pixels: UInt8[np.ndarray, "b h w c"], k: int = 5
    ) -> tuple[Int[np.ndarray, "b k"], Float[np.ndarray, "b k"]]:
        """`OODClassifier.nearest`, likewise; fewer where fewer training samples are kept."""
        k = min(k, len(self.classifier.references.labels))
        return self.classifier.nearest(_bytes(pixels), k)

    def thresholds(self) -> Float[np.ndarray, "*c"]:
        """Scores beyond which images are taken for OOD: one, or one a class."""
        return self.classifier.thresholds

    def calibration_scores(self) -> Float[np.ndarray, " n"]:
        """Scores of the calibration images, ascending."""
        return np.sort(self.classifier.held_out_scores)

    def save(self, path: str | Path) -> None:
        """Writes it into a directory; raises and replaces as `OODClassifier.save`."""
        arrays, about = self.classifier.take_apart()
        described, own = take_apart("network", checkpoints.arrays_of(self.model))
        network = {
            "spec": asdict(self.spec),
            "cut": self.cut,
            "class_names": list(self.class_names),
            "arrays": described,
        }
        saving.save(path, KIND, arrays | own, about | {"network": network})


def _bytes(pixels: UInt8[np.ndarray, "b h w c"]) -> UInt8[np.ndarray, "b h w c"]:
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise TypeError(
            f"pixels has dtype {pixels.dtype} and shape {pixels.shape}; expected uint8 (B, H, W, C)"
        )
    return pixels


def backbone_of(model: Staged, spec: ModelSpec, cut: str) -> Backbone:
    """The backbone of a network, cut after a stage."""
    return Backbone.from_nnx(
        model, cut=cut, input_std=spec.preprocessing.std, input_mean=spec.preprocessing.mean
    )


def load(path: str | Path) -> Deployment:
    """Reads what `Deployment.save` wrote.

    Raises:
      TypeError: ``path`` is none.
      UserError: there is none, it has no network, or as `OODClassifier.load`.
    """
    path = checks.path("path", path)
    about, arrays = saving.load(path, KIND, HOW_TO_MAKE)
    network = about.get("network")
    if network is None:
        raise UserError(
            f"{path} holds no network: OODClassifier.save leaves it out; make a directory with "
            "python -m grood_jax.fit"
        )
    with manifests.described("network", path):
        spec = checkpoints.spec_of(path, network["spec"])
        model = checkpoints.model_of(spec, put_together(network["arrays"], arrays))
        backbone = backbone_of(model, spec, network["cut"])
        class_names = tuple(map(str, network["class_names"]))
        classifier = OODClassifier.put_together(path, about, arrays, backbone)
        if len(class_names) != classifier.num_classes:
            raise UserError(f"{path} names {len(class_names)} of {classifier.num_classes} classes")
    return Deployment(classifier, model, spec, network["cut"], class_names)
