"""Benchmarks whose networks train in a minute on a CPU."""

from functools import partial

from grood_jax.benchmarks.base import Benchmark, tfds
from grood_jax.data import Preprocessing, builtin
from grood_jax.data.finding import SetSpec
from grood_jax.data.npz import NpzSource
from grood_jax.data.tfds import TfdsSource

DIGITS = Benchmark(
    name="digits",
    num_classes=builtin.ID_CLASSES,
    # Mean and deviation of the training part's 8×8 images.
    preprocessing=Preprocessing(8, 1, mean=(0.304,), std=(0.377,)),
    train=SetSpec("digits", partial(builtin.digits, "train")),
    test=SetSpec("digits", partial(builtin.digits, "test")),
    near=(SetSpec("digits_8_9", partial(builtin.digits, "near")),),
    far=(
        SetSpec("photographs", partial(builtin.photographs, "test")),
        SetSpec("uniform_noise", partial(builtin.uniform_noise, 8, 1)),
    ),
    validation=SetSpec("photographs", partial(builtin.photographs, "validation")),
    model="small",
    trains_on_the_spot=True,
    class_names=tuple("01234567"),
)

FASHION_MNIST = Benchmark(
    name="fashion_mnist",
    num_classes=10,
    # Mean and deviation of the official training images, as torchvision's examples have them.
    preprocessing=Preprocessing(28, 1, mean=(0.2860,), std=(0.3530,)),
    train=tfds("fashion_mnist", "train"),
    test=tfds("fashion_mnist", "test"),
    near=(),
    far=(
        tfds("mnist", "test"),
        SetSpec(
            "emnist_letters",
            (
                TfdsSource("emnist_letters", "test", in_catalogue=False),
                TfdsSource("emnist/letters", "test"),
                NpzSource("emnist_letters_test.npz"),
            ),
        ),
    ),
    validation=None,
    model="small",
    trains_on_the_spot=True,
    class_names=tuple(
        "t-shirt/top trouser pullover dress coat sandal shirt sneaker bag ankle-boot".split()
    ),
)
