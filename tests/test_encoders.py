"""Encoders without a head: what works at once, heads that are fitted, and text."""

import importlib.util
import inspect
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import grood_jax as gj
from grood_jax import detectors
from grood_jax.backbone import backbone as module
from grood_jax.backbone.backbone import Backbone
from grood_jax.data import Batch
from grood_jax.evaluation import fitting, heads
from grood_jax.support.errors import UserError

WIDTH, CLASSES, PER_CLASS = 6, 3, 24


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    """The module as users import it: without the type checks that the tests put before its own."""
    spec = importlib.util.spec_from_file_location("plain_encoders", inspect.getfile(module))
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def pool(arrays: Any, images: jax.Array) -> jax.Array:
    return jnp.tanh(images.reshape(len(images), -1) @ arrays)


def made(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 2, 2, 3), one bright corner for each class."""
    labels = np.repeat(np.arange(CLASSES), count).astype(np.int32)
    images = rng.normal(0, 0.3, (len(labels), 2, 2, 3)).astype(np.float32)
    images[np.arange(len(labels)), labels // 2, labels % 2] += 1
    return images, labels


RNG = np.random.default_rng(0)
MATRIX = jnp.asarray(RNG.normal(0, 0.4, (12, WIDTH)), jnp.float32)
IMAGES, LABELS = made(RNG, PER_CLASS)
TRAIN = [(IMAGES[::2], LABELS[::2]), (IMAGES[1::2], LABELS[1::2])]
HELD_OUT = [made(RNG, 20)]
FEATURES = np.asarray(pool(MATRIX, jnp.asarray(IMAGES)))
EMBEDDINGS = RNG.normal(size=(CLASSES, WIDTH)).astype(np.float32)


class Encoder(nnx.Module):
    """Two layers and a dictionary."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(12, 8, rngs=rngs)
        self.second = nnx.Linear(8, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        hidden = jax.nn.relu(self.first(x.reshape(len(x), -1)))
        return {"tokens": hidden, "pooled": self.second(hidden)}


def pooled(model: Any, images: jax.Array) -> jax.Array:
    return model(images)["pooled"]


class LinenEncoder(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return linen.Dense(WIDTH)(jnp.tanh(linen.Dense(8)(x.reshape(len(x), -1))))


def test_features_and_no_logits() -> None:
    backbone = Backbone.from_encoder(pool, MATRIX)
    outputs = jax.jit(lambda b, x: b(x))(backbone, IMAGES)
    np.testing.assert_allclose(outputs.features, FEATURES, rtol=1e-5, atol=1e-6)
    assert outputs.logits.shape == (len(IMAGES), 0)
    assert repr(backbone).endswith("cut 'features', no head)")
    wanting = Backbone.from_encoder(pool, MATRIX, head="linear")
    assert repr(wanting).endswith("a linear head to be fitted)")


@pytest.mark.parametrize(("example", "cut"), [(None, "features"), (IMAGES, "first")])
def test_nnx_encoders_may_be_cut_and_return_what_they_like(example, cut) -> None:
    model = Encoder()
    backbone = Backbone.from_encoder(model, call=pooled, example=example)
    assert backbone.cut == cut
    expected = model(jnp.asarray(IMAGES))["pooled"]
    np.testing.assert_allclose(backbone(IMAGES).features, expected, rtol=1e-5, atol=1e-6)


def test_linen_encoders() -> None:
    encoder = LinenEncoder()
    variables = encoder.init(jax.random.key(0), IMAGES[:1])
    backbone = Backbone.from_encoder(encoder, variables, cut="Dense_0", example=IMAGES)
    expected = encoder.apply(variables, IMAGES)
    np.testing.assert_allclose(backbone(IMAGES).features, expected, rtol=1e-5, atol=1e-6)


def tokens(model: Any, images: jax.Array) -> jax.Array:
    return model(images)["tokens"][:, None]


@pytest.mark.parametrize(("example", "cut"), [(None, None), (IMAGES, "first")])
def test_features_of_places(example, cut) -> None:
    model = Encoder()
    made = Backbone.from_encoder(model, call=pooled, local=tokens, example=example, cut=cut)
    expected = model(jnp.asarray(IMAGES))["tokens"][:, None]
    np.testing.assert_allclose(made.local_features(IMAGES), expected, rtol=1e-5, atol=1e-6)
    assert repr(made).endswith("with local)")
    # A head that is fitted leaves them as they are.
    with_head = gj.fit_head(made, IMAGES, LABELS, "prototypes")
    np.testing.assert_array_equal(with_head.local_features(IMAGES), made.local_features(IMAGES))
    linen_encoder = LinenEncoder()
    variables = linen_encoder.init(jax.random.key(0), IMAGES[:1])
    local = Backbone.from_encoder(
        linen_encoder, variables, local=lambda own, images: own(images)[:, None]
    )
    apart = linen_encoder.apply(variables, IMAGES)[:, None]
    np.testing.assert_allclose(local.local_features(IMAGES), apart, rtol=1e-5, atol=1e-6)


def test_features_of_places_that_are_none() -> None:
    with pytest.raises(ValueError, match="local is None; expected a function"):
        Backbone.from_encoder(pool, MATRIX).local_features(IMAGES)
    flat = Backbone.from_encoder(pool, MATRIX, local=pool)
    with pytest.raises(ValueError, match=r"local returned an array \(72, 6\); expected an array"):
        flat.local_features(IMAGES)


def test_a_linear_head_is_scikit_learns_logistic_regression() -> None:
    backbone = gj.fit_head(Backbone.from_encoder(pool, MATRIX, head="linear"), IMAGES, LABELS)
    scaled = StandardScaler().fit(FEATURES.astype(np.float64))
    reference = LogisticRegression(max_iter=1000).fit(scaled.transform(FEATURES), LABELS)
    expected = reference.decision_function(scaled.transform(FEATURES))
    np.testing.assert_allclose(backbone(IMAGES).logits, expected, rtol=1e-3, atol=1e-3)
    assert "head 'linear', with head" in repr(backbone)


def test_a_linear_head_of_two_classes() -> None:
    two = LABELS < 2
    backbone = Backbone.from_encoder(pool, MATRIX)
    fitted = gj.fit_head(backbone, IMAGES[two], LABELS[two], "linear", batch_size=7)
    scaled = StandardScaler().fit(FEATURES[two].astype(np.float64))
    reference = LogisticRegression(max_iter=1000).fit(scaled.transform(FEATURES[two]), LABELS[two])
    logits = np.asarray(fitted(IMAGES[two]).logits)
    expected = reference.decision_function(scaled.transform(FEATURES[two]))
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], expected, rtol=1e-3, atol=1e-3)


def test_prototypes_classify_by_the_nearest_mean() -> None:
    backbone = gj.fit_head(Backbone.from_encoder(pool, MATRIX), IMAGES, LABELS, "prototypes")
    wide = FEATURES.astype(np.float64)
    means = np.stack([wide[LABELS == c].mean(axis=0) for c in range(CLASSES)])
    distances = ((wide[:, None] - means[None]) ** 2).sum(axis=2)
    logits = np.asarray(backbone(IMAGES).logits, np.float64)
    np.testing.assert_array_equal(logits.argmax(axis=1), distances.argmin(axis=1))
    # Up to what all classes have in common, halves of squared distances.
    shown, expected = (part - part.mean(axis=1, keepdims=True) for part in (logits, -distances / 2))
    np.testing.assert_allclose(shown, expected, atol=1e-5)


def test_text_gives_cosines_over_the_temperature() -> None:
    backbone = Backbone.from_encoder(pool, MATRIX, text=(EMBEDDINGS, 0.05, -3.0))
    outputs = backbone(IMAGES)
    images, words = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (FEATURES, EMBEDDINGS)
    )
    np.testing.assert_allclose(outputs.features, images, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(outputs.logits, images @ words.T / 0.05 - 3, rtol=1e-4, atol=1e-4)
    assert backbone.head_name == "text" and backbone.wanted_head is None


def test_weights_may_be_given() -> None:
    weights, bias = np.asarray(RNG.normal(size=(WIDTH, 4)), np.float32), np.ones(4, np.float32)
    backbone = Backbone.from_encoder(pool, MATRIX, head=(weights, bias))
    np.testing.assert_allclose(
        backbone(IMAGES).logits, FEATURES @ weights + 1, rtol=1e-4, atol=1e-5
    )


WITHOUT = [name for name in detectors.names() if not detectors.create(name).logits]


def test_which_detectors_read_no_logits() -> None:
    expected = {"grood", "knn", "mahalanobis", "relative_mahalanobis", "residual"}
    assert expected <= {*WITHOUT}
    knn, msp = detectors.knn(), detectors.msp()
    assert not detectors.combine((knn, detectors.mahalanobis())).logits
    assert detectors.combine((knn, msp)).logits


def fit(backbone: Backbone, name: str, **options: Any) -> gj.OODClassifier:
    return gj.OODClassifier.fit(
        backbone,
        TRAIN,
        detector=detectors.create(name, **options),
        calibration=HELD_OUT,
        key=jax.random.key(0),
    )


@pytest.mark.parametrize("name", ["mahalanobis", "residual"])
def test_detectors_that_read_no_logits_work_at_once(name: str) -> None:
    answers = fit(Backbone.from_encoder(pool, MATRIX), name).predict(HELD_OUT[0][0])
    assert (answers.label == HELD_OUT[0][1]).mean() > 0.9


def batches(rows: np.ndarray | None) -> list[Batch]:
    chosen = np.arange(len(IMAGES)) if rows is None else rows
    return [Batch(IMAGES[chosen], LABELS[chosen], np.ones(len(chosen), bool))]


def test_grood_has_class_means_for_the_classifier() -> None:
    own = {"grood": detectors.grood()}
    backbone = heads.completed(Backbone.from_encoder(pool, MATRIX), batches, own.items())
    state = fitting.fit_detectors(backbone, batches, own, key=jax.random.key(0))
    means = np.stack([FEATURES[LABELS == c].mean(axis=0) for c in range(CLASSES)])
    distances = np.linalg.norm(FEATURES[:, None] - means[None], axis=2)
    right = distances.argmin(axis=1) == LABELS
    fitted = state.detectors["grood"].state
    np.testing.assert_allclose(fitted.class_prototypes, means, rtol=1e-5, atol=1e-6)
    assert len(gj.bank_rows(fitted.bank)) == right.sum()


def test_scores_do_not_depend_on_the_head() -> None:
    """They are of the features alone: with a head or without, and whatever the head is."""
    scores = [
        fit(Backbone.from_encoder(pool, MATRIX, head=head), "mahalanobis").predict(IMAGES).score
        for head in (None, "linear")
    ]
    np.testing.assert_array_equal(*scores)


def test_an_evaluation_goes_on_without_those_that_read_logits() -> None:
    ood = {"noise": np.random.default_rng(3).normal(0, 2, (30, 2, 2, 3)).astype(np.float32)}
    names = ["mahalanobis", "msp"]
    encoder = Backbone.from_encoder(pool, MATRIX)
    made = gj.evaluate(encoder, (IMAGES, LABELS), HELD_OUT[0], ood, names)
    assert set(made.scores) == {"mahalanobis"}
    assert made.failed["msp"].startswith("msp needs logits, and the encoder has no head; give Bac")
    assert made.results["id_accuracy"] > 0.9


@pytest.mark.parametrize(
    "detector",
    [detectors.msp(), detectors.combine((detectors.knn(), detectors.msp()))],
    ids=["msp", "combine"],
)
def test_detectors_that_read_logits_say_how_to_have_some(detector: detectors.Detector) -> None:
    match = f"{detector.name} needs logits, and the encoder has no head; give Backbone.from_encoder"
    with pytest.raises(UserError, match=match):
        heads.completed(Backbone.from_encoder(pool, MATRIX), batches, [(detector.name, detector)])


@pytest.mark.parametrize("name", ["msp", "mcm"])
def test_with_a_head_all_detectors_work(name: str) -> None:
    for given in ({"head": "linear"}, {"text": (EMBEDDINGS, 0.1)}):
        assert np.isfinite(
            fit(Backbone.from_encoder(pool, MATRIX, **given), name).predict(IMAGES).score
        ).all()


def in_rows(arrays: Any, images: jax.Array) -> jax.Array:
    """Features of each image's two rows of pixels."""
    return jnp.tanh(images.reshape(len(images), 2, 6) @ arrays[:6])


def test_a_classifier_of_places_is_fitted_saved_and_loaded(tmp_path) -> None:
    backbone = Backbone.from_encoder(pool, MATRIX, text=(EMBEDDINGS, 0.1), local=in_rows)
    classifier = fit(backbone, "gl_mcm")
    scores = classifier.predict(IMAGES).score
    assert np.isfinite(scores).all()
    alone = fit(backbone, "mcm").predict(IMAGES).score
    assert (scores > alone).all()
    classifier.save(tmp_path / "saved")
    loaded = gj.OODClassifier.load(tmp_path / "saved", backbone).predict(IMAGES)
    np.testing.assert_allclose(loaded.score, scores, rtol=1e-6)
    with pytest.raises(UserError, match="gl_mcm needs features of places"):
        fit(Backbone.from_encoder(pool, MATRIX, text=(EMBEDDINGS, 0.1)), "gl_mcm")


def test_a_classifier_is_loaded_with_the_encoder_alone(tmp_path) -> None:
    """The fitted head is saved with the detector."""
    encoder = Backbone.from_encoder(pool, MATRIX, head="linear")
    classifier = fit(encoder, "msp")
    classifier.save(tmp_path / "saved")
    expected = classifier.predict(IMAGES)
    for given in (encoder, Backbone.from_encoder(pool, MATRIX)):
        loaded = gj.OODClassifier.load(tmp_path / "saved", given).predict(IMAGES)
        np.testing.assert_allclose(loaded.score, expected.score, rtol=1e-6)
    with pytest.raises(UserError, match="was fitted on the classifier"):
        gj.OODClassifier.load(tmp_path / "saved", Backbone.from_encoder(pool, MATRIX + 1))


# What is refused


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"local": 3}, TypeError, "local is 3; expected a function .arrays or model, images."),
        ({"encoder": 3}, TypeError, "encoder is 3; expected a function .arrays, images. -> feat"),
        ({"head": "nearest"}, ValueError, "head is 'nearest'; expected one of linear, prototypes"),
        ({"head": 3}, TypeError, "head is 3; expected 'linear', 'prototypes' or a pair"),
        (
            {"head": (np.ones((6, 3)), np.ones(2))},
            ValueError,
            r"bias of head has shape \(2,\); exp",
        ),
        ({"head": (np.ones(6), np.ones(6))}, ValueError, r"weights of head has shape \(6,\)"),
        ({"head": (np.full((6, 3), np.nan), np.ones(3))}, ValueError, "weights of head"),
        ({"text": EMBEDDINGS}, TypeError, r"text is a ndarray; expected \(embeddings \(C, D\), te"),
        (
            {"text": (EMBEDDINGS, 0.0)},
            ValueError,
            "temperature of text is 0.0; expected a positive",
        ),
        ({"text": (EMBEDDINGS[0], 1.0)}, ValueError, r"text has shape \(6,\)"),
        ({"text": (0 * EMBEDDINGS, 1.0)}, ValueError, "text holds 3 rows of zeros"),
        ({"text": (EMBEDDINGS, 1.0), "head": "linear"}, ValueError, "head and text are both given"),
        ({"cut": "first"}, TypeError, "cut or call is given, and encoder is a function"),
        ({"encoder": Encoder(), "arrays": {}}, TypeError, "an nnx module, which has its own"),
        ({"encoder": Encoder(), "cut": "first"}, TypeError, "cut is 'first', and example is None"),
        (
            {"encoder": Encoder(), "example": IMAGES},
            ValueError,
            "the model returns a dict of 2; expected features .B, D.: give call=",
        ),
    ],
)
def test_arguments_that_are_refused(plain: ModuleType, given, error, match: str) -> None:
    given = {"encoder": pool, **given}
    if given["encoder"] is pool:
        given["arrays"] = MATRIX
    with pytest.raises(error, match=match):
        plain.Backbone.from_encoder(given.pop("encoder"), **given)


def test_heads_of_another_width() -> None:
    for given in ({"text": (EMBEDDINGS[:, :4], 1.0)}, {"head": (np.ones((4, 2)), np.ones(2))}):
        with pytest.raises(ValueError, match="head is for features of width 4; the encoder's have"):
            Backbone.from_encoder(pool, MATRIX, **given)(IMAGES)


def test_heads_that_cannot_be_fitted() -> None:
    backbone = Backbone.from_encoder(pool, MATRIX)
    with pytest.raises(ValueError, match="head is None, and the backbone asks for none"):
        gj.fit_head(backbone, IMAGES, LABELS)
    with pytest.raises(ValueError, match="has a head; expected one of Backbone.from_encoder"):
        gj.fit_head(Backbone.from_encoder(pool, MATRIX, text=(EMBEDDINGS, 1.0)), IMAGES, LABELS)
    with pytest.raises(ValueError, match="labels has dtype float32 and shape"):
        gj.fit_head(backbone, IMAGES, LABELS.astype(np.float32), "linear")
    with pytest.raises(ValueError, match="expected images .N, .... and a class for each"):
        gj.fit_head(backbone, IMAGES, LABELS[:3], "linear")
    with pytest.raises(ValueError, match="no sample of class 1"):
        gj.fit_head(backbone, IMAGES[LABELS != 1], LABELS[LABELS != 1], "prototypes")
    with pytest.raises(ValueError, match="label -1 of row 0 is no class"):
        gj.fit_head(backbone, IMAGES, LABELS - 1, "linear", num_classes=3)
    with pytest.raises(ValueError, match="features of the training set"):
        gj.fit_head(backbone, np.nan * IMAGES, LABELS, "linear")


def test_detectors_are_not_fitted_without_a_head() -> None:
    with pytest.raises(UserError, match="has no head yet; fit one with grood_jax.fit_head"):
        fitting.fit_detectors(
            Backbone.from_encoder(pool, MATRIX),
            batches,
            {"knn": detectors.knn()},
            key=jax.random.key(0),
        )
