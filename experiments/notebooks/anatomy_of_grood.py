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
# # Anatomy of GROOD
#
# [![Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/grood-jax/grood-jax/blob/main/experiments/notebooks/anatomy_of_grood.ipynb)
#
# GROOD ([arXiv 2312.14427](https://arxiv.org/abs/2312.14427)) step by step, in a feature space of
# two dimensions, so that everything can be drawn: prototypes, mix-up, the loss, `vmap` of `grad`
# and its closed form, the bank, and the score. At each step what we write by hand is compared with
# the library.
#
# **Scores are higher for more out-of-distribution (OOD) samples.**

# %%
import os
import subprocess
import sys

if "google.colab" in sys.modules:  # elsewhere, in a checkout: pip install -e '.[report]'
    package = "grood-jax[report] @ git+https://github.com/grood-jax/grood-jax"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

SMALL = os.environ.get("GROOD_SMALL") == "1"  # fewer images and steps, as the tests run it

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import grood_jax as gj
from grood_jax.data import Batch
from grood_jax.evaluation import fitting

print(jax.devices())
COLORS = np.array(["tab:blue", "tab:orange", "tab:green"])


def close(found, expected, tolerance=1e-5):
    """Fails unless two arrays agree."""
    error = np.abs(np.asarray(found) - np.asarray(expected)).max()
    assert error <= tolerance, f"differs by {error}"
    print(f"largest difference: {error:.1e}")


# %% [markdown]
# ## 0. A classifier that can be drawn
#
# Three classes of points in the plane. (To the library each is an image of one pixel with two
# channels.) OOD are points in the *middle*, between all classes, and points *beyond*, where no
# class is. The network is two matrices deep; its features $h$ have two dimensions.


# %%
def blob(rng, center, count, spread):
    return rng.normal(center, spread, (count, 2)).astype(np.float32).reshape(count, 1, 1, 2)


rng = np.random.default_rng(0)
count = 99 if SMALL else 300
angles = np.pi / 2 + 2 * np.pi * np.arange(3) / 3
centers = 3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
labels = np.repeat(np.arange(3), count).astype(np.int32)
train = np.concatenate([blob(rng, center, count, 0.6) for center in centers])
test = np.concatenate([blob(rng, center, count // 3, 0.6) for center in centers])
ood = {"middle": blob(rng, (0, 0), count, 0.4), "beyond": blob(rng, (0, -5), count, 0.6)}


def early(arrays, images):
    return jnp.tanh(images.reshape(-1, 2) @ arrays["one"] + arrays["one bias"][None])


def late(arrays, hidden):
    features = hidden @ arrays["two"]
    return features, features @ arrays["three"]


def loss(arrays):
    logits = late(arrays, early(arrays, jnp.asarray(train)))[1]
    weights = sum(jnp.sum(array**2) for array in arrays.values())
    fit = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)).mean()
    return fit + 1e-2 * weights


def descend(carry, _):
    arrays, state = carry
    updates, state = adam.update(jax.grad(loss)(arrays), state)
    return (optax.apply_updates(arrays, updates), state), None


keys = jax.random.split(jax.random.key(0), 4)
shapes = {"one": (2, 32), "one bias": (32,), "two": (32, 2), "three": (2, 3)}
arrays = {
    name: 0.5 * jax.random.normal(key, shape)
    for key, (name, shape) in zip(keys, shapes.items(), strict=True)
}
adam = optax.adam(1e-2)
steps = 500 if SMALL else 1500
(arrays, _), _ = jax.lax.scan(descend, (arrays, adam.init(arrays)), length=steps)

backbone = gj.Backbone.from_functions(arrays, early, late)
outputs = backbone(jnp.asarray(train))
h, z = outputs.features, outputs.logits
print("training accuracy", float((z.argmax(axis=1) == labels).mean()))

# %%
figure, places = plt.subplots(1, 2, figsize=(10, 4.6))
for place, points, title in [
    (places[0], lambda images: images.reshape(-1, 2), "images"),
    (places[1], lambda images: backbone(jnp.asarray(images)).features, "features $h$"),
]:
    place.scatter(*np.asarray(points(train)).T, c=COLORS[labels], s=6)
    for (name, images), marker in zip(ood.items(), "x+", strict=True):
        drawn = np.asarray(points(images[:100])).T
        place.scatter(*drawn, c="black", marker=marker, s=20, linewidths=0.8, label=f"OOD: {name}")
    place.set(title=title, aspect="equal")
places[0].legend(loc="lower left", fontsize=7)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## 1. Class prototypes
#
# The mean of the features of each class, $p_c$, and of the activations at the cut, $p_c^{early}$.

# %%
e = early(arrays, jnp.asarray(train))
prototypes, counts = gj.class_prototypes(h, labels, 3)
early_prototypes, _ = gj.class_prototypes(e, labels, 3)
close(prototypes, np.stack([np.asarray(h)[labels == c].mean(axis=0) for c in range(3)]))

# %% [markdown]
# ## 2. Mix-up: a point that stands for "none of them"
#
# There are no OOD samples to learn from, so they are made: each training sample is mixed, at the
# cut, with the early prototype of its *second* most likely class, $\tilde e = \lambda e + (1 -
# \lambda) p_{c_2}^{early}$ with $\lambda = 0.5$. The rest of the network takes it to features
# between the classes; their mean is the OOD prototype $p_{ood}$.

# %%
second = jnp.argsort(z, axis=1)[:, -2]
mixed = 0.5 * e + 0.5 * early_prototypes[second]
close(gj.mix_with_prototypes(e, early_prototypes, second, 0.5), mixed)
mixed_features, _ = late(arrays, mixed)
p_ood = mixed_features.mean(axis=0)
print("p_ood", p_ood)


def draw_prototypes(place):
    place.scatter(*np.asarray(prototypes).T, c=COLORS, marker="*", s=220, edgecolors="black")
    place.scatter(*np.asarray(p_ood), c="red", marker="*", s=220, edgecolors="black", zorder=3)


figure, place = plt.subplots(figsize=(5.5, 4.8))
place.scatter(*np.asarray(h).T, c=COLORS[labels], s=5, alpha=0.5)
place.scatter(*np.asarray(mixed_features).T, c="0.4", s=5, label="mixed samples")
draw_prototypes(place)
place.set(title="features; stars: prototypes, red: $p_{ood}$", aspect="equal")
place.legend(loc="lower left", fontsize=8)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## 3. The loss and its gradient
#
# A nearest-prototype classifier over $C + 1$ prototypes has the loss $L = -\log
# \mathrm{softmax}(-d)_{\hat y}$, with $d_j = \|h - p_j\|$ and $\hat y$ the network's class. How
# would moving $p_{ood}$ change the loss of *this one sample*? That is $g = \partial L / \partial
# p_{ood}$: `jax.grad` of a function of one sample. `jax.vmap` makes of it a function of a whole
# batch.


# %%
def sample_loss(p_ood, feature, predicted):
    every = jnp.concatenate([prototypes, p_ood[None]])
    distances = jnp.linalg.norm(feature[None] - every, axis=1)
    return -jax.nn.log_softmax(-distances)[predicted]


one = jax.grad(sample_loss)(p_ood, h[0], z[0].argmax())
print("of the first sample:", one)
per_sample = jax.jit(jax.vmap(jax.grad(sample_loss), (None, 0, 0)))
g = per_sample(p_ood, h, z.argmax(axis=1))
print("of all:", g.shape)

# %% [markdown]
# ### The closed form
#
# $L = d_{\hat y} + \log \sum_j e^{-d_j}$, and only $d_{ood}$ depends on $p_{ood}$. So
#
# $$g = s \cdot \frac{h - p_{ood}}{\|h - p_{ood}\|}, \qquad s = \mathrm{softmax}(-d)_{ood}.$$
#
# The gradient points from $p_{ood}$ to the sample. Its length $s$ is the probability of "none of
# them", between 0 and 1. $\hat y$ has dropped out.


# %%
def closed_form(features):
    every = jnp.concatenate([prototypes, p_ood[None]])
    distances = jnp.linalg.norm(features[:, None] - every[None], axis=2)
    s = jax.nn.softmax(-distances, axis=1)[:, -1:]
    return s * (features - p_ood[None]) / distances[:, -1:]


close(closed_form(h), g)
close(gj.ood_gradients(h, prototypes, p_ood), g)
close(per_sample(p_ood, h, (z.argmax(axis=1) + 1) % 3), g)  # any other class: the same

# %% [markdown]
# Drawn in the feature space: the shades are the length $s$; the arrows are gradients of some
# training samples (black) and of the OOD samples (red), drawn from where each sample lies.

# %%
unknown = {name: backbone(jnp.asarray(images)).features for name, images in ood.items()}
everything = np.concatenate([h, *unknown.values()])
low, high = everything.min(axis=0) - 1, everything.max(axis=0) + 1
across, up = np.meshgrid(np.linspace(low[0], high[0], 80), np.linspace(low[1], high[1], 80))
grid = jnp.asarray(np.stack([across.ravel(), up.ravel()], axis=1), jnp.float32)
lengths = jnp.linalg.norm(closed_form(grid), axis=1).reshape(across.shape)

figure, place = plt.subplots(figsize=(6.5, 5.2))
shades = place.contourf(across, up, lengths, 15, cmap="Blues")
figure.colorbar(shades, label="length of the gradient, $s$", shrink=0.8)
for features, color in [(h[:: count // 8], "black"), *((f[:8], "red") for f in unknown.values())]:
    arrows = np.asarray(closed_form(features)).T
    place.quiver(*np.asarray(features).T, *arrows, color=color, scale=6, width=0.004, zorder=2)
draw_prototypes(place)
place.set(title="gradients with respect to the red star", aspect="equal")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## 4. The bank and the score
#
# The bank holds the gradients of the correctly classified training samples. The score of a sample
# is the distance from its gradient to the nearest of them.

# %%
correct = np.asarray(z).argmax(axis=1) == labels
bank = gj.build_bank(g[correct])
known = backbone(jnp.asarray(test)).features


def score(features):
    return gj.nearest_distances(gj.ood_gradients(features, prototypes, p_ood), bank)


by_hand = np.linalg.norm(np.asarray(closed_form(known))[:, None] - g[correct][None], axis=2)
close(score(known), by_hand.min(axis=1))

# %% [markdown]
# Left, the space of gradients, where distances are measured: it lies within the unit disc, and
# training samples keep to narrow beams that leave room for others. Right, what this means in
# the feature space: the score of every point.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5))
left.scatter(*np.asarray(g[correct]).T, c=COLORS[labels[correct]], s=8, label="bank")
for (name, features), marker in zip(unknown.items(), "x+", strict=True):
    drawn = np.asarray(closed_form(features[:100])).T
    left.scatter(*drawn, c="black", marker=marker, s=20, linewidths=0.8, label=f"OOD: {name}")
left.plot(0, 0, "r*", markersize=14, markeredgecolor="black")
left.set(title="gradients $g$", aspect="equal")
left.legend(loc="best", fontsize=8)

levels = right.contourf(across, up, score(grid).reshape(across.shape), 15, cmap="magma_r")
figure.colorbar(levels, label="score (higher: more OOD)", shrink=0.8)
right.scatter(*np.asarray(h).T, c=COLORS[labels], s=4)
for features, marker in zip(unknown.values(), "x+", strict=True):
    drawn = np.asarray(features[:100]).T
    right.scatter(*drawn, c="deepskyblue", marker=marker, s=18, linewidths=0.8)
draw_prototypes(right)
right.set(title="score in the feature space", aspect="equal")
figure.tight_layout()
plt.show()

# %%
figure, place = plt.subplots(figsize=(6.5, 3.2))
scores = {"test (ID)": np.asarray(score(known))}
scores |= {f"OOD: {name}": np.asarray(score(features)) for name, features in unknown.items()}
bins = np.linspace(0, max(found.max() for found in scores.values()), 40)
for name, found in scores.items():
    weights = np.full(len(found), 1 / len(found))
    place.hist(found, bins, weights=weights, histtype="step", linewidth=1.5, label=name)
place.set(xlabel="score (higher: more OOD)", ylabel="share of the set")
place.legend()
figure.tight_layout()
plt.show()
for name in list(scores)[1:]:
    print(f"{name:12} AUROC {gj.ood_metrics(scores['test (ID)'], scores[name])['auroc']:.3f}")

# %% [markdown]
# ## 5. The same in one call
#
# `gj.detectors.grood` is these steps as a pair of pure functions, `fit` and `score`. With all
# training samples mixed, it gives the same scores. Only the form of the gradient differs: the
# library computes the distances to the class prototypes once, outside `grad`, for they do not
# depend on $p_{ood}$; differentiating through all of them costs much where there are many classes.


# %%
def read(images, labels, rows=None):
    rows = np.arange(len(images)) if rows is None else rows
    return [Batch(images[rows], labels[rows], np.ones(len(rows), bool))]


fitted = fitting.fit_detectors(
    backbone,
    partial(read, train, labels),
    {"grood": gj.detectors.grood(mixup_samples=len(train))},
    key=jax.random.key(0),
)
grood = fitted.detectors["grood"]
close(grood.state.ood_prototype, p_ood)
found = fitting.extract(backbone, read(test, np.zeros(len(test), np.int32)))
close(fitting.score(grood.detector, grood.state, found), score(known))

# %% [markdown]
# ## Things to try
#
# - `gj.detectors.grood(ood_prototype="prototype-mean")`: the mean of the prototypes, no mix-up.
# - Move the OOD points: where are samples not recognised, and why? (Look at the beams.)
# - Give the features more dimensions, and draw the gradients by their principal axes, as the
#   [quickstart](quickstart.ipynb) does.
