# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own model: Flax NNX, Linen, or plain functions
#
# [![Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/grood-jax/grood-jax/blob/main/experiments/notebooks/your_own_model.ipynb)
#
# Detectors see a classifier through one seam, `gj.Backbone`: its arrays, and two pure functions.
#
# - `early(arrays, images)` gives the activations at the *cut*, where GROOD mixes samples;
# - `late(arrays, activations)` gives the penultimate features (B, D) and the logits (B, C).
#
# Three networks are made here, in Flax NNX, in Flax Linen, and of plain functions (so Equinox,
# Haiku or your own code work too), trained on small digits, and given to the same few lines.

# %%
import os
import subprocess
import sys

if "google.colab" in sys.modules:  # elsewhere: pip install 'grood-jax[report]'
    package = "grood-jax[report] @ git+https://github.com/grood-jax/grood-jax"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

SMALL = os.environ.get("GROOD_SMALL") == "1"  # fewer images and steps, as the tests run it

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen, nnx

import grood_jax as gj
from grood_jax import benchmarks

print(jax.devices())
STEPS = 100 if SMALL else 500

# %% [markdown]
# ## Data
#
# Images are arrays (B, H, W, C), normalised as your network takes them; labels are integers. Put
# your own here. These are the digits 0 to 7 (ID), with 8 and 9 and photographs as OOD.

# %%
opened = benchmarks.open_benchmark(benchmarks.get("digits"))


def arrays_of(images, start=0, step=1):
    pixels, labels = images.read(np.arange(start, len(images), step))
    return (pixels.astype(np.float32) / 255 - 0.3) / 0.38, labels.astype(np.int32)


train_images, train_labels = arrays_of(opened.train)
held_out = arrays_of(opened.test, 0, 2)  # sets the threshold
test_images, test_labels = arrays_of(opened.test, 1, 2)  # measures what it does
unknown = {name: arrays_of(images)[0] for name, (_, images) in opened.ood.items()}
train_batches = [
    (train_images[i : i + 256], train_labels[i : i + 256]) for i in range(0, len(train_images), 256)
]
print(train_images.shape, {name: len(images) for name, images in unknown.items()})

# %% [markdown]
# ## What is done with each of them
#
# These lines do not know what framework the network was written in.

# %%
results = {}


def evaluate(name, backbone):
    classifier = gj.OODClassifier.fit(
        backbone,
        train_batches,
        detector=gj.detectors.grood(),
        calibration=[held_out],
        target_tpr=0.95,
        key=jax.random.key(0),
    )
    known = classifier.predict(test_images)
    print(f"{name}: accuracy {(known.label == test_labels).mean():.3f}")
    print(f"  {1 - known.is_ood.mean():.2f} of the known digits taken for ID")
    scores = {"known digits": known.score}
    for other, images in unknown.items():
        answers = classifier.predict(images)
        auroc = gj.ood_metrics(known.score, answers.score)["auroc"]
        print(f"  {answers.is_ood.mean():.2f} of {other} taken for OOD (AUROC {auroc:.3f})")
        scores[other] = answers.score
    results[name] = scores


def descend(loss, arrays):
    """Minimises `loss(arrays, images, labels)` over random batches."""
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(arrays, state, images, labels):
        updates, state = optimizer.update(jax.grad(loss)(arrays, images, labels), state)
        return optax.apply_updates(arrays, updates), state

    state, rng = optimizer.init(arrays), np.random.default_rng(0)
    for _ in range(STEPS):
        rows = rng.choice(len(train_images), 128, replace=False)
        arrays, state = step(arrays, state, train_images[rows], train_labels[rows])
    return arrays


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


# %% [markdown]
# ## Flax NNX
#
# Any `nnx.Module`, cut by two functions of it. An `nnx.Linear` by the name of `head` is found by
# detectors that need the class head. The batch norm here is in training mode after training: the
# backbone takes an evaluation view, and leaves your model alone.


# %%
class Convolutional(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 16, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dense = nnx.Linear(16 * 4 * 4, 64, rngs=rngs)
        self.head = nnx.Linear(64, 8, rngs=rngs)

    def __call__(self, images):
        return nnx_late(self, nnx_early(self, images))[1]


def nnx_early(model, images):
    return jax.nn.relu(model.norm(model.conv(images)))


def nnx_late(model, hidden):
    features = jax.nn.relu(model.dense(hidden.reshape(-1, 16 * 4 * 4)))
    return features, model.head(features)


model = Convolutional(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)


@nnx.jit
def step(model, optimizer, images, labels):
    grads = nnx.grad(lambda model: cross_entropy(model(images), labels))(model)
    optimizer.update(model, grads)


rng = np.random.default_rng(0)
for _ in range(STEPS):
    rows = rng.choice(len(train_images), 128, replace=False)
    step(model, optimizer, train_images[rows], train_labels[rows])

backbone = gj.Backbone.from_nnx(model, cut=(nnx_early, nnx_late))
evaluate("Flax NNX", backbone)

# %% [markdown]
# ## Flax Linen
#
# A module with its variables, cut by two of its methods (or functions of the bound module).


# %%
class Dense(linen.Module):
    def setup(self):
        self.first, self.second = linen.Dense(128), linen.Dense(64)
        self.head = linen.Dense(8)

    def early(self, images):
        return jax.nn.relu(self.first(images.reshape(-1, 64)))

    def late(self, hidden):
        features = jax.nn.relu(self.second(hidden))
        return features, self.head(features)

    def __call__(self, images):
        return self.late(self.early(images))[1]


module = Dense()
variables = descend(
    lambda variables, images, labels: cross_entropy(module.apply(variables, images), labels),
    module.init(jax.random.key(0), train_images[:1]),
)
backbone = gj.Backbone.from_linen(module, variables, cut=(Dense.early, Dense.late))
evaluate("Flax Linen", backbone)

# %% [markdown]
# ## Plain functions, and any other framework
#
# Any pytree of arrays and two functions at the top of a module (they must be hashable: `jit` sees
# them as static). Leave the number of images open, as `reshape(-1, 64)` does.


# %%
def early(arrays, images):
    return jnp.tanh(images.reshape(-1, 64) @ arrays["one"])


def late(arrays, hidden):
    features = jnp.tanh(hidden @ arrays["two"])
    return features, features @ arrays["three"]


def head(arrays):
    return arrays["three"], jnp.zeros(8)


keys = jax.random.split(jax.random.key(0), 3)
shapes = {"one": (64, 128), "two": (128, 64), "three": (64, 8)}
start = {
    name: jax.random.normal(key, shape) / shape[0] ** 0.5
    for key, (name, shape) in zip(keys, shapes.items(), strict=True)
}
arrays = descend(
    lambda arrays, images, labels: cross_entropy(late(arrays, early(arrays, images))[1], labels),
    start,
)
backbone = gj.Backbone.from_functions(arrays, early, late, head=head)
evaluate("plain functions", backbone)

# %% [markdown]
# ## The scores

# %%
figure, places = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
for place, (name, scores) in zip(places, results.items(), strict=True):
    bins = np.linspace(0, max(found.max() for found in scores.values()), 40)
    for which, found in scores.items():
        weights = np.full(len(found), 1 / len(found))
        place.hist(found, bins, weights=weights, histtype="step", linewidth=1.5, label=which)
    place.set(title=name, xlabel="score (higher: more OOD)", yscale="log")
places[0].set_ylabel("share of the set")
figure.legend(*places[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()

# %% [markdown]
# ## Before you trust it
#
# What a backbone says must be what your model says. Compare the logits once:

# %%
by_model = late(arrays, early(arrays, test_images))[1]
assert np.allclose(backbone(test_images).logits, by_model, atol=1e-5)
bound = module.apply(variables, test_images)
again = gj.Backbone.from_linen(module, variables, cut=(Dense.early, Dense.late))
assert np.allclose(again(test_images).logits, bound, atol=1e-5)
evaluation = nnx.view(model, use_running_average=True)
again = gj.Backbone.from_nnx(model, cut=(nnx_early, nnx_late))
assert np.allclose(again(test_images).logits, evaluation(test_images), atol=1e-5)
print("all three agree")
