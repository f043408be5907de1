"""ReAct, DICE, ASH, SCALE, VRA and GradNorm against float64 NumPy written from the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grood_jax as gj
from grood_jax import detectors
from grood_jax.detectors import Training
from grood_jax.detectors._activation import percentile_of
from grood_jax.detectors.ash import ash
from grood_jax.detectors.dice import dice
from grood_jax.detectors.gradnorm import gradnorm
from grood_jax.detectors.react import react
from grood_jax.detectors.scale import scale
from grood_jax.detectors.vra import vra

N, B, D, C = 60, 12, 20, 5

# Made once: a score function that is new compiles anew.
DETECTORS = {
    "react": react(),
    "dice": dice(),
    "ash-s": ash(variant="s"),
    "ash-p": ash(variant="p"),
    "ash-b": ash(variant="b"),
    "scale": scale(),
    "vra": vra(),
    "gradnorm": gradnorm(),
}
HEADED = [name for name in DETECTORS if name != "gradnorm"]
GRADNORM = DETECTORS["gradnorm"]


def make_head(seed=1):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(D, C)).astype(np.float32)
    return weights, rng.normal(size=C).astype(np.float32)


def make_features(rows, seed=0):
    """What a ReLU leaves: no negatives, some zeros."""
    draws = np.random.default_rng(seed).normal(0.6, 1.0, (rows, D))
    return np.maximum(draws, 0).astype(np.float32)


WEIGHTS, BIAS = make_head()
TRAIN, TEST = make_features(N), make_features(B, seed=2)


def outputs(features):
    features = np.asarray(features, np.float32)
    return gj.Outputs(jnp.asarray(features), jnp.asarray(features @ WEIGHTS + BIAS))


def fitted(detector, features=TRAIN):
    labels = jnp.zeros(len(features), jnp.int32)
    head = (jnp.asarray(WEIGHTS), jnp.asarray(BIAS)) if detector.head else None
    return detector.fit(Training(outputs(features), labels, head=head), jax.random.key(0))


def scores(detector, features=TEST, train=TRAIN):
    found = jax.jit(detector.score)(fitted(detector, train), outputs(features))
    assert found.shape == (len(features),) and found.dtype == jnp.float32
    return np.asarray(found)


def wide(*arrays):
    return [np.asarray(array, np.float64) for array in arrays]


def energy_of(features, weights=WEIGHTS):
    """−log Σ exp of the head's logits, in float64."""
    features, weights, bias = wide(features, weights, BIAS)
    logits = np.einsum("bd,dc->bc", features, weights) + bias
    top = logits.max(axis=1)
    return -(top + np.log(np.exp(logits - top[:, None]).sum(axis=1)))


def agree(found, expected):
    # Sums of 20 float32 products of order one: an absolute error of some 1e-6 on scores near 0.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def pruned(row, percentile):
    """The row with all but its largest zeroed, one feature at a time; and which are left."""
    row = np.asarray(row, np.float64)
    dropped = int(np.round(len(row) * percentile / 100))
    # From the least up; of equals the later one goes first.
    order = sorted(range(len(row)), key=lambda place: (row[place], -place))
    left = sorted(order[dropped:])
    shaped = np.zeros(len(row))
    shaped[left] = row[left]
    return shaped, left


@pytest.mark.parametrize("percentile", [90.0, 35.0])
def test_react_is_the_energy_of_features_clipped_at_the_percentile(percentile):
    ceiling = np.percentile(TRAIN.astype(np.float64), percentile)
    assert (ceiling < TEST).any()
    clipped = np.where(ceiling < TEST, ceiling, TEST)
    agree(scores(react(percentile=percentile)), energy_of(clipped))


@pytest.mark.parametrize(("low", "high"), [(60.0, 95.0), (10.0, 90.0)])
def test_vra_zeroes_low_features_and_clips_high_ones(low, high):
    alpha, beta = np.percentile(TRAIN.astype(np.float64), [low, high])
    shaped = TEST.astype(np.float64).copy()
    shaped[alpha > TEST] = 0.0
    shaped[beta < TEST] = beta
    agree(scores(vra(low=low, high=high)), energy_of(shaped))


def test_vra_without_a_floor_is_react():
    np.testing.assert_array_equal(scores(vra(low=0.0, high=90.0)), scores(DETECTORS["react"]))


def test_vra_raises_no_feature_to_the_floor():
    detector = DETECTORS["vra"]
    under = np.full((B, D), float(fitted(detector).floor) * 0.5, np.float32)
    assert under.max() > 0
    agree(scores(detector, under), energy_of(np.zeros((B, D))))


@pytest.mark.parametrize("p", [90.0, 50.0])
def test_dice_keeps_the_top_contributions_of_the_whole_matrix(p):
    train, weights = wide(TRAIN, WEIGHTS)
    contributions = train.mean(axis=0)[:, None] * weights
    count = round(D * C * (100 - p) / 100)
    order = np.argsort(contributions, axis=None)[::-1][:count]
    kept = np.zeros(D * C)
    kept[order] = weights.reshape(-1)[order]
    detector = dice(p=p)
    assert np.count_nonzero(fitted(detector).weights) == count
    agree(scores(detector), energy_of(TEST, kept.reshape(D, C)))


def test_dice_takes_no_share_of_each_class():
    kept = np.asarray(fitted(DETECTORS["dice"]).weights) != 0
    assert len(set(kept.sum(axis=0))) > 1


@pytest.mark.parametrize("percentile", [90.0, 62.0])
@pytest.mark.parametrize("variant", ["s", "p", "b"])
def test_ash_shapes_each_sample_by_its_largest_features(variant, percentile):
    expected = []
    for row in TEST.astype(np.float64):
        shaped, left = pruned(row, percentile)
        if variant == "s":
            shaped = shaped * np.exp(row.sum() / shaped.sum())
        if variant == "b":
            shaped[left] = row.sum() / len(left)
        expected.append(shaped)
    expected = energy_of(np.array(expected))
    # The exponential multiplies the logits, and with them their rounding.
    np.testing.assert_allclose(
        scores(ash(variant=variant, percentile=percentile)), expected, rtol=2e-5, atol=1e-5
    )


@pytest.mark.parametrize("percentile", [85.0, 62.0])
def test_scale_multiplies_every_feature_by_the_exponential_of_the_ratio(percentile):
    expected = [
        row * np.exp(row.sum() / pruned(row, percentile)[0].sum()) for row in TEST.astype(float)
    ]
    found = scores(scale(percentile=percentile))
    np.testing.assert_allclose(found, energy_of(np.array(expected)), rtol=2e-5, atol=1e-5)


def test_pruning_nothing_is_the_energy_score():
    agree(scores(ash(variant="p", percentile=0.0)), energy_of(TEST))
    agree(scores(react(percentile=100.0), TRAIN[:B]), energy_of(TRAIN[:B]))
    for detector in (ash(variant="s", percentile=0.0), scale(percentile=0.0)):
        # s1 = s2: every sample is scaled by e.
        agree(scores(detector), energy_of(np.e * TEST.astype(np.float64)))


def test_of_equal_features_the_first_are_kept():
    equal = np.ones((B, D), np.float32)
    first = np.zeros((B, D))
    first[:, :2] = 1.0
    agree(scores(DETECTORS["ash-p"], equal), energy_of(first))
    agree(scores(DETECTORS["ash-b"], equal), energy_of(first * D / 2))


def test_at_least_one_feature_is_kept():
    largest = np.where(TEST.max(axis=1, keepdims=True) == TEST, TEST, 0.0)
    agree(scores(ash(variant="p", percentile=100.0)), energy_of(largest))


def test_gradnorm_is_the_norm_of_the_gradient_with_respect_to_the_head():
    def divergence(weights, row):
        logits = row @ weights + BIAS
        return jnp.sum(1 / C * (jnp.log(1 / C) - jax.nn.log_softmax(logits)))

    gradients = jax.vmap(jax.grad(divergence), in_axes=(None, 0))(WEIGHTS, TEST)
    assert gradients.shape == (B, D, C)
    np.testing.assert_allclose(
        scores(GRADNORM), -np.abs(np.asarray(gradients, np.float64)).sum(axis=(1, 2)), rtol=1e-5
    )


@pytest.mark.parametrize("size", [1.0, 30.0])
def test_gradnorm_equals_float64(size):
    features = size * TEST
    logits = np.asarray(outputs(features).logits, np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    expected = -wide(features)[0].sum(axis=1) * np.abs(shares - 1 / C).sum(axis=1)
    np.testing.assert_allclose(scores(GRADNORM, features), expected, rtol=1e-5)


def test_gradnorm_of_equal_logits_is_zero_and_the_highest_score():
    found = gj.Outputs(jnp.asarray(TEST), jnp.ones((B, C)))
    flat = np.asarray(GRADNORM.score((), found))
    np.testing.assert_allclose(flat, 0.0, atol=1e-5)
    assert (scores(GRADNORM) < flat.min()).all()


@pytest.mark.parametrize("name", HEADED)
def test_energies_shift_with_the_bias(name):
    detector = DETECTORS[name]
    seen, labels = outputs(TRAIN), jnp.zeros(N, jnp.int32)
    seen = gj.Outputs(seen.features, seen.logits + 3)
    moved = (jnp.asarray(WEIGHTS), jnp.asarray(BIAS + 3))
    state = detector.fit(Training(seen, labels, head=moved), jax.random.key(0))
    agree(jax.jit(detector.score)(state, outputs(TEST)), scores(detector) - 3.0)


def test_gradnorm_does_not_shift_with_the_logits():
    found = outputs(TEST)
    moved = gj.Outputs(found.features, found.logits + 7.0)
    np.testing.assert_allclose(GRADNORM.score((), moved), scores(GRADNORM), rtol=1e-5)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_score_is_of_its_sample_alone_compiled_or_not(name):
    detector = DETECTORS[name]
    state, found = fitted(detector), scores(detector)
    order = np.random.default_rng(3).permutation(B)
    np.testing.assert_allclose(scores(detector, TEST[order]), found[order], rtol=1e-5)
    alone = detector.score(state, outputs(TEST[4:5]))
    np.testing.assert_allclose(alone, found[4:5], rtol=1e-5)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("name", DETECTORS)
def test_zero_and_constant_features_have_finite_scores(name):
    detector = DETECTORS[name]
    for train in (np.zeros((N, D)), np.ones((N, D)), TRAIN):
        features = np.concatenate([np.zeros((1, D)), np.full((B - 1, D), 2.0)])
        assert np.isfinite(scores(detector, features, train)).all()
    zero = scores(detector, np.zeros((B, D)))
    expected = np.zeros(B) if name == "gradnorm" else energy_of(np.zeros((B, D)))
    agree(zero, expected)


@pytest.mark.parametrize("name", DETECTORS)
def test_features_of_both_signs_have_finite_scores(name):
    draws = np.random.default_rng(5).normal(size=(B, D)).astype(np.float32)
    draws[0] = np.where(np.arange(D) < 2, 1e-30, -1.0)
    draws[1] = np.where(np.arange(D) < 3, 1e-30, 1e-30 - 1e-31)
    assert np.isfinite(scores(DETECTORS[name], draws, draws)).all()


@pytest.mark.parametrize("detector", [ash(percentile=100.0), scale(percentile=100.0)])
def test_a_ratio_beyond_float32_is_capped(detector):
    few = np.full((B, D), -1.0, np.float32)
    few[:, 0] = -0.1
    assert np.exp(np.float64(few[0].sum() / few[0, 0])) > np.finfo(np.float32).max
    assert np.isfinite(scores(detector, few)).all()


@pytest.mark.parametrize("name", HEADED)
def test_a_missing_head_is_refused(name):
    detector = DETECTORS[name]
    assert detector.head
    with pytest.raises(ValueError, match=f"{detector.name} expects weights"):
        detector.fit(Training(outputs(TRAIN), jnp.zeros(N, jnp.int32)), jax.random.key(0))


TOLD_THE_HEAD = [
    name
    for name in detectors.names()
    if detectors.create(name).head and not detectors.create(name).fit_needs
]


def wrong_heads():
    other = np.random.default_rng(9).normal(size=(D, C)).astype(np.float32)
    return {
        "auxiliary": (other, BIAS),
        "scaled": (WEIGHTS / 20, BIAS / 20),
        "a little scaled": (WEIGHTS * 1.1, BIAS),
        "of other features": (WEIGHTS[::-1], BIAS),
        "without its bias": (WEIGHTS, 0 * BIAS),
    }


@pytest.mark.parametrize("kind", wrong_heads())
@pytest.mark.parametrize("name", TOLD_THE_HEAD)
def test_a_head_that_does_not_give_the_logits_is_refused(name, kind):
    head = tuple(map(jnp.asarray, wrong_heads()[kind]))
    message = (
        rf"training.head is not what gives the logits: .* by up to \S+ \(row .*; {name} expects"
    )
    with pytest.raises(ValueError, match=message):
        training = Training(outputs(TRAIN), jnp.zeros(N, jnp.int32), head=head)
        detectors.create(name).fit(training, jax.random.key(0))


def test_a_transposed_head_is_refused():
    weights = WEIGHTS[:C]
    features = TRAIN[:, :C]
    seen = gj.Outputs(jnp.asarray(features), jnp.asarray(features @ weights + BIAS))
    labels = jnp.zeros(N, jnp.int32)
    react().fit(
        Training(seen, labels, head=(jnp.asarray(weights), jnp.asarray(BIAS))), jax.random.key(0)
    )
    with pytest.raises(ValueError, match="Usually it is an auxiliary head, the weights are transp"):
        turned = (jnp.asarray(weights.T), jnp.asarray(BIAS))
        react().fit(Training(seen, labels, head=turned), jax.random.key(0))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_head_whose_logits_were_computed_in_half_precision_is_taken(dtype):
    rng = np.random.default_rng(4)
    weights, bias = rng.normal(size=(512, 100)) / 20, rng.normal(size=100)
    features = np.maximum(rng.normal(size=(300, 512)), 0)
    w, b, h = (jnp.asarray(each, jnp.float32) for each in (weights, bias, features))
    logits = h.astype(dtype) @ w.astype(dtype) + b.astype(dtype)[None, :]
    labels = jnp.zeros(300, jnp.int32)
    for given in (logits, logits.astype(jnp.float32)):
        react().fit(Training(gj.Outputs(h, given), labels, head=(w, b)), jax.random.key(0))


def test_gradnorm_needs_no_head_and_no_fitting():
    assert not GRADNORM.head
    assert jax.tree.leaves(fitted(GRADNORM)) == []


def test_defaults_are_as_documented():
    found = [dict(factory().options) for factory in (react, dice, ash, scale, vra, gradnorm)]
    assert found == [
        {"percentile": 90},
        {"p": 90},
        {"variant": "b", "percentile": 90},
        {"percentile": 85},
        {"low": 60, "high": 95},
        {},
    ]


@pytest.mark.parametrize(
    ("factory", "option"),
    [
        (react, "percentile"),
        (dice, "p"),
        (ash, "percentile"),
        (scale, "percentile"),
        (vra, "low"),
        (vra, "high"),
    ],
)
def test_percentiles_outside_their_range_are_refused(factory, option, unchecked):
    for value in (-1.0, 100.5, float("nan")):
        with pytest.raises(ValueError, match=rf"^{option} is .*; expected a number in \[0, 100\]"):
            factory(**{option: value})
    for value in ("90", True, None):
        with pytest.raises(TypeError, match=f"^{option} is {value!r}; expected a number between"):
            factory(**{option: value})


def test_whole_numbers_are_percentiles():
    assert react(percentile=80).options == react(percentile=80.0).options


def test_vra_refuses_a_floor_above_the_ceiling():
    with pytest.raises(ValueError, match=r"low is 70.0; expected at most high, 60.0"):
        vra(low=70.0, high=60.0)


def test_ash_refuses_an_unknown_variant(unchecked):
    with pytest.raises(ValueError, match="variant is 'x'; expected one of s, p, b"):
        ash(variant="x")


@pytest.mark.parametrize("percentile", [0.0, 0.1, 12.5, 50.0, 90.0, 99.99, 100.0])
@pytest.mark.parametrize("kind", ["normal", "ties", "decades", "zeros"])
def test_percentiles_equal_numpys(kind, percentile):
    rng = np.random.default_rng(7)
    draws = rng.normal(size=(N, D))
    values = {
        "normal": draws,
        "ties": np.round(2 * draws) / 2,
        "decades": np.sign(draws) * 10.0 ** (10 * draws).clip(-30, 30),
        "zeros": np.copysign(0.0, draws),
    }[kind].astype(np.float32)
    expected = np.percentile(values.astype(np.float64), percentile)
    np.testing.assert_allclose(percentile_of(jnp.asarray(values), percentile), expected, rtol=1e-12)


def test_a_percentile_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"have shape \(0, 20\); expected at least one row"):
        percentile_of(jnp.zeros((0, D)), 90.0)


@pytest.mark.parametrize("name", ["react", "ash-b", "scale", "vra"])
def test_shaping_features_that_are_negative_is_warned_of(name):
    features = TRAIN - np.median(TRAIN) - 0.1
    with pytest.warns(UserWarning, match="shapes activations that are not negative, and [4-9]"):
        fitted(DETECTORS[name], features)
