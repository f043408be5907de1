"""Training a classifier: augmentation, schedule, and a run that resumes to the same curve."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from grood_jax import models
from grood_jax.backbone.backbone import Backbone
from grood_jax.data import ImageSet, Preprocessing, batches
from grood_jax.models import Staged
from grood_jax.storage import checkpoints
from grood_jax.storage.checkpoints import Loaded, ModelSpec
from grood_jax.support import progress
from grood_jax.support.errors import UserError
from grood_jax.training.options import TrainOptions
from grood_jax.training.options import recipe as recipe

READ = 4096
"""Images read at once when the training set is brought into memory."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that changes in training.

    Attributes:
      parameters: the network's weights.
      rest: its batch statistics.
      optimizer: optax's state, which counts the steps.
    """

    parameters: Any
    rest: Any
    optimizer: Any


def learning_rates(options: TrainOptions, steps: int) -> optax.Schedule:
    """The learning rate by step, over ``steps`` steps.

    References:
      Loshchilov and Hutter, arXiv 1608.03983 (cosine); Smith and Topin, arXiv 1708.07120
      (one-cycle).
    """
    if options.schedule == "one-cycle":
        return optax.cosine_onecycle_schedule(steps, options.learning_rate, pct_start=0.25)
    return optax.cosine_decay_schedule(options.learning_rate, steps)


def augment(
    images: Float[Array, "b h w c"], key: Array, crop_padding: int, flip: bool
) -> Float[Array, "b h w c"]:
    """Random crops out of a reflected border, and random mirroring, image by image.

    Args:
      images: (B, H, W, C).
      key: randomness.
      crop_padding: the border's width in pixels; 0 for no crops.
      flip: mirror each image with probability one half.
    """
    crop_key, flip_key = jax.random.split(key)
    count, height, width, channels = images.shape
    if crop_padding:
        border = ((0, 0), (crop_padding, crop_padding), (crop_padding, crop_padding), (0, 0))
        padded = jnp.pad(images, border, mode="reflect")
        corners = jax.random.randint(crop_key, (count, 2), 0, 2 * crop_padding + 1)

        def crop(image: Array, corner: Array) -> Array:
            start = (corner[0], corner[1], 0)
            return jax.lax.dynamic_slice(image, start, (height, width, channels))

        images = jax.vmap(crop)(padded, corners)
    if flip:
        mirrored = jax.random.bernoulli(flip_key, 0.5, (count, 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


@progress.says
def train(
    images: ImageSet,
    preprocessing: Preprocessing,
    *,
    dataset: str,
    model: str,
    num_classes: int,
    options: TrainOptions,
    directory: Path,
    say: Callable[[str], None] = lambda line: None,
    show_progress: bool = False,
) -> Loaded:
    """Trains a classifier, or goes on where an earlier run in the directory stopped.

    A checkpoint is written after each epoch. All randomness follows from ``options.seed`` and the
    epoch, so that a run that was killed and resumed follows the curve of one that was not.

    Args:
      images: the training set; it is brought into memory, 8 bits a value.
      preprocessing: normalisation of the network's input.
      dataset: the set's name, for the record.
      model: the network's name.
      num_classes: how many classes.
      options: how.
      directory: of the checkpoints.
      say: takes lines of progress.
      show_progress: shows a bar on stderr.

    Returns:
      The trained network, as read back from the last checkpoint. Its record holds ``dataset``,
      ``options`` and ``history``: per epoch the mean loss, the training accuracy and the last
      learning rate.

    Raises:
      UserError: the directory's checkpoint is of another network, data set or options; the set
        is smaller than a batch, or has a label that is no class; the loss is not finite.
      ValueError: an unknown model.
    """
    about = {"dataset": dataset, "images": images.source, "options": asdict(options)}
    spec = ModelSpec(
        model=model,
        num_classes=num_classes,
        preprocessing=preprocessing,
        source=f"trained by grood_jax on {dataset}, seed {options.seed}",
    )
    before = _resumable(directory, model, about)
    if before is not None and before.step == options.epochs:
        return before
    steps = _steps_an_epoch(images, dataset, options)
    pixels, labels = _in_memory(images, num_classes, show_progress)
    network = _fresh(spec, options.seed) if before is None else before.model
    step, state, graph = _prepare(network, options, steps, preprocessing)
    history: list[dict[str, float]] = []
    if before is not None:
        history = list(before.record["history"])
        state = _resumed(directory, before, state)
        say(f"resuming {directory} after epoch {before.step} of {options.epochs}")
    rates = learning_rates(options, steps * options.epochs)
    seen = steps * options.batch_size
    total, done = options.epochs * seen, len(history) * seen
    with (
        checkpoints.manager(directory) as manager,
        progress.bar(total, f"training {model}", shown=show_progress, done=done) as bar,
    ):
        for epoch in range(len(history), options.epochs):
            state, loss, accuracy = _epoch(step, state, pixels, labels, options, epoch, bar)
            _require_finite(loss, epoch, options)
            rate = float(rates(steps * (epoch + 1) - 1))
            history.append({"loss": loss, "accuracy": accuracy, "learning_rate": rate})
            checkpoints.save(
                manager,
                epoch + 1,
                nnx.merge(graph, state.parameters, state.rest, copy=True),
                spec,
                optimizer={"state": state.optimizer},
                record=about | {"history": history},
            )
            bar.set_postfix_str(f"epoch {epoch + 1}/{options.epochs}, loss {loss:.3f}")
            say(
                f"epoch {epoch + 1} of {options.epochs}: loss {loss:.4f}, "
                f"training accuracy {accuracy:.4f}"
            )
    return checkpoints.load_model(directory)


def _steps_an_epoch(images: ImageSet, dataset: str, options: TrainOptions) -> int:
    if len(images) < options.batch_size:
        raise UserError(
            f"batch_size is {options.batch_size}, but {dataset} has {len(images)} training images; "
            "expected a batch no larger"
        )
    return len(images) // options.batch_size


def _resumed(directory: Path, before: Loaded, state: TrainState) -> TrainState:
    """The state with the optimizer's of the checkpoint, whose network it has already."""
    saved = checkpoints.load_optimizer(directory, before.step, {"state": state.optimizer})
    return TrainState(state.parameters, state.rest, saved["state"])


def _fresh(spec: ModelSpec, seed: int) -> Staged:
    """The network of that description with fresh weights."""
    return models.create(
        spec.model,
        num_classes=spec.num_classes,
        channels=spec.preprocessing.channels,
        image_size=spec.preprocessing.image_size,
        rngs=nnx.Rngs(seed),
    )


def _require_finite(loss: float, epoch: int, options: TrainOptions) -> None:
    if not math.isfinite(loss):
        raise UserError(
            f"the loss is {loss} in epoch {epoch + 1}; a lower learning rate than "
            f"{options.learning_rate:g} may help"
        )


def accuracy(
    model: Staged, images: ImageSet, preprocessing: Preprocessing, batch_size: int = 256
) -> float:
    """The share of a labelled set that the classifier gets right, in evaluation mode."""
    backbone = Backbone.from_nnx(model, cut=model.stages[0])
    forward = jax.jit(lambda x: backbone(x).logits.argmax(axis=1))
    right = sum(
        int(((np.asarray(forward(batch.images)) == batch.labels) & batch.valid).sum())
        for batch in batches(images, preprocessing, batch_size=batch_size)
    )
    return right / len(images)


def _resumable(directory: Path, model: str, about: dict[str, Any]) -> Loaded | None:
    """The directory's checkpoint, if there is one, after checking that it is of this run."""
    if checkpoints.latest_step(directory) is None:
        return None
    earlier = checkpoints.load_model(directory, expected_model=model)
    for name in ("dataset", "images"):
        if earlier.record.get(name) != about[name]:
            raise UserError(
                f"the checkpoint in {directory} was trained on {earlier.record.get(name)}; "
                f"expected {about[name]}: choose another directory"
            )
    before, now = dict(earlier.record["options"]), about["options"]
    other = [
        f"{key} {before.get(key)} (now {now[key]})" for key in now if before.get(key) != now[key]
    ]
    if other:
        raise UserError(
            f"the checkpoint in {directory} was trained with {', '.join(other)}: choose another "
            "directory, or the same options"
        )
    return earlier


def _in_memory(
    images: ImageSet, num_classes: int, show_progress: bool
) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
    parts = []
    with progress.bar(len(images), "reading", shown=show_progress) as bar:
        for start in range(0, len(images), READ):
            rows = np.arange(start, min(start + READ, len(images)))
            parts.append(images.read(rows))
            bar.update(len(rows))
    pixels = np.concatenate([part[0] for part in parts])
    labels = np.concatenate([part[1] for part in parts])
    outside = sorted({int(label) for label in labels if not 0 <= label < num_classes})
    if outside:
        raise UserError(
            f"training images of {images.source} have labels {outside[:10]}; expected 0 to "
            f"{num_classes - 1}"
        )
    return pixels, labels.astype(np.int32)


Step = Callable[..., tuple[TrainState, Float[Array, ""], Float[Array, ""]]]


def _prepare(
    network: Staged, options: TrainOptions, steps: int, preprocessing: Preprocessing
) -> tuple[Step, TrainState, Any]:
    """The compiled step, the state it starts from, and the graph that makes a model of it."""
    training = nnx.view(
        network, deterministic=False, use_running_average=False, raise_if_not_found=False
    )
    graph, parameters, rest = _split(training)
    transform = optax.chain(
        optax.add_decayed_weights(
            options.weight_decay, mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)
        ),
        optax.sgd(learning_rates(options, steps * options.epochs), options.momentum, nesterov=True),
    )

    def loss(
        parameters: Any, rest: Any, images: Array, labels: Array
    ) -> tuple[Array, tuple[Any, Array]]:
        # NNX updates batch statistics in place: a copy keeps the tracers in here.
        model = nnx.merge(graph, parameters, rest, copy=True)
        logits = model(images)
        targets = optax.smooth_labels(
            jax.nn.one_hot(labels, logits.shape[1]), options.label_smoothing
        )
        value = optax.softmax_cross_entropy(logits, targets).mean()
        right = (logits.argmax(axis=1) == labels).mean()
        return value, (_split(model)[2], right)

    @partial(jax.jit, donate_argnums=0)
    def step(
        state: TrainState, pixels: Array, labels: Array, key: Array
    ) -> tuple[TrainState, Array, Array]:
        images = preprocessing.normalize(
            augment(pixels.astype(jnp.float32), key, options.crop_padding, options.flip)
        )
        (value, (rest, right)), slope = jax.value_and_grad(loss, has_aux=True)(
            state.parameters, state.rest, images, labels
        )
        updates, optimizer = transform.update(slope, state.optimizer, state.parameters)
        parameters = optax.apply_updates(state.parameters, updates)
        return TrainState(parameters, rest, optimizer), value, right

    start = TrainState(parameters, rest, transform.init(parameters))
    return step, start, graph


def _split(model: nnx.Module) -> tuple[Any, Any, Any]:
    graph, parameters, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    return graph, parameters, rest


def _epoch(
    step: Step,
    state: TrainState,
    pixels: UInt8[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    options: TrainOptions,
    epoch: int,
    bar: Any,
) -> tuple[TrainState, float, float]:
    key = jax.random.fold_in(jax.random.key(options.seed), epoch)
    order_key, augment_key = jax.random.split(key)
    order = np.asarray(jax.random.permutation(order_key, len(labels)))
    steps = len(labels) // options.batch_size
    losses: list[Array] = []
    rights: list[Array] = []
    for index in range(steps):
        rows = order[index * options.batch_size : (index + 1) * options.batch_size]
        state, value, right = step(
            state, pixels[rows], labels[rows], jax.random.fold_in(augment_key, index)
        )
        if losses:
            # One step ahead of the device is enough, and keeps the bar honest.
            jax.block_until_ready(losses[-1])
        losses.append(value)
        rights.append(right)
        bar.update(len(rows))
    return state, float(np.mean(jax.device_get(losses))), float(np.mean(jax.device_get(rights)))
