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
# # Your own model: Flax NNX, Linen, an encoder, or plain functions
#
# [![Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/grood-jax/grood-jax/blob/main/experiments/notebooks/your_own_model.ipynb)
#
# Detectors see a classifier through one seam, `gj.Backbone`: its arrays, and two pure functions.
#
# - `early(arrays, images)` gives the activations at the *cut*, where GROOD mixes samples;
# - `late(arrays, activations)` gives the penultimate features (B, D) and the logits (B, C).
#
# Of a Flax model it is made by naming layers, and the model may return logits and nothing else.
# Four networks are made here, in Flax NNX, in Flax Linen, without a head, and outside of JAX, and
# given to the same few lines.

# %%
import os
import subprocess
import sys

if "google.colab" in sys.modules:  # elsewhere, in a checkout: pip install -e '.[report]'
    package = "grood-jax[report] @ git+https://github.com/grood-jax/grood-jax"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

STEPS = 100 if os.environ.get("GROOD_SMALL") == "1" else 500  # fewer, as the tests run it

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen, nnx

import grood_jax as gj

# %% [markdown]
# ## Data
#
# Put your own here: images as arrays (N, H, W, C) with labels (N,), folders, `.npz` files or
# batches. Bytes and files need `preprocessing`: mean, standard deviation and size. These are the
# digits 0 to 7 (ID), with 8 and 9, photographs and noise as OOD.

# %%
digits = gj.datasets.digits()
prepare = digits.preprocessing
images = prepare.normalize(digits.train.images)  # what the networks are trained on
labels = digits.train.labels
example = images[:2]  # only its shape matters
print(images.shape, labels.shape, prepare)

# %% [markdown]
# ## What is done with each of them
#
# These lines do not know in what framework the network was written.

# %%
tables = {}


def evaluate(name, backbone, detectors=("grood", "msp", "knn")):
    sets = digits.train, digits.test, digits.ood
    tables[name] = gj.evaluate(backbone, *sets, detectors=detectors, preprocessing=prepare)
    print(backbone)
    print(tables[name])


# %% [markdown]
# ## Flax NNX
#
# A module as you would write it anyway: it returns logits.


# %%
class Convolutional(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(1, 16, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dense = nnx.Linear(16 * 4 * 4, 64, rngs=rngs)
        self.classifier = nnx.Linear(64, 8, rngs=rngs)

    def __call__(self, images):
        x = jax.nn.relu(self.norm(self.stem(images)))
        return self.classifier(jax.nn.relu(self.dense(x.reshape(-1, 16 * 4 * 4))))


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        rows = rng.choice(len(images), 128, replace=False)
        yield images[rows], labels[rows]


model = Convolutional(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)


@nnx.jit
def step(model, optimizer, images, labels):
    grads = nnx.grad(lambda model: cross_entropy(model(images), labels))(model)
    optimizer.update(model, grads)


for batch in batches():
    step(model, optimizer, *batch)

# %% [markdown]
# Its layers, and where it may be cut; nothing is computed for this:

# %%
gj.layers(model, example)

# %% [markdown]
# Features are what enters the head, logits what leaves it. `head` and `cut` may be left out: the
# head is then the last linear layer, and the cut lies about a third of the way to it. The model is
# in training mode after training; the backbone takes an evaluation view, and leaves it alone.

# %%
backbone = gj.Backbone.from_nnx(model, head="classifier", cut="norm", example=example)
evaluate("Flax NNX", backbone)

# %% [markdown]
# ## Flax Linen
#
# The same for a module with its variables. Layers have the names that their parameters have.


# %%
class Dense(linen.Module):
    @linen.compact
    def __call__(self, images):
        x = jax.nn.relu(linen.Dense(128, name="first")(images.reshape(-1, 64)))
        x = jax.nn.relu(linen.Dense(64, name="second")(x))
        return linen.Dense(8, name="logits")(x)


module = Dense()
variables = module.init(jax.random.key(0), example)
adam = optax.adam(3e-3)
state = adam.init(variables)


@jax.jit
def linen_step(variables, state, images, labels):
    def loss(variables):
        return cross_entropy(module.apply(variables, images), labels)

    updates, state = adam.update(jax.grad(loss)(variables), state)
    return optax.apply_updates(variables, updates), state


for batch in batches():
    variables, state = linen_step(variables, state, *batch)
print(gj.layers(module, example, variables))

# %%
backbone = gj.Backbone.from_linen(module, variables, cut="first", example=example)
evaluate("Flax Linen", backbone)

# %% [markdown]
# ## An encoder without a head
#
# A network that gives features and no logits, as those do that were trained without labels: a
# function of arrays and images, or a module. Here it is the plainest of them, 32 principal
# components. Detectors that read no logits work at once; the class of an image is that of the
# nearest mean of features. All others need a head, which `gj.fit_head` or `head="linear"` fits.


# %%
def encode(arrays, images):
    return (images.reshape(-1, 64) - arrays["mean"]) @ arrays["components"]


flat = images.reshape(-1, 64)
components = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)[2][:32].T
encoder = gj.Backbone.from_encoder(encode, {"mean": flat.mean(axis=0), "components": components})
evaluate("encoder", encoder, ["grood", "knn", "mahalanobis"])

# %%
evaluate("encoder with a head", gj.fit_head(encoder, images, labels, "linear"), ["msp"])

# %% [markdown]
# ## Plain functions, and any other framework
#
# Any pytree of arrays and two functions at the top of a module (they must be hashable: `jit` sees
# them as static). Leave the number of images open, as `reshape(-1, 64)` does. The arrays may come
# from anywhere, here from scikit-learn; `head` tells detectors that ask for it the last layer.

# %%
from sklearn.neural_network import MLPClassifier

trained = MLPClassifier((128, 64), solver="lbfgs", alpha=0.1, random_state=0).fit(flat, labels)


def early(arrays, images):
    weights, bias = arrays[0]
    return jax.nn.relu(images.reshape(-1, 64) @ weights + bias)


def late(arrays, hidden):
    (weights, bias), last = arrays[1:]
    features = jax.nn.relu(hidden @ weights + bias)
    return features, features @ last[0] + last[1]


def head(arrays):
    return arrays[2]


arrays = [
    (w.astype("float32"), b.astype("float32"))
    for w, b in zip(trained.coefs_, trained.intercepts_, strict=True)
]
backbone = gj.Backbone.from_functions(arrays, early, late, head=head)
evaluate("scikit-learn", backbone)

# %% [markdown]
# ## Side by side
#
# The mean AUROC on near (left) and far (right) sets; the bars are 95 % intervals. On the digits 8
# and 9 GROOD (orange) is highest wherever it was asked, though its interval and that of MSP (black)
# overlap; `knn` (blue) is behind there. On far sets GROOD is at 1 or near; MSP is behind with the
# network in NNX and with the encoder's head, `knn` with the network of scikit-learn.

# %%
colors = {"grood": "tab:orange", "msp": "black", "knn": "tab:blue", "mahalanobis": "tab:green"}
figure, places = plt.subplots(1, 2, figsize=(9, 2.8), sharey=True, layout="constrained")
for place, group in zip(places, ["near", "far"], strict=True):
    for i, (detector, color) in enumerate(colors.items()):
        having = [name for name, table in tables.items() if detector in table.scores]
        own = [tables[name].results["detectors"][detector][group] for name in having]
        middles = np.array([figures["auroc"] for figures in own])
        ends = np.array([figures["auroc_interval"] for figures in own]).T
        heights = [list(tables).index(name) + 0.15 * i - 0.2 for name in having]
        bars = np.abs(ends - middles)
        place.errorbar(middles, heights, xerr=bars, fmt="o", ms=4, color=color, label=detector)
    place.set(title=group, xlabel="AUROC", yticks=range(len(tables)), yticklabels=tables)
places[0].invert_yaxis()
figure.legend(*places[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()

# %% [markdown]
# ## Before you trust it
#
# What a backbone says must be what your model says. Compare the logits once, of a model in
# evaluation mode:

# %%
tests = prepare.normalize(digits.test.images)
evaluation = nnx.view(model, use_running_average=True)
named = gj.Backbone.from_nnx(model, cut="norm", example=example)
assert np.allclose(named(tests).logits, evaluation(tests), atol=1e-4)
named = gj.Backbone.from_linen(module, variables, cut="first", example=example)
assert np.allclose(named(tests).logits, module.apply(variables, tests), atol=1e-4)
probabilities = trained.predict_proba(tests.reshape(-1, 64))
assert np.allclose(jax.nn.softmax(backbone(tests).logits), probabilities, atol=1e-4)
print("all three agree")
