"""Options of detectors, chosen by their AUROC on validation sets, as OpenOOD does."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
      The detectors; just the one given where nothing is left to search. Where the grid is searched
      in stages, those of each stage about the one given.
    """
    made = create(name, **given)
    values = {option: own for option, own in made.grid.items() if option not in given}
    found: list[Detector] = []
    for stage in made.stages or (tuple(values),):
        found += _unlike(_around(made, stage, values), found)
    return tuple(found)


def _around(
    center: Detector, stage: Sequence[str], values: Mapping[str, Sequence[Any]]
) -> Iterator[Detector]:
    """A detector with each combination of values for the options of a stage."""
    grid = {option: values[option] for option in stage if option in values}
    for point in itertools.product(*grid.values()):
        yield rebuild(center.name, {**center.options, **dict(zip(grid, point, strict=True))})


def _unlike(detectors: Iterable[Detector], known: Sequence[Detector]) -> list[Detector]:
    """Those whose options are none of the known ones'."""
    options = [detector.options for detector in known]
    return [detector for detector in detectors if detector.options not in options]


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

    Where detectors have stages, each goes on from the best one so far.

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
    done: list[Detector] = []
    failed: list[ValueError] = []
    for stage in tried[0].stages or (None,):
        found = tried if stage is None else _of_stage(best[1] if best else tried[0], stage, tried)
        for run in _runs(_unlike(found, done)):
            aurocs = _aurocs(fitter, name, run, inside, outside)
            for detector, auroc in zip(run, aurocs, strict=True):
                step(1)
                done.append(detector)
                if isinstance(auroc, ValueError):
                    failed.append(auroc)
                elif best is None or auroc > best[0]:
                    best = auroc, detector
    if best is None:
        raise failed[-1]
    values = {option: best[1].options[option] for option in best[1].grid}
    reasons = tuple(map(str, failed))
    return Chosen(best[1], values, best[0], len(done) - len(failed), reasons)


def _of_stage(
    center: Detector, stage: Sequence[str], tried: Sequence[Detector]
) -> Iterator[Detector]:
    """A detector with each combination of the values that candidates have for a stage's options."""
    values: dict[str, list[Any]] = {option: [] for option in stage if option in center.grid}
    for option, own in values.items():
        for detector in tried:
            own += [detector.options[option]] * (detector.options[option] not in own)
    return _around(center, stage, values)


def _runs(detectors: Sequence[Detector]) -> Iterator[list[Detector]]:
    """Neighbours that differ in nothing but an option whose values are scored together."""

    def shared(detector: Detector) -> dict[str, Any]:
        return {o: own for o, own in detector.options.items() if o not in detector.each}

    for _, run in itertools.groupby(detectors, shared):
        yield list(run)


def _aurocs(
    fitter: Fitter, name: str, run: Sequence[Detector], inside: Outputs, outside: Outputs
) -> Sequence[float | ValueError]:
    """The AUROC of each, or what it raised."""
    if len(run) > 1 and len(run[0].each) == 1:
        ((option, scores),) = run[0].each.items()
        together = replace(run[0], score=scores(tuple(own.options[option] for own in run)))
        try:
            return _columns(fitter, name, together, inside, outside)
        except ValueError:
            # A value may be out of reach of this training set: more neighbours than rows.
            pass
    found: list[float | ValueError] = []
    for detector in run:
        try:
            found += _columns(fitter, name, detector, inside, outside)
        except ValueError as error:
            found.append(error)
    return found


def _columns(
    fitter: Fitter, name: str, detector: Detector, inside: Outputs, outside: Outputs
) -> list[float]:
    """The AUROC of each column of a detector's scores, of which there may be one."""
    state = fitter.fit(name, detector).state
    own, other = (
        fitting.score(detector, state, part).reshape(len(part.logits), -1)
        for part in (inside, outside)
    )
    return [float(ood_metrics(*pair)["auroc"]) for pair in zip(own.T, other.T, strict=True)]
