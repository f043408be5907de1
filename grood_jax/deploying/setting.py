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
    """

    detector: str = "grood"
    output_dir: Path | None = None
    target_tpr: float = 0.95
    per_class: bool = False
    calibration_share: float = 0.5

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
