"""Options of detectors, chosen by their AUROC on validation sets, as OpenOOD does."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors import Detector, combine, create, names, rebuild
from grood_jax.detectors.spec import parse_spec
from grood_jax.evaluation import fitting
from grood_jax.evaluation.fitting import Fitter
from grood_jax.maths.metrics import ood_metrics
from grood_jax.support import checks


@dataclass(frozen=True)
class Chosen:
    """A detector whose options were chosen.

    Attributes:
      detector: with the best options.
      values: what was chosen.
      auroc: of these values, on the validation sets.
      tried: how many combinations could be fitted.
      failed: why others could not.
    """

    detector: Detector
    values: Mapping[str, Any]
    auroc: float
    tried: int
    failed: tuple[str, ...]

    def line(self, name: str) -> str:
        """What a user is told of it.

        Args:
          name: the word that describes the candidates.
        """
        values = ", ".join(f"{option}={value}" for option, value in self.values.items())
        failed = f", {len(self.failed)} could not be fitted" if self.failed else ""
        return (
            f"chosen for {name}: {values} (AUROC {self.auroc:.4f} on validation images; "
            f"{self.tried} tried{failed})"
        )

    def record(self) -> dict[str, Any]:
        """What the results say of it."""
        return {
            "chosen": dict(self.values),
            "validation_auroc": self.auroc,
            "tried": self.tried,
            "failed": list(self.failed),
        }


def create_candidates(
    specs: Sequence[str], search_options: bool
) -> dict[str, tuple[Detector, ...]]:
    """Detectors by the words that describe them; "all" stands for one of each.

    Args:
      specs: names, options behind a colon; with "+" in between, a combination of detectors.
      search_options: give one detector for each combination of options that may be searched.

    Raises:
      ValueError: no detector has that name, or it has no such option, or not with that value; or
        none is given.
      TypeError: an option is of the wrong type, or what describes a detector no string.
    """
    for spec in checks.several("detectors", specs, "a list of names, with options or without"):
        checks.text("detectors", spec)
    words = dict.fromkeys(
        word for spec in specs for word in (names() if spec == "all" else (spec,))
    )
    if not words:
        raise ValueError(f"detectors is empty; expected some of {', '.join(names())}")
    made: dict[str, tuple[Detector, ...]] = {}
    for word in words:
        # Not in 1e+5.
        members = [parse_spec(part) for part in re.split(r"\+(?=[a-z_])", word)]
        if len(members) > 1:
            made[word] = (combine([create(n, **o) for n, o in members]),)
        elif search_options:
            made[word] = candidates(*members[0])
        else:
            made[word] = (create(members[0][0], **members[0][1]),)
    return made


def candidates(name: str, given: Mapping[str, Any]) -> tuple[Detector, ...]:
    """A detector with each combination of its grid's values.

    Args:
      name: the detector's.
      given: options that are settled; they are not searched.

    Returns:
      The detectors; just the one given where nothing is left to search.
    """
    grid = {k: v for k, v in create(name, **given).grid.items() if k not in given}
    points = itertools.product(*grid.values())
    return tuple(create(name, **given, **dict(zip(grid, point, strict=True))) for point in points)


def for_present(detector: Detector, present: Sequence[int]) -> Detector:
    """The same detector, told which classes the training data hold, if it asks for that.

    Options that were given stay; so do detectors that have no such option.

    Args:
      detector: known by name.
      present: the classes that are there.
    """
    options = _with_present(detector.options, present)
    return detector if options == detector.options else rebuild(detector.name, options)


def _with_present(options: Mapping[str, Any], present: Sequence[int]) -> dict[str, Any]:
    """Options, or those of a combination's members, with the classes where they say none."""
    changed = dict(options)
    if "present_classes" in options and options["present_classes"] is None:
        changed["present_classes"] = [int(label) for label in present]
    if "members" in options:
        changed["members"] = [_with_present(member, present) for member in options["members"]]
    return changed


def choose(
    fitter: Fitter,
    name: str,
    tried: Sequence[Detector],
    inside: Outputs,
    outside: Outputs,
    step: Callable[[int], object] = id,
) -> Chosen:
    """The detector with the best AUROC on validation sets; of equal ones the first.

    Args:
      fitter: prepared for all of them.
      name: decides the detectors' own randomness, as in `Fitter.fit`.
      tried: the candidates.
      inside: outputs of ID validation images, with all that the candidates need.
      outside: of OOD validation images.
      step: called with 1 when a candidate has been tried.

    Raises:
      ValueError: not one of them could be fitted; what the last one raised.
    """
    best: tuple[float, Detector] | None = None
    failed: list[str] = []
    for number, detector in enumerate(tried):
        step(1)
        try:
            fitted = fitter.fit(name, detector)
            scores = (fitting.score(detector, fitted.state, part) for part in (inside, outside))
            auroc = float(ood_metrics(*scores)["auroc"])
        except ValueError as error:
            # A value may be out of reach of this training set: more neighbours than rows.
            failed.append(str(error))
            if best is None and number == len(tried) - 1:
                raise
            continue
        if best is None or auroc > best[0]:
            best = auroc, detector
    assert best is not None
    values = {option: best[1].options[option] for option in best[1].grid}
    return Chosen(best[1], values, best[0], len(tried) - len(failed), tuple(failed))
