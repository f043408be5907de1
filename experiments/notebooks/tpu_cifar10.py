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
# # CIFAR-10 on all cores of a TPU
#
# [![Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/grood-jax/grood-jax/blob/main/experiments/notebooks/tpu_cifar10.ipynb)
#
# CIFAR-10 and its OOD sets from [tensorflow-datasets](https://www.tensorflow.org/datasets), with
# each batch divided over all devices in the forward pass, and GROOD's bank of gradients divided
# over them in the search. Written for the eight cores of a TPU; it runs as it is on one GPU,
# several, or a CPU. In Colab: *Runtime → Change runtime type → TPU*.
#
# To try eight devices on a CPU, start Python with
# `XLA_FLAGS=--xla_force_host_platform_device_count=8`.

# %%
import os
import subprocess
import sys

if "google.colab" in sys.modules:  # elsewhere, in a checkout: pip install -e '.[report]'
    package = "grood-jax[report] @ git+https://github.com/grood-jax/grood-jax"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

SMALL = os.environ.get("GROOD_SMALL") == "1"  # fewer images and steps, as the tests run it

# %%
import time
from dataclasses import replace
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import grood_jax as gj
from grood_jax import benchmarks, models
from grood_jax.evaluation import fitting
from grood_jax.passes import devices
from grood_jax.passes.reading import Reader
from grood_jax.storage import checkpoints
from grood_jax.training import loop as training
from grood_jax.training.loop import TrainOptions

print(f"{jax.device_count()} devices:", jax.devices())

# %% [markdown]
# ## The images
#
# They are looked for in `TFDS_DATA_DIR` (`~/tensorflow_datasets` without it), prepared as
# ArrayRecord. In Colab what is missing is downloaded and prepared first, which takes some minutes;
# elsewhere set `download=True`. OOD sets that cannot be had are left out and named.

# %%
data = benchmarks.open_benchmark(
    benchmarks.get("cifar10"),
    source="tfds",
    download="google.colab" in sys.modules,
    skip_missing=True,
    limit=512 if SMALL else None,
)
print(len(data.train), "training and", len(data.test), "test images")
print("OOD:", {name: f"{group}, {len(images)}" for name, (group, images) in data.ood.items()})
print("left out:", data.skipped or "none")

# %%
shown = {"ID: CIFAR-10": data.test} | {f"OOD: {name}": s for name, (_, s) in data.ood.items()}
figure, rows = plt.subplots(len(shown), 10, figsize=(8, 1.05 * len(shown)))
for row, (name, images) in zip(rows, shown.items(), strict=True):
    pixels, _ = images.read(np.linspace(0, len(images) - 1, 10).astype(int))
    for place, image in zip(row, pixels, strict=True):
        place.imshow(image)
        place.axis("off")
    row[0].set_title(name, loc="left", fontsize=9)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## A classifier
#
# A checkpoint of `python -m grood_jax.train` or of `python -m grood_jax.models.import_torch`, if
# `CHECKPOINT` names one. Otherwise a ResNet-20 is trained here for ten epochs, on one device. (In
# the small setting it is a smaller network that has hardly learned anything, and the figures say
# so.)

# %%
CHECKPOINT = None  # "checkpoints/resnet20"

if CHECKPOINT is not None:
    loaded = checkpoints.load_model(Path(CHECKPOINT))
else:
    options = TrainOptions(
        epochs=4 if SMALL else 10,
        batch_size=64 if SMALL else 128,
        schedule="one-cycle",
        learning_rate=0.05 if SMALL else 0.2,
    )
    loaded = training.train(
        data.train,
        benchmarks.get("cifar10").preprocessing,
        dataset="cifar10",
        model="small" if SMALL else "resnet20",
        num_classes=10,
        options=options,
        directory=Path("checkpoints") / f"tpu_cifar10{'-small' if SMALL else ''}",
        say=print,
    )

# %% [markdown]
# ## The forward pass on all devices
#
# `devices.spread` puts the network's arrays on each device. From then on every batch is divided
# by rows: each device runs the very program that one device alone would run, and nothing travels
# between them. So the results are the same.

# %%
cut = models.stages(loaded.spec.model)[0]
one_device = gj.Backbone.from_nnx(loaded.model, cut=cut)
backbone = devices.spread(one_device)
read = Reader(loaded.spec.preprocessing, 256 if SMALL else 1024, progress=False)

batch = next(iter(read(data.test, "test")))
divided = devices.divided(batch.images, devices.mesh_of(backbone))
if isinstance(divided, jax.Array):
    for shard in divided.addressable_shards:
        print(shard.device, "has", shard.data.shape)


def timed(name, function):
    function()  # compiles
    start = time.perf_counter()
    found = function()
    print(f"{name}: {time.perf_counter() - start:.2f} s")
    return found


alone = timed("one device", lambda: fitting.extract(one_device, read(data.test, "test")))
known, labels = timed(
    "all devices", lambda: fitting.extract_labelled(backbone, read(data.test, "test"))
)
difference = np.abs(alone.features - known.features).max()
assert difference <= 1e-5 * np.abs(alone.features).max()
print("largest difference of the features:", difference)
print("accuracy:", (known.logits.argmax(axis=1) == labels).mean())

# %% [markdown]
# ## GROOD, its bank on all devices
#
# Fitting runs the same divided passes. Then the bank's rows are divided: each device searches its
# own and sends its nearest distance, four bytes a query. The search stays exact.

# %%
fitted = fitting.fit_detectors(
    backbone,
    read.training(data.train),
    {"grood": gj.detectors.grood(), "msp": gj.detectors.msp()},
    key=jax.random.key(0),
)
grood, msp = fitted.detectors["grood"], fitted.detectors["msp"]
mesh = jax.make_mesh((jax.device_count(),), ("bank",))
bank_rows = np.asarray(gj.bank_rows(grood.state.bank))
divided_state = replace(grood.state, bank=gj.shard_bank(bank_rows, mesh))
print(f"{bank_rows.shape} in the bank, about {len(bank_rows) // mesh.size} rows a device")

prototypes = grood.state.class_prototypes, grood.state.ood_prototype
queries = gj.ood_gradients(known.features, *prototypes)
whole = gj.nearest_distances(queries, grood.state.bank)
shared = gj.nearest_distances(queries, divided_state.bank)
assert np.array_equal(whole, shared)
print("the same distances, bit for bit")

# %% [markdown]
# ## Results

# %%
outputs = {
    name: fitting.extract(backbone, read(images, name)) for name, (_, images) in data.ood.items()
}
scores = {}
for detector, (fit, state) in {"grood": (grood, divided_state), "msp": (msp, msp.state)}.items():
    scores[detector] = {"CIFAR-10": fitting.score(fit.detector, state, known)}
    for name, found in outputs.items():
        scores[detector][name] = fitting.score(fit.detector, state, found)
        metrics = gj.ood_metrics(scores[detector]["CIFAR-10"], scores[detector][name])
        group = data.ood[name][0]
        print(
            f"{detector:6} {group:5} {name:14} AUROC {metrics['auroc']:.3f}  "
            f"FPR@95 {metrics['fpr95']:.3f}"
        )

# %%
figure, places = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
for place, (detector, by_set) in zip(places, scores.items(), strict=True):
    bins = np.linspace(
        min(found.min() for found in by_set.values()),
        np.quantile(np.concatenate(list(by_set.values())), 0.995),
        50,
    )
    for name, found in by_set.items():
        style = {"color": "black", "linewidth": 2.5} if name == "CIFAR-10" else {"linewidth": 1.2}
        weights = np.full(len(found), 1 / len(found))
        place.hist(found, bins, weights=weights, histtype="step", label=name, **style)
    place.set(title=detector, xlabel="score (higher: more OOD)", ylabel="share of the set")
figure.legend(*places[0].get_legend_handles_labels(), loc="outside lower center", ncols=7)
plt.show()

# %% [markdown]
# ## The gradients, on two principal axes of the bank (grey)

# %%
center = bank_rows.mean(axis=0)
axes = np.linalg.svd(bank_rows[:5000] - center[None], full_matrices=False)[2][:2]
figure, places = plt.subplots(1, 1 + len(outputs), figsize=(14, 2.8), sharex=True, sharey=True)
for place, (name, found) in zip(places, ({"CIFAR-10": known} | outputs).items(), strict=True):
    gradients = np.asarray(gj.ood_gradients(found.features, *prototypes))
    step, bank_step = max(1, len(gradients) // 300), max(1, len(bank_rows) // 1000)
    place.scatter(*((bank_rows[::bank_step] - center[None]) @ axes.T).T, s=4, color="0.8")
    place.scatter(*((gradients[::step] - center[None]) @ axes.T).T, s=5)
    place.set_title(name, fontsize=10)
    place.ticklabel_format(scilimits=(-2, 2))
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Larger still
#
# - A pod slice: `jax.distributed.initialize()` first, the same notebook as a script on every host,
#   and `gj.shard_bank` of the rows that each host has.
# - The whole benchmark from the command line: `python -m grood_jax.eval --dataset cifar10`.
