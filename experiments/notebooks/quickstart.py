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
# # Quickstart: a classifier that says what it does not know
#
# [![Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/grood-jax/grood-jax/blob/main/experiments/notebooks/quickstart.ipynb)
#
# A classifier gives every image one of its classes, also where none of them is right. This notebook
# trains a small network on the handwritten digits 0 to 7 and teaches it to say *"I do not know
# this"*: about the digits 8 and 9, about photographs, about noise. It takes five minutes, and all
# images come with the packages: nothing is downloaded.
#
# **Scores are higher for more out-of-distribution (OOD) images.** All figures are fractions.

# %%
import os
import subprocess
import sys

if "google.colab" in sys.modules:  # elsewhere: pip install 'grood-jax[report]'
    package = "grood-jax[report] @ git+https://github.com/grood-jax/grood-jax"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

SMALL = os.environ.get("GROOD_SMALL") == "1"  # fewer images and steps, as the tests run it

# %%
from dataclasses import replace
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import grood_jax as gj
from grood_jax import benchmarks
from grood_jax.evaluation import fitting
from grood_jax.passes.reading import Reader
from grood_jax.train import TrainConfig, run
from grood_jax.training.loop import recipe

print(jax.devices())

# %% [markdown]
# ## The images
#
# *In distribution* (ID) are the digits 0 to 7. Of the others, the digits 8 and 9 are *near* OOD,
# for they look alike; photographs and noise are *far* OOD. The network never sees any of these.

# %%
data = benchmarks.open_benchmark(benchmarks.get("digits"))
unknown_sets = {name: images for name, (group, images) in data.ood.items()}
print(len(data.train), "training and", len(data.test), "test images")

shown = {"ID: digits 0–7": data.test} | {f"OOD: {name}": s for name, s in unknown_sets.items()}
figure, rows = plt.subplots(len(shown), 8, figsize=(8, 4.6))
for row, (name, images) in zip(rows, shown.items(), strict=True):
    pixels, _ = images.read(np.linspace(0, len(images) - 1, 8).astype(int))
    for place, image in zip(row, pixels, strict=True):
        place.imshow(image[..., 0], cmap="gray", vmin=0, vmax=255)
        place.axis("off")
    row[0].set_title(name, loc="left", fontsize=9)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## A classifier
#
# Three convolutions, trained in seconds. A checkpoint is written after each epoch; run the cell
# again, and it is read back.

# %%
options = recipe("digits")
if SMALL:
    options = replace(options, epochs=6)
folder = Path("checkpoints") / f"quickstart-{options.epochs}-epochs"
loaded = run(TrainConfig(dataset="digits", output_dir=folder, options=options))

# %% [markdown]
# ## What it knows
#
# A *backbone* is that network cut in two. GROOD mixes activations at the cut, to learn what images
# between the classes look like. `fit` reads the training images and then sets a threshold on
# *calibration* images that were not trained on: 95 % of new ID images will pass, whatever the
# network.

# %%
backbone = gj.Backbone.from_nnx(loaded.model, cut="layer1")
read = Reader(loaded.spec.preprocessing, 256, progress=False)
held_out, fresh = np.arange(0, len(data.test), 2), np.arange(1, len(data.test), 2)

classifier = gj.OODClassifier.fit(
    backbone,
    read.training(data.train),
    detector=gj.detectors.grood(),
    calibration=read(data.test, "calibration", held_out),
    target_tpr=0.95,
    key=jax.random.key(0),
)


def normalized(images, rows):
    return loaded.spec.preprocessing.normalize(images.read(rows)[0])


known = classifier.predict(normalized(data.test, fresh))
unknown = {
    name: classifier.predict(normalized(images, np.arange(min(300, len(images)))))
    for name, images in unknown_sets.items()
}
print(f"{'ID: digits 0-7':22} {1 - known.is_ood.mean():.2f} taken for ID")
for name, answers in unknown.items():
    print(f"{'OOD: ' + name:22} {answers.is_ood.mean():.2f} taken for OOD")

# %% [markdown]
# Each answer has a label, a score, a decision, and a *p-value*: the share of ID images that look
# at least as strange.

# %%
chosen = [(data.test, fresh[:4])]
chosen += [(unknown_sets["digits_8_9"], [0, 1]), (unknown_sets["photographs"], [500, 900])]
pixels = np.concatenate([images.read(np.array(rows))[0] for images, rows in chosen])
answers = classifier.predict(loaded.spec.preprocessing.normalize(pixels))
figure, places = plt.subplots(1, 8, figsize=(10, 1.9))
for i, place in enumerate(places):
    place.imshow(pixels[i, ..., 0], cmap="gray", vmin=0, vmax=255)
    verdict = "unknown" if answers.is_ood[i] else f"a {answers.label[i]}"
    place.set_title(f"{verdict}\np = {answers.p_value[i]:.3f}", fontsize=9)
    place.axis("off")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## How well it tells them apart
#
# The *AUROC* is the probability that an OOD image gets a higher score than an ID image: 0.5 is
# guessing, 1 is perfect. Here GROOD is beside `msp`, the classic baseline, one minus the highest
# softmax probability. All detectors share one forward pass.

# %%
fitted = fitting.fit_detectors(
    backbone,
    read.training(data.train),
    {"grood": gj.detectors.grood(), "msp": gj.detectors.msp()},
    key=jax.random.key(0),
)
outputs = {"digits 0–7": fitting.extract(backbone, read(data.test, "test"))} | {
    name: fitting.extract(backbone, read(images, name)) for name, images in unknown_sets.items()
}
scores = {
    detector: {name: fitting.score(f.detector, f.state, found) for name, found in outputs.items()}
    for detector, f in fitted.detectors.items()
}
for detector, by_set in scores.items():
    for name in unknown_sets:
        metrics = gj.ood_metrics(by_set["digits 0–7"], by_set[name])
        print(f"{detector:6} {name:14} AUROC {metrics['auroc']:.3f}  FPR@95 {metrics['fpr95']:.3f}")

# %%
colors = dict(zip(outputs, ["black", "tab:orange", "tab:blue", "tab:green"], strict=True))
figure, places = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for place, (detector, by_set) in zip(places, scores.items(), strict=True):
    bins = np.linspace(0, max(s.max() for s in by_set.values()), 40)
    for name, found in by_set.items():
        style = {"histtype": "step", "linewidth": 1.5, "color": colors[name], "label": name}
        place.hist(found, bins, weights=np.full(len(found), 1 / len(found)), **style)
    place.set(title=detector, xlabel="score (higher: more OOD)", ylabel="share of the set")
    place.set_yscale("log")
figure.legend(*places[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()

# %% [markdown]
# ## The space of gradients
#
# GROOD looks at each image's *gradient* with respect to a point that stands for "none of the
# classes", and measures how far it is from the gradients of the training images. Here they are, on
# their two principal axes. Step by step: [anatomy_of_grood](anatomy_of_grood.ipynb).

# %%
grood = fitted.detectors["grood"]
gradients = {
    name: np.asarray(gj.ood_gradients(o.features, *prototypes))
    for prototypes in [(grood.state.class_prototypes, grood.state.ood_prototype)]
    for name, o in outputs.items()
}
bank = np.asarray(gj.bank_rows(grood.state.bank))
center = bank.mean(axis=0)
axes = np.linalg.svd(bank - center[None], full_matrices=False)[2][:2]

figure, places = plt.subplots(1, 4, figsize=(12, 3.2), sharex=True, sharey=True)
for place, (name, found) in zip(places, gradients.items(), strict=True):
    place.scatter(*((bank - center[None]) @ axes.T).T, s=5, color="0.8", label="training bank")
    drawn = found[:: max(1, len(found) // 300)]
    place.scatter(*((drawn - center[None]) @ axes.T).T, s=7, color=colors[name])
    place.set(title=name, xlabel="first axis")
places[0].set_ylabel("second axis")
places[0].legend(loc="best", fontsize=8)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## The most and the least surprising
#
# Photographs by their score: those that pass most easily for digits, and those that do least.

# %%
order = np.argsort(scores["grood"]["photographs"])
figure, rows = plt.subplots(2, 8, figsize=(8, 2.6))
for row, chosen, title in zip(rows, [order[:8], order[-8:]], ["lowest", "highest"], strict=True):
    pixels, _ = unknown_sets["photographs"].read(chosen)
    for place, image in zip(row, pixels, strict=True):
        place.imshow(image[..., 0], cmap="gray", vmin=0, vmax=255)
        place.axis("off")
    row[0].set_title(f"{title} scores", loc="left", fontsize=9)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Where to go from here
#
# - [Your own model](your_own_model.ipynb): Flax NNX, Linen, or any function.
# - [CIFAR-10 on all cores of a TPU](tpu_cifar10.ipynb).
# - `classifier.save("folder")`, `classifier.export("model.jax")`: the classifier as one file.
