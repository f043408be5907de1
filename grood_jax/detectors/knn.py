"""KNN: the distance to the k-th nearest training feature (arXiv 2204.06507)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors._statistics import rows_of_bank, training_features, unit_rows
from grood_jax.detectors.base import Detector, Scores, Training
from grood_jax.neighbors.bank import Bank
from grood_jax.neighbors.building import build_bank
from grood_jax.neighbors.searching import distances_of_each, search
from grood_jax.support import checks


def knn(*, k: int = 50, sampling_ratio: float = 1.0) -> Detector:
    """Deep nearest neighbours; the score is ``‖h/‖h‖ − h_(k)/‖h_(k)‖‖₂``, exact.

    ``h_(k)`` is the k-th nearest training feature after normalisation; zero features stay zero.
    The paper's score is the negative of this. OpenOOD v1.5 has the negative of its square, as
    FAISS gives it, which ranks the same.

    Args:
      k: which neighbour. 50 is OpenOOD's default and the paper's for CIFAR-10; the paper has 200
        for CIFAR-100 and 1000 for ImageNet.
      sampling_ratio: the share of the training samples in the bank, drawn at random (the paper's
        α); OpenOOD keeps all.

    Returns:
      The detector; its scores are (B,) float32 in [0, 2], higher for more OOD. Its ``fit`` raises
      ValueError where the bank has fewer than k rows.

    Raises:
      ValueError: an option outside its range.
      TypeError: an option of the wrong type.

    References:
      Sun, Ming, Zhu and Li, arXiv 2204.06507, section 3.
    """
    checks.at_least("k", k, 1)
    checks.fraction("sampling_ratio", sampling_ratio, zero=False)

    def fit(training: Training, key: Array) -> Bank:
        features = training_features(training, None)
        rows = rows_of_bank(key, len(features), sampling_ratio, k)
        return build_bank(unit_rows(checks.rows(features, rows)))

    def score(state: Bank, outputs: Outputs) -> Float[Array, " b"]:
        return search(unit_rows(jnp.asarray(outputs.features)), state, k)

    def of_each(ks: tuple[int, ...]) -> Scores:
        return lambda state, outputs: distances_of_each(
            unit_rows(jnp.asarray(outputs.features)), state, ks
        )

    return Detector(
        "knn",
        fit,
        score,
        {"k": k, "sampling_ratio": sampling_ratio},
        grid={"k": (50, 100, 200, 500, 1000)},
        fit_key=sampling_ratio,
        each={"k": of_each},
        logits=False,
    )
