"""Detectors in one word of a command line."""

import re
import time

import pytest

from grood_jax import detectors
from grood_jax.detectors.spec import parse_spec


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("msp", ("msp", {})),
        ("grood:k=5", ("grood", {"k": 5})),
        ("grood:k=5,ood_prototype=noise", ("grood", {"k": 5, "ood_prototype": "noise"})),
        (
            "grood:interpolate=true,mixup_weight=0.3",
            ("grood", {"interpolate": True, "mixup_weight": 0.3}),
        ),
        ("grood:interpolate=False", ("grood", {"interpolate": False})),
        ("grood:present_classes=[0,1,3],k=2", ("grood", {"present_classes": [0, 1, 3], "k": 2})),
        (
            "grood:ood_prototype=[mixup,prototype-mean],k=2",
            ("grood", {"ood_prototype": ["mixup", "prototype-mean"], "k": 2}),
        ),
        ("grood:ood_prototype=(mixup, noise)", ("grood", {"ood_prototype": ["mixup", "noise"]})),
        ("grood:ood_prototype=[mixup,,noise]", ("grood", {"ood_prototype": "[mixup,,noise]"})),
        ("gram:powers=(1, 2)", ("gram", {"powers": [1, 2]})),
        ("grood:present_classes=None", ("grood", {"present_classes": None})),
        ("grood:", ("grood", {})),
    ],
)
def test_words(text, expected):
    assert parse_spec(text) == expected


@pytest.mark.parametrize("text", ["grood:k", "grood:k=", "grood:=3", "grood:k=1,,k=2"])
def test_options_without_a_value(text):
    with pytest.raises(ValueError, match="expected name or name:option=value"):
        parse_spec(text)


def test_an_option_twice():
    with pytest.raises(ValueError, match="'k' once"):
        parse_spec("grood:k=1,k=2")


def test_every_default_can_be_written_out():
    for name in detectors.names():
        words = ",".join(f"{k}={v}" for k, v in detectors.options(name).items())
        read, options = parse_spec(f"{name}:{words}")
        assert detectors.create(read, **options).options == detectors.create(name).options


def test_what_is_no_json_is_a_word():
    for text in ("[" * 100_000, "1" * 5000):
        assert parse_spec(f"grood:k={text}") == ("grood", {"k": text})


def test_long_descriptions_are_read_in_one_pass():
    def seconds(count):
        text = "grood:" + ",".join(f"a{i}=[{i},0]" for i in range(count))
        tries = []
        for _ in range(3):
            start = time.process_time()
            assert parse_spec(text)[1][f"a{count - 1}"] == [count - 1, 0]
            tries.append(time.process_time() - start)
        return min(tries)

    # Eight times as long takes about eight times as long, not 64 times.
    assert seconds(20_000) < 24 * seconds(2_500)


@pytest.mark.parametrize("text", [None, 3, b"grood"])
def test_no_description_at_all(unchecked, text):
    with pytest.raises(TypeError, match=re.escape(f"detector is {text!r}; expected a string")):
        parse_spec(text)
