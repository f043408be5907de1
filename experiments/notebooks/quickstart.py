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
# A classifier gives every image one of its classes, also where none of them is right. Here a small
# network that has learnt the handwritten digits 0 to 7 is taught to say *"I do not know this"*:
# about the digits 8 and 9, about photographs, about noise. The network and all images come with the
# packages: nothing is trained and nothing downloaded.
#
# **Scores are higher for more out-of-distribution (OOD) images.** All figures are fractions.

# %%
import subprocess
import sys

if "google.colab" in sys.modules:  # elsewhere, in a checkout: pip install -e '.[report]'
    package = "grood-jax[report] @ git+https://github.com/grood-jax/grood-jax"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import grood_jax as gj

# %% [markdown]
# ## A network and images
#
# *In distribution* (ID) are the digits 0 to 7. Of the others, the digits 8 and 9 are *near* OOD,
# for they look alike; photographs and noise are *far* OOD. The network has seen none of these, nor
# the digits for calibration and test.

# %%
digits = gj.datasets.digits()
print(digits)

# %% [markdown]
# Eight of each kind. With 8×8 pixels even the photographs are no more than grey shapes:

# %%
unknown = digits.ood["near"] | digits.ood["far"]
shown = {"ID: digits 0–7": digits.test.images} | {f"OOD: {n}": own for n, own in unknown.items()}


def draw(places, images, titles):
    for place, image, title in zip(places, images, titles, strict=True):
        place.imshow(image[..., 0], cmap="gray", vmin=0, vmax=255)
        place.set_title(title, loc="left", fontsize=9)
        place.axis("off")


figure, rows = plt.subplots(len(shown), 8, figsize=(8, 4.6), layout="constrained")
for row, (name, images) in zip(rows, shown.items(), strict=True):
    draw(row, images[:: len(images) // 8][:8], [name, *[""] * 7])
plt.show()

# %% [markdown]
# ## A table
#
# A *backbone* is the network cut in two: GROOD mixes activations at the cut, to learn what images
# between the classes look like. `gj.evaluate` runs the network once over each set, fits detectors
# on the training images, and has each of them tell the test images from the others.
#
# The *AUROC* is the probability that an OOD image gets a higher score than an ID image: 0.5 is
# guessing, 1 is perfect. `msp` is the classic baseline, one minus the highest softmax probability.

# %%
prepare = digits.preprocessing  # mean, standard deviation and size: from bytes to what it takes
backbone = gj.Backbone.from_nnx(digits.model, cut="layer1")
sets = digits.train, digits.test, digits.ood
table = gj.evaluate(backbone, *sets, detectors=["grood", "msp"], preprocessing=prepare)
print(table)

# %% [markdown]
# All scores are in `table.scores`. To MSP (right) a quarter of the photographs and of the noise
# look like digits: the network is sure of them, and their score is nearly 0. GROOD (left) has few
# of them there. But many of the digits 8 and 9 (orange) have scores that the test images (black)
# have too; which these are is seen further below.

# %%
colors = {"test": "black", "digits_8_9": "tab:orange"}
colors |= {"photographs": "tab:blue", "uniform_noise": "tab:green"}
figure, places = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for place, (detector, scores) in zip(places, table.scores.items(), strict=True):
    limits = 0, max(own.max() for own in scores.values())
    for name, own in scores.items():
        share = [1 / len(own)] * len(own)
        style = {"histtype": "step", "color": colors[name], "label": name}
        place.hist(own, bins=40, range=limits, weights=share, **style)
    place.set(title=detector, xlabel="score (higher: more OOD)", yscale="log")
places[0].set_ylabel("share of the set")
figure.legend(*places[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()

# %% [markdown]
# ## Decisions
#
# Scores are not decisions. `OODClassifier` sets a threshold on *calibration* images that were not
# trained on: 95 % of new ID images will pass, whatever the network.

# %%
classifier = gj.OODClassifier.fit(
    backbone,
    digits.train,
    detector=gj.detectors.grood(),
    calibration=digits.calibration.images,
    preprocessing=prepare,
    target_tpr=0.95,
    key=jax.random.key(0),
)
known = classifier.predict(digits.test.images)
print(f"{'test':14} {1 - known.is_ood.mean():.2f} taken for ID")
for name, images in unknown.items():
    print(f"{name:14} {classifier.predict(images).is_ood.mean():.2f} taken for OOD")

# %% [markdown]
# Each answer has a label, a score, a decision, and a *p-value*: the share of ID images that look
# at least as strange. Three digits get their names, an 8 and two photographs are unknown. Not all
# goes well: the 9 passes for a 5 and the noise for a 0.

# %%
chosen = [digits.test.images[:3], unknown["digits_8_9"][:2]]
chosen += [unknown["photographs"][[500, 900]], unknown["uniform_noise"][:1]]
pixels = [image for images in chosen for image in images]
figure, places = plt.subplots(1, len(pixels), figsize=(9, 1.7), layout="constrained")
answers = [classifier.predict(image[None]) for image in pixels]
said = ["unknown" if answer.is_ood[0] else f"a {answer.label[0]}" for answer in answers]
draw(places, pixels, [f"{s}\np = {a.p_value[0]:.3f}" for s, a in zip(said, answers, strict=True)])
plt.show()

# %% [markdown]
# ## The space of gradients
#
# GROOD looks at each image's *gradient* with respect to a point that stands for "none of the
# classes", and measures how far it is from the gradients of the training images. Here they are, on
# their two principal axes. Those of the training images (grey) lie around the origin, the cross,
# and those of the test images (black) among them. Photographs lie in an arc about the grey, noise
# on one side, and the digits 8 and 9 all around, though many of them are in the grey. Step by step:
# [anatomy_of_grood](anatomy_of_grood.ipynb).

# %%
fitted = classifier.state
network = jax.jit(lambda images: backbone(images))
outputs = {
    name: network(prepare.normalize(images))
    for name, images in ({"test": digits.test.images} | unknown).items()
}
gradients = {
    name: gj.ood_gradients(own.features, fitted.class_prototypes, fitted.ood_prototype)
    for name, own in outputs.items()
}
bank = gj.bank_rows(fitted.bank)
axes = np.linalg.svd(bank, full_matrices=False)[2][:2].T

figure, places = plt.subplots(
    1, 4, figsize=(10, 2.9), sharex=True, sharey=True, layout="constrained"
)
for place, (name, own) in zip(places, gradients.items(), strict=True):
    place.scatter(*(bank @ axes).T, s=5, color="0.8", label="training")
    place.scatter(*(np.asarray(own)[:: -(-len(own) // 300)] @ axes).T, s=7, color=colors[name])
    place.plot(0, 0, "+", color="black")
    place.set(title=name, xlabel="first axis")
places[0].set_ylabel("second axis")
places[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Why GROOD is below MSP on the digits 8 and 9
#
# scikit-learn, from which they come, says which of them is an 8. The two are no pair: on the 8s
# GROOD is above MSP, on the 9s below.

# %%
from sklearn.datasets import load_digits

written = load_digits().target
written = written[written > 7]
near = {detector: scores["digits_8_9"] for detector, scores in table.scores.items()}
for digit in (8, 9):
    for detector, own in near.items():
        metrics = gj.ood_metrics(table.scores[detector]["test"], own[written == digit])
        print(f"{digit}: {detector:5} AUROC {metrics['auroc']:.3f}")

# %% [markdown]
# Where a threshold lets 95 % of the test images pass, which images does GROOD miss that MSP sees?
# Nearly all are 9s, and for most of them the network hesitates between 3 and 5:

# %%
passes = {name: own <= np.quantile(table.scores[name]["test"], 0.95) for name, own in near.items()}
missed = passes["grood"] & ~passes["msp"]
top = np.argsort(outputs["digits_8_9"].logits, axis=1)[:, -2:]
between = [sorted(pair) == [3, 5] for pair in top[missed].tolist()]
print(missed.sum(), "missed,", (written[missed] == 9).sum(), "of them 9s;", end=" ")
print(sum(between), "have 3 and 5 as their two highest logits")
figure, places = plt.subplots(1, 8, figsize=(8, 1.4), layout="constrained")
labels = [f"{second} or {first}?" for second, first in top[missed][::11][:8].tolist()]
draw(places, unknown["digits_8_9"][missed][::11][:8], labels)
plt.show()

# %% [markdown]
# MSP asks whether *one* class stands out. The length of GROOD's gradient is the weight that the
# point for "none of the classes" has in a softmax over distances to all prototypes: it is small
# wherever that point is farther away than the classes, be they one or two.
#
# On the left, the images that GROOD misses (red) have gradients as short as those of test images
# (grey), although their softmax probabilities are lower. On the right is why: they are farther from
# their class than test images, but about as far from the point for "none of the classes". Most of
# the other 8s and 9s (orange) are closer to that point. It is made of mixtures of classes, and
# these 9s are not where it lies. It is so with this network; with those of
# [your_own_model](your_own_model.ipynb) GROOD is not below MSP there.


# %%
def apart(features, points):
    return ((features[:, None] - points[None]) ** 2).sum(axis=-1).min(axis=1) ** 0.5


kinds = {
    "test images": ("test", ..., "0.7"),
    "8 and 9, others": ("digits_8_9", ~missed, "tab:orange"),
    "8 and 9, missed by GROOD, seen by MSP": ("digits_8_9", missed, "tab:red"),
}
print("medians of softmax probability, gradient, distance to the class, and to none")
figure, places = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for label, (name, rows, color) in kinds.items():
    features = outputs[name].features[rows]
    confidence = jax.nn.softmax(outputs[name].logits[rows]).max(axis=1)
    length = (gradients[name][rows] ** 2).sum(axis=1) ** 0.5
    class_apart = apart(features, fitted.class_prototypes)
    ood_apart = apart(features, fitted.ood_prototype[None])
    places[0].scatter(confidence, length, s=7, color=color, label=label)
    places[1].scatter(class_apart, ood_apart, s=7, color=color)
    measured = confidence, length, class_apart, ood_apart
    print(f"{label:38}", *(f"{jax.numpy.median(own):.2f}" for own in measured))
places[0].set(xlabel="highest softmax probability", ylabel="length of the gradient")
places[1].set(xlabel="distance to the nearest class", ylabel='distance to "none of the classes"')
figure.legend(*places[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
plt.show()

# %% [markdown]
# ## The most and the least surprising
#
# Photographs by GROOD's score: those that pass most easily for digits are mostly grainy and of a
# middle grey, those that do least mostly dark. Nothing of what they show looks like a digit.

# %%
order = table.scores["grood"]["photographs"].argsort()
figure, rows = plt.subplots(2, 8, figsize=(8, 2.6), layout="constrained")
for row, chosen, title in zip(rows, [order[:8], order[-8:]], ["lowest", "highest"], strict=True):
    draw(row, unknown["photographs"][chosen], [f"{title} scores", *[""] * 7])
plt.show()

# %% [markdown]
# ## Where to go from here
#
# - [Your own model](your_own_model.ipynb): Flax NNX, Linen, an encoder, or any function.
# - [CIFAR-10 on all cores of a TPU](tpu_cifar10.ipynb).
# - `table.to_latex()`, `table.compare("grood", "msp")`, `table.report("folder")`: for papers.
# - `classifier.save("folder")`, `classifier.export("model.jax")`: the classifier as one file.
