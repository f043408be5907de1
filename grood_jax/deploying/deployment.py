"""A directory to ship: classifier, detector, threshold, and how images are prepared."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from grood_jax.backbone.backbone import Backbone
from grood_jax.data import Preprocessing
from grood_jax.deploying.ood_classifier import HOW_TO_MAKE, KIND, OODClassifier, Prediction
from grood_jax.evaluation import own_model
from grood_jax.models import Staged
from grood_jax.passes import processes
from grood_jax.storage import checkpoints, saving
from grood_jax.storage.checkpoints import ModelSpec, backbone_of
from grood_jax.support import checks
from grood_jax.support import manifest as manifests
from grood_jax.support.errors import UserError
from grood_jax.support.structures import put_together, take_apart


@dataclass(frozen=True, eq=False)
class Deployment:
    """What answers for images as they are stored, bytes from 0 to 255.

    Attributes:
      classifier: classifier, detector and threshold.
      model: the network; None for one of the user's own, which is made anew when it is loaded.
      spec: what it is; of the user's own model, ``model`` is the function that makes it.
      cut: where it is cut; None for the user's own, cut as by default.
      class_names: of its classes, in order.
    """

    classifier: OODClassifier
    model: Staged | None
    spec: ModelSpec
    cut: str | None
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
        return self.predict_and_nearest(pixels, k)[1:]

    def predict_and_nearest(
        self, pixels: UInt8[np.ndarray, "b h w c"], k: int = 5
    ) -> tuple[Prediction, Int[np.ndarray, "b k"], Float[np.ndarray, "b k"]]:
        """What `predict` and `nearest` say, of which the network runs once."""
        k = min(k, len(self.classifier.references.labels))
        return self.classifier.predict_and_nearest(_bytes(pixels), k)

    def thresholds(self) -> Float[np.ndarray, "*c"]:
        """Scores beyond which images are taken for OOD: one, or one a class."""
        return self.classifier.thresholds

    def calibration_scores(self) -> Float[np.ndarray, " n"]:
        """Scores of the calibration images, ascending."""
        return np.sort(self.classifier.held_out_scores)

    def save(self, path: str | Path) -> None:
        """Writes it into a directory; raises and replaces as `OODClassifier.save`."""
        arrays, about = self.classifier.take_apart()
        network: dict[str, Any] = {
            "spec": asdict(self.spec),
            "cut": self.cut,
            "class_names": list(self.class_names),
        }
        own: dict[str, np.ndarray] = {}
        if self.model is not None:
            network["arrays"], own = take_apart("network", checkpoints.arrays_of(self.model))
        if processes.leads():
            saving.save(path, KIND, arrays | own, about | {"network": network})


def _bytes(pixels: UInt8[np.ndarray, "b h w c"]) -> UInt8[np.ndarray, "b h w c"]:
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise TypeError(
            f"pixels has dtype {pixels.dtype} and shape {pixels.shape}; expected uint8 (B, H, W, C)"
        )
    return pixels


def load(path: str | Path, model: str | None = None) -> Deployment:
    """Reads what `Deployment.save` wrote, or what `OODClassifier.save` did.

    Args:
      path: the directory.
      model: the function that makes the network, if that is the user's own, as for
        `grood_jax.evaluation.own_model.make`.

    Raises:
      TypeError: ``path`` is none.
      UserError: there is none; it has no network and ``model`` is None, or the other way round; or
        as `OODClassifier.load`.
    """
    path = checks.path("path", path)
    about, arrays = saving.load(path, KIND, HOW_TO_MAKE)
    network = about.get("network")
    if network is None and model is None:
        raise UserError(
            f"{path} holds no network: OODClassifier.save leaves it out; name the function that "
            "makes it with --model, or make a directory with python -m grood_jax.fit"
        )
    with manifests.described("network", path):
        if network is None:
            network = {"spec": asdict(_bare_spec(about, str(model))), "cut": None, "bare": True}
            count = checks.at_least("num_classes", about["num_classes"], 1)
            network["class_names"] = list(map(str, range(count)))
        spec = checkpoints.spec_of(path, network["spec"])
        built, backbone = _network(path, network, spec, arrays, model)
        class_names = tuple(map(str, network["class_names"]))
        classifier = OODClassifier.put_together(path, about, arrays, backbone)
        if len(class_names) != classifier.num_classes:
            raise UserError(f"{path} names {len(class_names)} of {classifier.num_classes} classes")
    return Deployment(classifier, built, spec, network["cut"], class_names)


def _network(
    path: str | Path, network: Any, spec: ModelSpec, arrays: Any, model: str | None
) -> tuple[Staged | None, Backbone]:
    """The network that was saved, or the user's own."""
    if "arrays" in network:
        if model is not None:
            raise UserError(f"model is {model!r}, and {path} holds its network; leave out --model")
        built = checkpoints.model_of(spec, put_together(network["arrays"], arrays))
        return built, backbone_of(built, spec, network["cut"])
    if model is None:
        raise UserError(
            f"{path} was fitted on a model of one's own; name the function that makes it: "
            f"--model {spec.model}"
        )
    made = own_model.make(
        model, spec.preprocessing, network["cut"], normalizes=network.get("bare", False)
    )
    return None, made.network


def _bare_spec(about: Any, model: str) -> ModelSpec:
    """What is known of a network that `OODClassifier.save` left out."""
    height, width, channels = about["image_shape"]
    if height != width:
        raise UserError(f"its images are {height} by {width}; expected as many rows as columns")
    zeros, ones = (0.0,) * channels, (1.0,) * channels
    return ModelSpec(
        model=model,
        num_classes=about["num_classes"],
        preprocessing=Preprocessing(height, channels, zeros, ones),
        source=model,
    )
