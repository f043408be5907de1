"""Detectors that need nothing but the logits; OpenMax has its own file."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

import grood_jax as gj
from grood_jax.detectors._probabilities import log_probabilities
from grood_jax.detectors.base import Training
from grood_jax.detectors.energy import energy
from grood_jax.detectors.entropy import entropy
from grood_jax.detectors.gen import gen
from grood_jax.detectors.kl_matching import kl_matching
from grood_jax.detectors.max_logit import max_logit
from grood_jax.detectors.msp import msp
from grood_jax.detectors.temperature_scaling import temperature_scaling

CLASSES, TRAINED, SCORED = 6, 240, 40
ALL = {
    "temperature_scaling": temperature_scaling,
    "max_logit": max_logit,
    "energy": energy,
    "entropy": entropy,
    "gen": gen,
    "kl_matching": kl_matching,
}


def outputs(logits):
    logits = jnp.asarray(logits, jnp.float32)
    return gj.Outputs(jnp.zeros((len(logits), 2)), logits)


def noisy_logits(rng, labels, scale=1.0, signal=2.0):
    logits = rng.normal(size=(len(labels), CLASSES)) + signal * np.eye(CLASSES)[labels]
    return (scale * logits).astype(np.float32)


@pytest.fixture(scope="module")
def training():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, TRAINED)
    return Training(outputs(noisy_logits(rng, labels)), jnp.asarray(labels, jnp.int32))


@pytest.fixture(scope="module")
def fresh():
    rng = np.random.default_rng(1)
    return noisy_logits(rng, rng.integers(0, CLASSES, SCORED))


def fitted(detector, training):
    return detector.fit(training, jax.random.key(0))


def scores(detector, training, logits):
    """In a batch of SCORED rows: another shape would be another second of compilation."""
    padded = np.pad(np.asarray(logits), ((0, SCORED - len(logits)), (0, 0)), mode="edge")
    return np.asarray(detector.score(fitted(detector, training), outputs(padded)))[: len(logits)]


def log_softmax(logits):
    logits = np.asarray(logits, np.float32).astype(np.float64)
    return logits - logsumexp(logits, axis=1, keepdims=True)


def most_likely_temperature(logits, labels):
    """By Brent's method on the likelihood itself, in float64."""
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)

    def loss(log_t):
        scaled = logits / np.exp(log_t)
        return (logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels]).mean()

    bounds = np.log([0.1, 10.0])
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-9})
    return np.exp(found.x)


def reference_temperature_scaling(training, logits):
    t = most_likely_temperature(training.outputs.logits, training.labels)
    return 1 - np.exp(log_softmax(np.asarray(logits, np.float64) / t)).max(axis=1)


def reference_gen(logits, gamma=0.1, top=100):
    log_p = np.sort(log_softmax(logits), axis=1)[:, ::-1]
    # 1 − p as the sum of the other classes' probabilities, none of which underflows in float64.
    log_rest = np.stack(
        [logsumexp(np.delete(log_p, c, axis=1), axis=1) for c in range(log_p.shape[1])], axis=1
    )
    return np.exp(gamma * (log_p + log_rest))[:, :top].sum(axis=1)


def reference_kl_matching(training, logits):
    trained, log_p = np.exp(log_softmax(training.outputs.logits)), log_softmax(logits)
    predicted = trained.argmax(axis=1)
    divergences = []
    for d in np.unique(predicted):
        log_q = np.log(trained[predicted == d].mean(axis=0))
        divergences.append((np.exp(log_p) * (log_p - log_q)).sum(axis=1))
    return np.min(divergences, axis=0)


REFERENCES = {
    "temperature_scaling": reference_temperature_scaling,
    "max_logit": lambda training, logits: -np.float64(logits).max(axis=1),
    "energy": lambda training, logits: -np.log(np.exp(np.float64(logits)).sum(axis=1)),
    "entropy": lambda training, logits: -(np.exp(log_softmax(logits)) * log_softmax(logits)).sum(1),
    "gen": lambda training, logits: reference_gen(logits),
    "kl_matching": reference_kl_matching,
}


@pytest.mark.parametrize("name", ALL)
def test_scores_equal_float64(name, training, fresh):
    found = scores(ALL[name](), training, fresh)
    assert found.shape == (SCORED,) and found.dtype == np.float32
    # A few roundings of float32, and of T an error of about 1e-6; the divergences are differences
    # of numbers near 1.
    expected = REFERENCES[name](training, fresh)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_scores_depend_neither_on_the_batch_nor_on_compilation(name, training, fresh):
    detector = ALL[name]()
    state = fitted(detector, training)
    found = np.asarray(detector.score(state, outputs(fresh)))
    compiled = jax.jit(detector.score)(state, outputs(fresh))
    np.testing.assert_allclose(compiled, found, rtol=1e-5, atol=1e-6)
    reversed_part = jax.jit(detector.score)(state, outputs(fresh[9::-1]))
    np.testing.assert_allclose(reversed_part, found[9::-1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_logits_on_the_host_will_do(name, training, fresh):
    detector = ALL[name]()
    host = gj.Outputs(np.zeros((SCORED, 2), np.float32), fresh)
    found = detector.score(fitted(detector, training), host)
    np.testing.assert_allclose(found, scores(detector, training, fresh), rtol=1e-6)


# Where templates are themselves uncertain, KL matching has it the other way round.
@pytest.mark.parametrize("name", [name for name in ALL if name != "kl_matching"])
def test_a_uniform_sample_scores_higher_than_a_confident_one(name, training):
    confident, uniform = scores(
        ALL[name](), training, [6.0 * np.eye(CLASSES)[2], np.zeros(CLASSES)]
    )
    assert uniform > confident


@pytest.mark.parametrize("name", ALL)
def test_degenerate_logits_give_finite_scores(name):
    labels = jnp.zeros(SCORED, jnp.int32)
    degenerate = np.zeros((SCORED, CLASSES), np.float32)
    degenerate[1] = 1e30 * np.eye(CLASSES)[0]
    degenerate[2] = -degenerate[1]
    for trained in (np.zeros_like(degenerate), degenerate):
        found = scores(ALL[name](), Training(outputs(trained), labels), degenerate)
        assert np.isfinite(found).all()


@pytest.mark.parametrize("name", ["temperature_scaling", "entropy", "gen", "kl_matching"])
def test_a_shift_of_the_logits_does_not_change_the_score(name, training, fresh):
    detector = ALL[name]()
    found = scores(detector, training, fresh)
    # Adding 4 and taking it away again rounds a logit by 2e-7.
    np.testing.assert_allclose(scores(detector, training, fresh + 4), found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["max_logit", "energy"])
def test_a_shift_of_the_logits_shifts_the_score(name, training, fresh):
    found = scores(ALL[name](), training, fresh)
    np.testing.assert_allclose(
        scores(ALL[name](), training, fresh + 4), found - 4, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("gap", [10.0, 20.0, 40.0, 80.0])
def test_confident_scores_keep_their_digits(gap, training):
    logits = np.zeros((2, CLASSES), np.float32)
    logits[0, 1] = logits[1, 3] = gap
    log_p = -np.log1p((CLASSES - 1) * np.exp(-gap))
    np.testing.assert_allclose(log_probabilities(logits).max(axis=1), [log_p] * 2, rtol=2e-6)
    shannon = -log_p * np.exp(log_p) + (CLASSES - 1) * np.exp(log_p - gap) * (gap - log_p)
    np.testing.assert_allclose(scores(entropy(), training, logits), [shannon] * 2, rtol=2e-5)


# energy


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_energy_equals_float64_at_other_temperatures(temperature, training, fresh):
    found = scores(energy(temperature=temperature), training, fresh)
    expected = -temperature * np.log(np.exp(np.float64(fresh) / temperature).sum(axis=1))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_energy_of_cold_logits_is_their_maximum(training, fresh):
    cold = scores(energy(temperature=1e-3), training, fresh)
    np.testing.assert_allclose(cold, scores(max_logit(), training, fresh), atol=3e-3)


# entropy


def test_entropy_of_equal_logits_is_log_c(training):
    found = scores(entropy(), training, np.full((2, CLASSES), 7.0))
    np.testing.assert_allclose(found, [np.log(CLASSES)] * 2, rtol=1e-6)


# gen


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize(("gamma", "top"), [(0.1, 3), (0.5, 6), (0.01, 1), (2.0, 100)])
def test_gen_equals_float64(gamma, top, scale, training, fresh):
    found = scores(gen(gamma=gamma, top=top), training, scale * fresh)
    # Logits of 100 have errors of 1e-5, and their exponentials as relative ones.
    expected = reference_gen(scale * fresh, gamma, top)
    np.testing.assert_allclose(found, expected, rtol=3e-5 * max(1, gamma), atol=1e-37)


def test_gen_of_more_classes_than_there_are_is_of_all(training, fresh):
    everything = scores(gen(top=CLASSES), training, fresh)
    np.testing.assert_array_equal(scores(gen(top=CLASSES + 1), training, fresh), everything)
    assert (scores(gen(top=CLASSES - 1), training, fresh) < everything).all()


@pytest.mark.parametrize("detector", [gen, entropy, kl_matching])
def test_a_single_class_is_never_in_doubt(detector):
    lone = np.asarray([[3.0], [-2.0]], np.float32)
    found = scores(detector(), Training(outputs(lone), jnp.zeros(2, jnp.int32)), lone)
    np.testing.assert_array_equal(found, [0, 0])


# temperature scaling


@pytest.mark.parametrize(("scale", "signal"), [(1.0, 2.0), (4.0, 1.0), (1.0, 3.0)])
def test_the_temperature_is_the_most_likely(scale, signal):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, CLASSES, TRAINED)
    logits = noisy_logits(rng, labels, scale, signal)
    state = fitted(temperature_scaling(), Training(outputs(logits), jnp.asarray(labels, jnp.int32)))
    # The slope's rounding, 1e-7, over its steepness, about 0.1.
    expected = most_likely_temperature(logits, labels)
    assert 0.2 < expected < 9
    np.testing.assert_allclose(state.temperature, expected, rtol=1e-5)


def test_the_fitted_temperature_undoes_a_scale_of_the_logits(training, fresh):
    scaled = Training(outputs(3 * training.outputs.logits), training.labels)
    once = fitted(temperature_scaling(), training).temperature
    np.testing.assert_allclose(
        fitted(temperature_scaling(), scaled).temperature, 3 * once, rtol=1e-5
    )
    np.testing.assert_allclose(
        scores(temperature_scaling(), scaled, 3 * fresh),
        scores(temperature_scaling(), training, fresh),
        rtol=1e-5,
    )


@pytest.mark.parametrize("sign", [1.0, 0.0, -1.0])
def test_without_a_most_likely_temperature_it_stays_one(sign):
    """All right, all alike, all wrong: the likelihood only rises or only falls with T."""
    labels = np.arange(TRAINED) % CLASSES
    logits = sign * np.eye(CLASSES, dtype=np.float32)[labels]
    state = fitted(temperature_scaling(), Training(outputs(logits), jnp.asarray(labels, jnp.int32)))
    assert state.temperature == 1


@pytest.mark.filterwarnings("error")
def test_the_temperature_is_that_of_id_validation_outputs():
    """The network is sure of what it was trained on, and of other images as sure but not right."""
    rng = np.random.default_rng(5)
    labels, others = rng.integers(0, CLASSES, (2, TRAINED))
    sure = noisy_logits(rng, labels, signal=4.0)
    seen = Training(outputs(sure), jnp.asarray(labels, jnp.int32))
    fresh_logits = noisy_logits(rng, others, scale=2.0)
    held_in = outputs(fresh_logits), jnp.asarray(others, jnp.int32)
    with pytest.warns(UserWarning, match="from the training outputs, there being no ID valid"):
        alone = fitted(temperature_scaling(), seen).temperature
    found = fitted(temperature_scaling(), replace(seen, id_validation=held_in)).temperature
    expected = most_likely_temperature(fresh_logits, others)
    assert alone < 1 < expected
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # A given one asks for nothing.
    assert temperature_scaling().id_validation
    assert not temperature_scaling(temperature=2.0).id_validation
    fitted(temperature_scaling(temperature=2.0), seen)


@pytest.mark.parametrize(
    ("logits", "labels", "said"),
    [
        (np.zeros((0, CLASSES)), [], r" has logits \(0, 6\); expected at least one row, of 6"),
        (np.zeros((2, CLASSES + 1)), [0, 1], r" has logits \(2, 7\)"),
        (np.full((2, CLASSES), np.nan), [0, 1], ".logits holds 12 values that are NaN"),
        (np.zeros((2, CLASSES)), [0, CLASSES], ".labels holds 6; expected classes from 0 to 5"),
        (np.zeros((2, CLASSES)), [0], r".labels has shape \(1,\); expected \(2,\)"),
    ],
)
def test_id_validation_outputs_are_looked_through(training, logits, labels, said):
    held_in = outputs(logits), jnp.asarray(labels, jnp.int32)
    with pytest.raises(ValueError, match=f"training.id_validation{said}"):
        fitted(temperature_scaling(), replace(training, id_validation=held_in))


def test_a_given_temperature_is_kept_and_one_is_msp(training, fresh):
    np.testing.assert_array_equal(
        scores(temperature_scaling(temperature=1.0), training, fresh),
        scores(msp(), training, fresh),
    )
    hot = scores(temperature_scaling(temperature=5.0), training, fresh)
    expected = 1 - np.exp(log_softmax(fresh / np.float32(5))).max(axis=1)
    np.testing.assert_allclose(hot, expected, rtol=1e-5)


# KL matching


def test_templates_are_of_predicted_classes_and_never_predicted_ones_take_no_part(fresh):
    rng = np.random.default_rng(4)
    labels = rng.integers(0, CLASSES, TRAINED)
    logits = noisy_logits(rng, labels)
    logits[:, 4] = -1.0 - np.abs(logits[:, 4])  # no longer predicted, though it is a label
    logits[:, 2] -= 20.0
    assert {2, 4} & set(logits.argmax(axis=1)) == set() and {2, 4} <= set(labels)
    training = Training(outputs(logits), jnp.asarray(labels, jnp.int32))
    assert fitted(kl_matching(), training).log_templates.shape == (CLASSES - 2, CLASSES)
    found = scores(kl_matching(), training, fresh)
    np.testing.assert_allclose(found, reference_kl_matching(training, fresh), rtol=3e-5)


def test_a_sample_like_its_template_scores_zero(training):
    log_templates = np.asarray(fitted(kl_matching(), training).log_templates)
    found = scores(kl_matching(), training, log_templates)
    assert (found >= 0).all()
    np.testing.assert_allclose(found, np.zeros(CLASSES), atol=5e-7)


@pytest.mark.parametrize("gap", [12.0, 20.0])
def test_divergences_of_confident_samples_keep_their_digits(gap, fresh):
    labels = np.arange(TRAINED) % CLASSES
    logits = (gap * np.eye(CLASSES)[labels]).astype(np.float32)
    training = Training(outputs(logits), jnp.asarray(labels, jnp.int32))
    nearby = np.zeros((SCORED, CLASSES), np.float32)
    nearby[:, 0] = np.linspace(gap - 5, gap - 1, SCORED)
    expected = []
    for z in nearby[:, 0].astype(np.float64):
        # By Σ p log(p/q) − p + q, no term of which is negative.
        log_p, log_q = (-np.log1p((CLASSES - 1) * np.exp(-t)) for t in (z, gap))
        own = np.exp(log_p) * (log_p - log_q) - np.exp(log_p) + np.exp(log_q)
        p, q = np.exp(log_p - z), np.exp(log_q - gap)
        expected.append(own + (CLASSES - 1) * (p * np.log(p / q) - p + q))
    # The score is a difference of numbers up to some 50 times as large.
    np.testing.assert_allclose(scores(kl_matching(), training, nearby), expected, rtol=1e-4)


# options


@pytest.mark.parametrize("factory", [energy, temperature_scaling])
def test_temperatures_are_checked(factory, unchecked):
    for value in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature is .*; expected a positive number"):
            factory(temperature=value)
    for value in ("1", True):
        with pytest.raises(TypeError, match="temperature is .*; expected a positive number"):
            factory(temperature=value)


def test_whole_numbers_will_do_for_real_options(unchecked):
    assert energy(temperature=2).options == {"temperature": 2.0}
    assert temperature_scaling(temperature=2).options == {"temperature": 2.0}
    assert gen(gamma=1).options == {"gamma": 1.0, "top": 100}


@pytest.mark.parametrize(
    ("given", "error", "complaint"),
    [
        ({"gamma": 0.0}, ValueError, "gamma is 0.0"),
        ({"gamma": float("inf")}, ValueError, "gamma is inf"),
        ({"gamma": "0.1"}, TypeError, "gamma is '0.1'"),
        ({"top": 0}, ValueError, "top is 0"),
        ({"top": 2.5}, TypeError, "top is 2.5"),
    ],
)
def test_the_options_of_gen_are_checked(given, error, complaint, unchecked):
    with pytest.raises(error, match=complaint):
        gen(**given)


def test_options_are_recorded():
    found = {name: dict(factory().options) for name, factory in ALL.items()}
    assert found == {
        "temperature_scaling": {"temperature": None},
        "max_logit": {},
        "energy": {"temperature": 1.0},
        "entropy": {},
        "gen": {"gamma": 0.1, "top": 100},
        "kl_matching": {},
    }
    assert not any(factory().head for factory in ALL.values())
