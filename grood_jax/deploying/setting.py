"""What is fitted, and where to: what the command line of ``fit`` is told."""

from dataclasses import dataclass
from pathlib import Path

from grood_jax.evaluation.setting import Setting
from grood_jax.support import checks


@dataclass(frozen=True)
class FitConfig(Setting):
    """What is fitted, and where to.

    Attributes:
      detector: the detector, options behind a colon (grood:k=5); several joined by "+".
      output_dir: the directory, replaced if it holds an earlier one (default:
        deployments/DATASET-DETECTOR).
      target_tpr: the share of images in distribution that are to be taken for such.
      per_class: keep that share within each predicted class.
      calibration_share: the share of the test images that set the threshold.
      train: a folder of training images, with a folder for each class, in place of a benchmark;
        the classifier is --model FILE.py:FUNCTION or a --checkpoint.
      calibration: a folder of images that the classifier was not trained on; all of them set the
        threshold. Without it some of the training images do, with a warning.
      image_size: height and width to which images are brought for a model of one's own.
      mean: of each channel, by which its images are normalised, of values from 0 to 1; by default
        what the model's backbone says.
      std: deviation of each channel, likewise.
    """

    detector: str = "auto"
    output_dir: Path | None = None
    target_tpr: float = 0.95
    per_class: bool = False
    calibration_share: float = 0.5
    train: Path | None = None
    calibration: Path | None = None
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
          TypeError: an option of the wrong type.
          ValueError: an option outside its range.
        """
        super().__post_init__()
        for name in ("target_tpr", "calibration_share"):
            if not 0 < checks.fraction(name, getattr(self, name)) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number in (0, 1)")
        if self.train is None:
            for name in ("calibration", "image_size", "mean", "std"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is given; expected train too")
        for name in ("train", "calibration"):
            if getattr(self, name) is not None:
                checks.path(name, getattr(self, name))
        if self.image_size is not None:
            checks.at_least("image_size", self.image_size, 1)
