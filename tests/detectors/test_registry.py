import re
from importlib.metadata import EntryPoint
from inspect import signature

import jax
import numpy as np
import pytest

import grood_jax as gj
from grood_jax import detectors
from grood_jax.evaluation import fitting


def test_names_hold_grood_and_the_baselines():
    assert {"grood", "msp"} <= set(gj.detectors.names())


@pytest.mark.parametrize("name", detectors.names())
def test_every_detector_is_made_by_name_with_the_options_it_has(name):
    made = detectors.create(name)
    assert isinstance(made, detectors.Detector) and made.name == name
    assert dict(made.options) == detectors.options(name)


def test_options_are_the_defaults_of_the_factory():
    parameters = signature(detectors.grood).parameters
    found = detectors.options("grood")
    assert found == {name: parameter.default for name, parameter in parameters.items()}
    assert found["k"] == 1 and found["ood_prototype"] == "mixup"
    assert detectors.options("msp") == {}


def test_create_passes_options_on():
    made = detectors.create("grood", k=4, sampling_ratio=0.5)
    assert made.options == detectors.options("grood") | {"k": 4, "sampling_ratio": 0.5}


def test_the_same_detector_is_given_again_and_no_other():
    made = detectors.create("knn", k=5)
    assert detectors.create("knn", k=5) is made
    assert detectors.create("knn", k=6) is not made
    assert detectors.create("energy", temperature=5.0).options == {"temperature": 5.0}
    assert detectors.create("gram", powers=[1, 2]) is detectors.create("gram", powers=[1, 2])
    # True == 1 and 5.0 == 5, but they are no such numbers.
    detectors.create("knn", k=1)
    for wrong in (True, 5.0):
        with pytest.raises(TypeError):
            detectors.create("knn", k=wrong)


def test_detectors_are_kept_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(detectors, "KEPT", 2)
    monkeypatch.setattr(detectors, "_made", {})
    for k in range(1, 5):
        assert detectors.create("knn", k=k).options["k"] == k
        assert len(detectors._made) <= 2


def test_a_detector_scores_with_what_was_compiled_before(caplog):
    rows = gj.Outputs(np.ones((3, 2), np.float32), np.eye(3, 2, dtype=np.float32))
    compiled = []
    for _ in range(2):
        caplog.clear()
        with jax.log_compiles():
            fitting.score(detectors.create("energy", temperature=3.25), (), rows)
        compiled.append("Compiling" in caplog.text)
    assert compiled == [True, False]


@pytest.mark.parametrize("door", [detectors.create, detectors.options])
def test_an_unknown_detector_is_refused_with_the_nearest(door):
    message = "detector is 'groood'; expected one of grood, "
    with pytest.raises(ValueError, match=re.escape(message) + ".*; did you mean 'grood'?"):
        door("groood")


def test_an_unknown_option_is_refused_with_the_nearest():
    message = "grood has no option 'sampling_rate'; expected ood_prototype, score, space, "
    with pytest.raises(ValueError, match=message + ".*; did you mean 'sampling_ratio'?"):
        detectors.create("grood", sampling_rate=0.5)


def test_an_option_of_a_detector_without_any_is_refused():
    with pytest.raises(ValueError, match="msp has no option 'k'; expected no options$"):
        detectors.create("msp", k=3)


def test_an_option_out_of_range_is_refused_by_its_factory():
    with pytest.raises(ValueError, match="k is 0; expected at least 1"):
        detectors.create("grood", k=0)


def mine(*, weight=1.0):
    return detectors.msp()


def test_a_detector_of_the_users_own_is_made_by_name(monkeypatch):
    monkeypatch.setattr(detectors, "_factories", dict(detectors._factories))
    detectors.register(mine)
    assert "mine" in detectors.names() and detectors.options("mine") == {"weight": 1.0}
    detectors.register(mine)
    with pytest.raises(ValueError, match="detector 'msp' is registered already"):
        detectors.register(mine, "msp")
    with pytest.raises(ValueError, match="lost's option 'weight' has no default"):
        detectors.register(lambda weight: mine(weight=weight), "lost")


def test_an_entry_point_offers_a_detector(monkeypatch):
    monkeypatch.setattr(detectors, "_factories", dict(detectors._factories))
    point = EntryPoint("theirs", "grood_jax.detectors.msp:msp", detectors.ENTRY_POINTS)
    monkeypatch.setattr(detectors.metadata, "entry_points", lambda *, group: [point])
    detectors._load_entry_points.cache_clear()
    assert "theirs" in detectors.names() and detectors.create("theirs").name == "msp"
