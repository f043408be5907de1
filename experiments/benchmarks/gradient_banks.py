"""Real gradient banks of 64, 512 and 2,048 columns, from a ResNet-20 for CIFAR-10.

python experiments/benchmarks/gradient_banks.py --data-dir ~/tensorflow_datasets \\
    --checkpoint checkpoints/resnet20

The 64 columns are the network's own. For more, a wider head is trained on its last feature map:
a 1 × 1 convolution, ReLU, global average pooling and a linear classifier, as in wider networks.
Each bank holds the gradients of the correctly classified training images, and the queries are
those of the test images. Banks are kept in --bank-dir, and not made again.
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import grood_jax as gj
from grood_jax import benchmarks
from grood_jax.cli import command
from grood_jax.data import batches
from grood_jax.storage import checkpoints
from grood_jax.support import progress

WIDTHS = {64: 0, 512: 8, 2048: 3}
"""Columns of each bank, and for how many epochs its head is trained."""

BATCH = 250


@dataclass(frozen=True)
class BankConfig:
    """Where the network and the images are, and where banks go.

    Attributes:
      data_dir: prepared data sets, as of python -m grood_jax.eval.
      checkpoint: a ResNet-20 for CIFAR-10.
      bank_dir: where banks are kept.
    """

    data_dir: Path | None = None
    checkpoint: Path = Path("checkpoints/resnet20")
    bank_dir: Path = Path("results/gradient_banks")


def path(config: BankConfig, width: int) -> Path:
    return config.bank_dir / f"gradients{width}.npz"


def make_banks(config: BankConfig) -> None:
    """Makes those banks that are not there yet."""
    missing = [width for width in WIDTHS if not path(config, width).exists()]
    if not missing:
        return
    config.bank_dir.mkdir(parents=True, exist_ok=True)
    loaded = checkpoints.load_model(config.checkpoint, expected_model="resnet20")
    data = benchmarks.open_benchmark(benchmarks.get("cifar10"), data_dir=config.data_dir, ood=False)
    backbone = gj.Backbone.from_nnx(loaded.model, cut="layer3")
    spec = loaded.spec.preprocessing
    train, labels = _maps(
        backbone, batches(data.train, spec, batch_size=BATCH, description="train")
    )
    test, test_labels = _maps(
        backbone, batches(data.test, spec, batch_size=BATCH, description="test")
    )
    for width in missing:
        if width == train.shape[-1]:
            head = _own_head(backbone)
        else:
            progress.tell(f"training a head of {width} columns")
            head = _train_head(train, labels, width, WIDTHS[width], jax.random.key(0))
        features, logits = _apply(head, train)
        queries, query_logits = _apply(head, test)
        accuracy = float((query_logits.argmax(axis=1) == test_labels).mean())
        prototypes, _ = gj.class_prototypes(features, labels, 10)
        correct = logits.argmax(axis=1) == labels
        p_ood = prototypes.mean(axis=0)
        np.savez(
            path(config, width),
            bank=gj.ood_gradients(features[correct], prototypes, p_ood),
            queries=gj.ood_gradients(queries, prototypes, p_ood),
            accuracy=accuracy,
        )
        progress.tell(f"{path(config, width)}: {correct.sum()} rows, test accuracy {accuracy:.4f}")


def load(config: BankConfig, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A bank and its queries."""
    with np.load(path(config, width)) as arrays:
        return arrays["bank"], arrays["queries"]


def _maps(backbone, data):
    """Last feature maps, pooled to 4 × 4 cells, and labels."""

    @jax.jit
    def run(images):
        maps = backbone.early(backbone.arrays, images)
        size, height, width, channels = maps.shape
        cells = maps.reshape(size, 4, height // 4, 4, width // 4, channels).mean(axis=(2, 4))
        return cells.reshape(size, 16, channels)

    maps, labels = [], []
    for batch in data:
        maps.append(np.asarray(run(batch.images))[batch.valid])
        labels.append(batch.labels[batch.valid])
    return np.concatenate(maps), np.concatenate(labels)


def _own_head(backbone):
    """The identity and the network's own classifier."""
    kernel, bias = backbone.head(backbone.arrays)
    return {"wide": None, "kernel": kernel, "bias": bias}


def _features(head, maps):
    if head["wide"] is None:
        return maps.mean(axis=1)
    return jax.nn.relu(maps @ head["wide"] + head["shift"]).mean(axis=1)


def _logits(head, maps):
    features = _features(head, maps)
    return features, features @ head["kernel"] + head["bias"]


def _apply(head, maps):
    run = jax.jit(_logits)
    parts = [run(head, maps[i : i + BATCH]) for i in range(0, len(maps), BATCH)]
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def _train_head(maps, labels, width, epochs, key):
    first, second = jax.random.split(key)
    channels, classes = maps.shape[-1], int(labels.max()) + 1
    head = {
        "wide": jax.random.normal(first, (channels, width)) * np.sqrt(2 / channels),
        "shift": jnp.zeros(width),
        "kernel": jax.random.normal(second, (width, classes)) * np.sqrt(1 / width),
        "bias": jnp.zeros(classes),
    }
    steps = len(maps) // BATCH
    optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, epochs * steps), weight_decay=5e-4)

    def loss(head, maps, labels):
        logits = _logits(head, maps)[1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(head, state, maps, labels):
        updates, state = optimizer.update(jax.grad(loss)(head, maps, labels), state, head)
        return optax.apply_updates(head, updates), state

    state, rng = optimizer.init(head), np.random.default_rng(0)
    for _ in range(epochs):
        order = rng.permutation(len(maps))
        for rows in order[: steps * BATCH].reshape(steps, BATCH):
            head, state = step(head, state, maps[rows], labels[rows])
    return head


if __name__ == "__main__":
    config = command.parse(BankConfig(), "gradient_banks", __doc__, None)
    raise SystemExit(command.status(lambda: make_banks(config)))
