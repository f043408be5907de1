"""Hostile input at every public door: an error that is documented, or the right answer.

Whatever is given, a door answers or raises ValueError (UserError is one) or TypeError from its own
checks; a command line ends with status 0, 1 or 2 and one line that says why. Nothing hangs, and
nothing that a header merely promises is allocated. What is answered is compared with float64 NumPy
or with the answer for a clean copy of the same numbers.

Each door sees few examples, the same in every run. With GROOD_FUZZ_SECONDS=N in the environment
new ones are drawn, and each door goes on for its share of N seconds:

  GROOD_FUZZ_SECONDS=3600 python -m pytest tests/test_fuzz.py -m "" -n 0 -s
"""

import contextlib
import io
import json
import math
import os
import resource
import shutil
import signal
import time
import traceback
import zipfile
import zlib
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_network as tiny
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

import grood_jax as gj
from grood_jax import detectors
from grood_jax.cli import eval as evaluation
from grood_jax.cli import fit as fitting
from grood_jax.cli import predict
from grood_jax.cli import train as training
from grood_jax.conformal import calibration
from grood_jax.data.preprocessing import FORMATS, Preprocessing, decode, fit_pixels
from grood_jax.deploying.ood_classifier import OODClassifier, Prediction
from grood_jax.detectors.spec import parse_spec
from grood_jax.passes.memo import Form
from grood_jax.storage import banks as bank_files
from grood_jax.storage import cache
from grood_jax.support import manifest as manifests
from grood_jax.support.errors import UserError

SECONDS = float(os.environ.get("GROOD_FUZZ_SECONDS", 0))
SLOWEST = 60
"""Seconds that one example may take; a first one compiles."""
ROOM = 2**30
"""Bytes that the process may grow by while it reads hostile files."""

HUGE = 10**400
GIANT = 2**44
SPECIAL = (math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, 1e-45, -1e-40, 1e-38, 1e-30, 1.0, -1.0)
LARGE = (1e10, -1e17, 1e18, 3e18, 1e28, -1e37, 3e37, 3.4e38, 1e39, 1e300)
REAL = "f4 f4 f4 f4 f4 f8 f8 >f4 f2 g i1 i8 u1 u8".split()
OTHER = "? c8 O U3 S2 M8[s] V4".split()
THINGS = (
    *(HUGE, -HUGE, 2**70, 2**63, 2**31, 0, -1, 1, 2, 3, 0.5, 1.5, -0.0, 5e-324, 1e300, math.nan),
    *(math.inf, -math.inf, True, None, "", "x", "nan", b"x", "\0", "ü\n", 1j, object, object()),
    *(np.float32(0.5), np.float32("nan"), np.int8(3), np.uint64(2**63), np.longdouble("1e4000")),
    *(np.array(["mixup"]), np.array([1, 2]), np.array(3), np.zeros((0, 3)), [HUGE], [math.nan]),
)
NESTED = ([], [0], [0, 1], [1] * 5, [[1], [1, 2]], {}, {"a": 1}, (), (1, "a"), range(3), set())

DOORS = {}


def door(examples):
    """Registers what tries one door: a function of ``draw`` and of a `World`."""

    def register(function):
        DOORS[function.__name__] = function, examples
        return function

    return register


@dataclass
class World:
    """What doors need beside what is drawn; made when it is first asked for."""

    folder: Path
    made: dict = field(default_factory=dict)
    cases: int = 0

    def place(self):
        """A new path in a folder of its own."""
        self.cases += 1
        self.latest.mkdir()
        return self.latest / "x"

    @property
    def latest(self):
        return self.folder / f"case {self.cases}"

    def once(self, name, make):
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

    @property
    def classifier(self):
        return self.once("classifier", lambda: fit_classifier())


def fit_classifier(**options):
    given = {
        "train_batches": tiny.pairs(32, 0, 32),
        "detector": detectors.msp(),
        "calibration": [tiny.images(32, 1)],
        "key": jax.random.key(0),
        "target_tpr": 0.9,
    } | options
    return OODClassifier.fit(tiny.backbone(), given.pop("train_batches"), **given)


class Hang(BaseException):
    """Nothing in the library may catch it."""


@contextlib.contextmanager
def in_time(seconds):
    def stop(*_):
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(autouse=True)
def whole_tracebacks():
    """So that an error from inside JAX is known as such."""
    before = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    yield
    jax.config.update("jax_traceback_filtering", before)


def ask(call, errors=(ValueError, TypeError)):
    """What a door answers, or None where it refuses as it says it does.

    Args:
      call: asks.
      errors: what it may raise, from its own checks.
    """
    try:
        return call()
    except errors as error:
        assert str(error).strip(), "an error that says nothing"
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        assert "grood_jax" in Path(last).parts, f"{error!r} comes from {last}"
        return None


# What is drawn.


def one_of(draw, *values):
    return draw(st.sampled_from(values))


def numbers(draw, shape, large=True):
    """Float64 numbers of a scale, some of them special."""
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    found = rng.normal(size=shape) * one_of(draw, 1.0, 1.0, 1e-3, 1e-20, 1e-37, 1e-42, 1e4, 1e15)
    if found.size and draw(st.booleans()):
        special = SPECIAL + LARGE if large else SPECIAL
        for _ in range(draw(st.integers(1, 3))):
            found.flat[draw(st.integers(0, found.size - 1))] = one_of(draw, *special)
    return found


def laid_out(draw, array):
    """The same numbers, in some other memory."""
    match one_of(draw, *"nnrsfmljt"):
        case "r":
            locked = array.copy()
            locked.flags.writeable = False
            return locked
        case "s" if array.ndim:
            return np.repeat(array, 2, axis=0)[::2]
        case "m" if array.ndim:
            return array[::-1].copy()[::-1]
        case "f":
            return np.asfortranarray(array)
        case "l":
            return array.tolist()
        case "j" if array.dtype == np.float32 and array.dtype.isnative:
            return jnp.asarray(array)
        case "t":
            # Unaligned.
            raw = np.zeros(array.nbytes + 1, np.uint8)[1:]
            if array.dtype.kind not in "OV" and array.nbytes:
                view = raw.view(array.dtype).reshape(array.shape)
                view[...] = array
                return view
    return array


def hostile_array(draw, *shape, large=True):
    """Mostly an array of the shape asked for; else of another, of none, or nothing of the kind."""
    kind = one_of(draw, *("r" * 30), *"eewwgGtt")
    if kind == "t":
        return one_of(draw, *THINGS, *NESTED)
    if kind in "gG":
        tail = () if kind == "g" and len(shape) < 2 else shape[1:]
        return np.broadcast_to(np.float32(1), (GIANT, *tail))
    if kind == "e" and shape:
        place = draw(st.integers(0, len(shape) - 1))
        shape = (*shape[:place], 0, *shape[place + 1 :])
    if kind == "w":
        shape = one_of(draw, (), (2,), (*shape, 1), shape[1:], (1, *shape), shape[::-1])
    with np.errstate(all="ignore"):
        values = numbers(draw, shape, large)
        dtype = np.dtype(one_of(draw, *(OTHER if draw(st.integers(0, 11)) == 0 else REAL)))
        if dtype.kind in "iu":
            values = np.clip(np.nan_to_num(values), 0, 100)
        if dtype.kind in "MV":
            array = np.zeros(shape, dtype)
        else:
            array = np.asarray(values).astype(dtype)
    return laid_out(draw, array)


def hostile_classes(draw, count, *shape):
    """Mostly classes below ``count``."""
    if draw(st.integers(0, 3)) == 0:
        return hostile_array(draw, *shape)
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    found = rng.integers(0, count, shape).astype(one_of(draw, "i4", "i8", "u1", "u8", ">i2"))
    if found.size and draw(st.booleans()):
        with np.errstate(all="ignore"):
            found.flat[0] = np.array(one_of(draw, -1, count, 100, 2**62)).astype(found.dtype)
    return laid_out(draw, found)


def thing(draw, *good):
    """One of the values that are right, or anything at all."""
    return one_of(draw, *good) if draw(st.integers(0, 3)) else one_of(draw, *THINGS, *NESTED)


def float32(values):
    """As the library takes them, for float64 references."""
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(np.float32).astype(np.float64)


def mutated(draw, whole):
    """Bytes with some changed, removed, repeated, or cut off."""
    found = bytearray(whole)
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(0, min(len(found) - 1, one_of(draw, 60, 10**6)))))
        match one_of(draw, *"bbbwwdcr"):
            case "b":
                found[place : place + 1] = bytes([draw(st.integers(0, 255))])
            case "w":
                words = b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\0\xff\xff"
                found[place : place + 4] = one_of(draw, *words)
            case "d":
                del found[place : place + draw(st.integers(1, 30))]
            case "c":
                del found[place:]
            case "r":
                found[place:place] = found[place : place + 40]
    return bytes(found)


def altered(draw, value):
    """JSON with something else somewhere in it."""
    odd = (None, -1, 0, 2**70, 1e308, math.nan, "", "x", "\ud800", [], [[]], {}, {"x": 1}, True)
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        name = one_of(draw, *sorted(value))
        if draw(st.integers(0, 4)) == 0:
            return {key: part for key, part in value.items() if key != name}
        return value | {name: altered(draw, value[name])}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], altered(draw, value[place]), *value[place + 1 :]]
    return one_of(draw, *odd)


# Functions of arrays.


@door(100)
def gradients(draw, world):
    given = hostile_array(draw, 3, 4), hostile_array(draw, 2, 4), hostile_array(draw, 4)
    found = ask(lambda: gj.ood_gradients(*given))
    if found is None:
        return
    h, prototypes, center = map(float32, given)
    assert np.isfinite(found).all()
    norms = np.linalg.norm(np.asarray(found, np.float64), axis=1)
    assert (norms <= 1 + 1e-5).all()
    own = np.linalg.norm(h - center, axis=1)
    every = np.concatenate([np.linalg.norm(h[:, None] - prototypes, axis=2), own[:, None]], axis=1)
    largest = every.max(initial=0.0)
    # Beyond, the last digits of the distances decide.
    if largest < 1e3 and (own > 1e-35).all():
        weights = np.exp(every.min(axis=1, keepdims=True) - every)
        share = weights[:, -1] / weights.sum(axis=1)
        expected = share[:, None] * (h - center) / own[:, None]
        np.testing.assert_allclose(found, expected, atol=1e-5 + 1e-5 * largest)


@door(120)
def nearest(draw, world):
    queries, rows = hostile_array(draw, 3, 4), hostile_array(draw, 9, 4)
    k = thing(draw, 1, 9)
    found = ask(lambda: gj.nearest_distances(queries, rows, k))
    if found is None:
        return
    assert np.isfinite(found).all()
    # Not as float64: the square of a difference may be too large even for that.
    apart = (float32(queries)[:, None] - float32(rows)).astype(np.longdouble)
    expected = np.sort(np.sqrt((apart**2).sum(axis=2)), axis=1)[:, int(k) - 1]
    np.testing.assert_allclose(found, expected.astype(np.float64), rtol=1e-5, atol=1e-37)


@door(40)
def banks(draw, world):
    rows, more = hostile_array(draw, 9, 4), hostile_array(draw, 3, 4)
    dtype = one_of(draw, "float32", "float32", "float32", "bfloat16", *THINGS[:30])
    memory = one_of(draw, None, None, None, 2**16, 2**15, 2**70, 2**2000, 1.5, "x")
    bank = ask(lambda: gj.build_bank(rows, dtype=dtype, memory=memory))
    if bank is not None:
        np.testing.assert_array_equal(gj.bank_rows(bank), float32(rows))
    one = bank if draw(st.integers(0, 3)) else one_of(draw, *THINGS, *NESTED, np.zeros((9, 4)))
    key = jax.random.key(0)
    ratio = thing(draw, 0.5, 1.0)
    grown = ask(lambda: gj.grow_bank(one, more))
    if grown is not None:
        expected = np.concatenate([float32(rows), float32(more)])
        np.testing.assert_array_equal(gj.bank_rows(grown), expected)
    ask(lambda: gj.merge_banks(*[one] * draw(st.integers(0, 2))))
    ask(lambda: gj.thin_bank(one, ratio, key))
    ask(lambda: gj.bank_rows(one))
    pieces = one_of(draw, [rows], [rows, more], [], None, (rows, None), 3)
    ask(lambda: gj.build_bank_in_pieces(pieces))
    ask(lambda: gj.shard_bank(rows, thing(draw, None)))


@door(120)
def prototypes(draw, world):
    features, labels = hostile_array(draw, 6, 3), hostile_classes(draw, 2, 6)
    count = thing(draw, 2, 2, 2)
    found = ask(lambda: gj.class_prototypes(features, labels, count))
    if found is None:
        return
    means, counts = map(np.asarray, found)
    assert np.isfinite(means).all()
    values, own = float32(features), np.asarray(labels)
    np.testing.assert_array_equal(counts, np.bincount(own, minlength=int(count)))
    for label in np.unique(own):
        expected, size = values[own == label].mean(axis=0), np.abs(values).max(initial=0.0)
        np.testing.assert_allclose(means[label], expected, rtol=1e-6, atol=1e-7 * size + 1e-37)


@door(120)
def mixing(draw, world):
    hidden, early = hostile_array(draw, 3, 4), hostile_array(draw, 2, 4)
    wide = draw(st.booleans())
    targets = hostile_classes(draw, 2, *((3, 2) if wide else (3,)))
    weight = thing(draw, 0.0, 0.3, 1, np.float64(0.5))
    found = ask(lambda: gj.mix_with_prototypes(hidden, early, targets, weight))
    if found is None:
        return
    assert np.isfinite(found).all()
    share, sample, chosen = float(np.asarray(weight)), float32(hidden), np.asarray(targets)
    if chosen.ndim == 2:
        sample = sample[:, None]
    expected = share * sample + (1 - share) * float32(early)[chosen]
    size = max(np.abs(sample).max(initial=0.0), np.abs(float32(early)).max(initial=0.0))
    np.testing.assert_allclose(found, expected, atol=2e-7 * size + 1e-37)


@door(120)
def metrics(draw, world):
    inside, outside = hostile_array(draw, 5), hostile_array(draw, 4)
    found = ask(lambda: gj.ood_metrics(inside, outside))
    if found is None:
        return
    assert all(0 <= value <= 1 for value in found.values())
    a, b = np.asarray(inside, np.float64)[:, None], np.asarray(outside, np.float64)
    assert found["auroc"] == pytest.approx(((b > a) + 0.5 * (b == a)).mean(), abs=1e-9)


@door(100)
def conformal(draw, world):
    held_out, scores = hostile_array(draw, 7), hostile_array(draw, 5)
    by_class = draw(st.booleans())
    classes = hostile_classes(draw, 2, 7) if by_class else None
    made = ask(lambda: calibration.calibrate(held_out, classes, 2 if by_class else None))
    if made is None:
        return
    rate = thing(draw, 0.5, 0.8, 1)
    own = hostile_classes(draw, 2, 5) if draw(st.integers(0, 4)) and by_class else None
    ask(lambda: calibration.threshold(made, rate))
    found = ask(lambda: calibration.conformal_p_values(made, scores, own))
    decided = ask(lambda: calibration.is_ood(made, scores, rate, own))
    if found is None or not len(found):
        return
    old, new = float32(held_out), float32(scores)
    for i, score in enumerate(new):
        same = old[np.asarray(classes) == np.asarray(own)[i]] if by_class else old
        # Some devices take the smallest numbers for 0.
        flat, least = (np.where(np.abs(x) < np.finfo(np.float32).tiny, 0, x) for x in (same, score))
        shares = [(1 + (a >= b).sum()) / (1 + len(same)) for a, b in ((same, score), (flat, least))]
        assert any(found[i] == pytest.approx(share, rel=1e-6) for share in shares)
        if decided is not None and shares[0] == shares[1]:
            # In decimals: 0.8 is meant, not the binary fraction next to it.
            rank = math.ceil((len(same) + 1) * Fraction(str(rate)))
            assert bool(decided[i]) == (rank <= len(same) and score > np.sort(same)[rank - 1])
    ask(lambda: calibration.false_discovery(found, thing(draw, 0.1, 1)))
    ask(lambda: calibration.false_discovery(scores, 0.1))


@door(40)
def drift(draw, world):
    size, rate = thing(draw, 3, 9), thing(draw, 0.05)
    monitor = ask(lambda: gj.DriftMonitor.start(size, rate))
    if monitor is None:
        return
    for _ in range(3):
        good = np.random.default_rng(draw(st.integers(0, 99))).integers(1, int(size) + 2, 4)
        values = good / (int(size) + 1) if draw(st.booleans()) else hostile_array(draw, 4)
        monitor = ask(partial(monitor.update, values)) or monitor
    assert math.isfinite(monitor.log_martingale)
    path = world.place()
    monitor.save(path)
    assert gj.DriftMonitor.load(path).log_martingale == monitor.log_martingale
    path.write_bytes(mutated(draw, path.read_bytes()))
    ask(lambda: gj.DriftMonitor.load(path), UserError)


@door(40)
def backbone(draw, world):
    images = hostile_array(draw, 3, 4, 4, 1)
    answers = (
        *(jnp.zeros((3, 2)), jnp.zeros(3), jnp.zeros(()), jnp.zeros((2, 2)), np.zeros((3, 2))),
        *((jnp.zeros((3, 2)), jnp.zeros((3, 4))), (jnp.zeros((3, 2)),), [], None, "x", 3),
    )
    returned = [one_of(draw, *answers) for _ in range(3)]
    stages = [lambda *_, value=value: value for value in returned]
    stages = [thing(draw, stage, stage, stage) for stage in stages]
    made = ask(
        lambda: gj.Backbone.from_functions(
            {}, *stages[:2], layers=stages[2], input_std=thing(draw, (0.5,), (1, 2, 3))
        )
    )
    if made is None or not all(map(callable, stages)) or object in stages:
        return
    for call in (made, made.hidden, made.finish, made.middle):
        ask(lambda call=call: call(images))
    if getattr(images, "shape", ())[1:] != tiny.SHAPE:
        # The model itself would not take them.
        return
    found = ask(lambda: tiny.backbone()(images))
    if found is not None:
        same = np.asarray(images)
        known = same.dtype.newbyteorder("=") if same.itemsize <= 8 else np.float32
        with np.errstate(over="ignore"):
            clean = tiny.backbone()(np.array(same, known))
        np.testing.assert_array_equal(found.logits, clean.logits)


# Detectors by name.


@door(300)
def creation(draw, world):
    name = one_of(draw, *detectors.names())
    options = detectors.options(name)
    given = {}
    for _ in range(draw(st.integers(0, 2))):
        option = one_of(draw, *options, "nothing") if options else "nothing"
        given[option] = thing(draw, options.get(option))
    made = ask(lambda: detectors.create(name, **given))
    if made is not None:
        assert made.name == name and set(made.options) == set(options)
    ask(lambda: detectors.create(thing(draw, name, name + "s")))
    ask(lambda: detectors.combine(thing(draw, [detectors.msp(), made]), how=thing(draw, "max")))


@door(300)
def descriptions(draw, world):
    pieces = draw(
        st.lists(
            st.sampled_from(
                'knn grood : , = k + [ ] ( ) 1 0.5 1e999 NaN -1 true None " \\ \0 ü {'.split(" ")
            ),
            max_size=12,
        )
    )
    text = "".join(pieces) * one_of(draw, 1, 1, 1, 5000)
    if draw(st.integers(0, 4)) == 0:
        text = "knn:k=" + one_of(draw, "[" * 10**5, "1" * 10**4, "," * 10**5, "[1," * 10**4)
    text = one_of(draw, text, text, text, text, text, text, *THINGS)
    found = ask(lambda: parse_spec(text))
    if found is not None:
        ask(lambda: detectors.create(found[0], **found[1]))


# A classifier.


@door(40)
def classification(draw, world):
    made = world.classifier
    images = hostile_array(draw, one_of(draw, 3, 1), *tiny.SHAPE, large=draw(st.booleans()))
    found = ask(lambda: made.predict(images))
    rate, k = thing(draw, 0.2), thing(draw, 3)
    target = ask(lambda: made.with_target(thing(draw, None, 0.8), per_class=thing(draw, False)))
    if target is not None and found is not None:
        np.testing.assert_array_equal(target.predict(images).score, found.score)
    discovered, near = (
        ask(lambda: made.discoveries(images, rate)),
        ask(lambda: made.nearest(images, k)),
    )
    if found is None:
        assert discovered is None and near is None
        return
    clean = made.predict(np.array(np.asarray(images), np.float32, order="C"))
    for name in ("label", "score", "is_ood", "p_value"):
        np.testing.assert_array_equal(getattr(found, name), getattr(clean, name))
    assert np.isfinite(found.score).all() and ((0 < found.p_value) & (found.p_value <= 1)).all()
    if near is not None:
        assert np.isfinite(near[1]).all() and near[0].shape == (len(found), int(k))


@door(12)
def fits(draw, world):
    images = hostile_array(draw, 32, *tiny.SHAPE)
    labels = hostile_classes(draw, 4, 32)
    train = thing(draw, tiny.pairs(32, 0, 32), [(images, labels)], [images])
    options = {
        "train_batches": train,
        "calibration": one_of(draw, [tiny.images(32, 1)], [images], [(images, labels)], images, 3),
        "target_tpr": thing(draw, 0.9),
        "per_class": thing(draw, False),
        "detector": one_of(draw, detectors.msp(), detectors.msp(), "msp", None),
    }
    made = ask(lambda: fit_classifier(**options))
    if made is not None:
        assert np.isfinite(made.held_out_scores).all()


def hostile_path(draw, world, writing=False):
    """Paths at which little can be read or written, and which must not be waited for.

    Those for ``writing`` lie in the test's own folder: what is there may be replaced.
    """
    path = world.place()
    (path.parent / "file").write_text("x")
    (path.parent / "loop").symlink_to("loop")
    (path.parent / "folder.png").mkdir()
    os.mkfifo(path.parent / "pipe.png")
    own = (
        path,
        *(path.parent / name for name in ("file", "loop", "folder.png", "pipe.png", "\udcff")),
    )
    own = *own, path.parent / "file" / "x", path.parent / ("n" * 300), path.parent / "a\0b"
    elsewhere = Path("\0"), Path("~nobody-here/x"), Path("/dev/null"), Path("/dev/zero"), Path(".")
    return one_of(draw, *own) if writing else one_of(draw, *own, *elsewhere)


def rewrite(draw, path):
    """Alters a manifest, with a checksum that fits."""
    found = altered(draw, json.loads(path.read_text()))
    if isinstance(found, dict):
        found["checksum"] = manifests.checksum_of(found)
    path.write_text(json.dumps(found))


@door(12)
def classifiers_on_disk(draw, world):
    def save():
        path = world.place()
        world.classifier.save(path)
        return path

    whole = world.once("saved", save)
    path = world.place()
    shutil.copytree(whole, path)
    rewrite(draw, path / "0" / "manifest" / "metadata")
    found = ask(lambda: OODClassifier.load(path, tiny.backbone()), UserError)
    if found is not None:
        images = tiny.images(3, 5)
        np.testing.assert_array_equal(
            found.predict(images).score, world.classifier.predict(images).score
        )
    ask(lambda: OODClassifier.load(hostile_path(draw, world), tiny.backbone()), UserError)
    odd = hostile_path(draw, world, writing=True)
    ask(lambda: world.classifier.save(odd), UserError)
    bank = gj.build_bank(np.ones((9, 4), np.float32))
    ask(lambda: bank_files.save_bank(odd, bank), UserError)


@door(6)
def exports(draw, world):
    pytest.importorskip("flatbuffers", reason="needs pip install -e '.[export]'")
    shape, platforms = one_of(draw, None, thing(draw, None)), thing(draw, ["cpu"], ["gpu"], "cpu")
    path = hostile_path(draw, world, writing=True)
    ask(lambda: world.classifier.export(path, shape, platforms))
    path = hostile_path(draw, world, writing=True)
    ask(lambda: world.classifier.export(path, platforms=["cpu"]))
    assert (world.latest / "pipe.png").is_fifo()


@door(8)
def banks_on_disk(draw, world):
    def save():
        path = world.place()
        bank_files.save_bank(path, gj.build_bank(np.ones((9, 4), np.float32)))
        return path

    whole = world.once("bank", save)
    path = world.place()
    shutil.copytree(whole, path)
    rewrite(draw, path / "0" / "manifest" / "metadata")
    found = ask(lambda: bank_files.load_bank(path), UserError)
    if found is not None:
        np.testing.assert_array_equal(gj.bank_rows(found), np.ones((9, 4)))
    ask(lambda: bank_files.load_bank(hostile_path(draw, world)), UserError)


# Images.


def image_files():
    """One of each format and mode, and some of several frames."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    found = []
    for form in FORMATS:
        for mode, options in (
            *(("L", {}), ("RGB", {}), ("P", {}), ("RGBA", {})),
            ("RGB", {"save_all": True, "append_images": [picture]}),
            ("RGB", {"progressive": True}),
        ):
            file = io.BytesIO()
            try:
                picture.convert(mode).save(file, form, **options)
            # Not every format has every mode and option.
            except (OSError, KeyError):
                continue
            found.append(file.getvalue())
    # A header that promises 60 000 by 60 000 pixels.
    png = bytearray(found[0])
    png[16:24] = (60_000).to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    return [*found, bytes(png), b"", b"x"]


@contextlib.contextmanager
def in_little_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < ROOM


@door(300)
def image_bytes(draw, world):
    whole = one_of(draw, *world.once("files", image_files))
    given = mutated(draw, whole) if whole and draw(st.integers(0, 5)) else whole
    size, channels = one_of(draw, 8, 8, 8, 1, 32), one_of(draw, 1, 3)
    with in_little_memory():
        found = ask(lambda: decode(given, size, channels))
    if found is not None:
        assert found.shape == (size, size, channels) and found.dtype == np.uint8


@door(100)
def pixels(draw, world):
    given = hostile_array(draw, one_of(draw, 9, 8), 8, one_of(draw, 1, 3, 4))
    strip = np.broadcast_to(np.uint8(7), (1, one_of(draw, 9, 2**30, 2**50)))
    given = one_of(draw, given, given, given, strip)
    if not isinstance(given, np.ndarray):
        return
    if given.dtype.kind in "fiu" and given.size < 10**6 and draw(st.booleans()):
        with np.errstate(all="ignore"):
            whole = np.asarray(np.nan_to_num(given)).astype(np.uint8)
            given = np.asarray(laid_out(draw, whole), np.uint8)
    channels = one_of(draw, 1, 3)
    with in_little_memory():
        found = ask(lambda: fit_pixels(given, 8, channels))
    if found is not None:
        assert found.shape == (8, 8, channels) and found.dtype == np.uint8
        np.testing.assert_array_equal(found, fit_pixels(np.array(given), 8, channels))


def npz_files():
    """Some that are whole, and some whose header lies."""
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    found = []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, images=images)
        found.append(file.getvalue())
    for shape in ((2**60,), (2**31, 8, 8), (2**32, 2**32, 2), (-1, 8, 8), (2, 8, 9)):
        member, file = io.BytesIO(), io.BytesIO()
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, header)
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("images.npy", member.getvalue() + images.tobytes())
        found.append(file.getvalue())
    raw = io.BytesIO()
    np.save(raw, images)
    odd = io.BytesIO()
    np.savez(odd, images=images.astype(np.float32))
    empty = io.BytesIO()
    np.savez(empty)
    return [*found, raw.getvalue(), odd.getvalue(), empty.getvalue(), b""]


class Answers:
    """A deployed network that needs no compiler."""

    preprocessing = Preprocessing(8, 1, (0.5,), (0.5,))
    class_names = ("a", "ü")

    def predict(self, pixels):
        score = pixels.mean(axis=(1, 2, 3)).astype(np.float32)
        return Prediction((score > 99).astype(np.int32), score, score > 99, score / 255)


@door(60)
def files(draw, world):
    path = world.place()
    names = ["plain.png", "line\nbreak.png", 'comma,"quote".npz', "\udcff.png", "x.npz", "x.txt"]
    given = []
    for _ in range(draw(st.integers(1, 3))):
        name = one_of(draw, *names)
        kinds = ("npz", npz_files) if name.endswith("npz") else ("files", image_files)
        whole = one_of(draw, *world.once(*kinds))
        own = path.parent / name
        own.write_bytes(mutated(draw, whole) if whole and draw(st.booleans()) else whole)
        given.append(own)
    given.append(hostile_path(draw, world))
    given.append(one_of(draw, path.parent, path.parent / "pipe.png"))
    given[-1:] = [given[-1].with_suffix(one_of(draw, ".png", ".png", ".npz"))]
    config = predict.PredictConfig(
        path, tuple(given), format=one_of(draw, "csv", "jsonl"), fdr=one_of(draw, None, 0.2)
    )
    # UTF-8 as stdout has it: what is no text cannot be written.
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    said = []
    with pytest.MonkeyPatch.context() as patch, in_little_memory():
        patch.setattr("grood_jax.deploying.deployment.load", lambda *_: Answers())
        failed = predict.run(config, stream=stream, say=said.append)
    # What a folder holds beside pictures is told of, and is no failure.
    told = sum(line.startswith("left out of ") for line in said)
    assert 0 <= len(said) - failed - bool(failed) <= told
    assert all(len(line.splitlines()) == 1 for line in said)
    stream.flush()
    written = stream.buffer.getvalue().decode("utf-8").splitlines()
    if config.format == "jsonl":
        assert all(math.isfinite(json.loads(line)["score"]) for line in written)
    else:
        assert all(line.count(",") >= 5 for line in written)


@door(30)
def caches(draw, world):
    expected = {"features": np.arange(6.0).reshape(2, 3), "logits": np.ones((2, 4), np.float32)}
    path, said = world.place(), []
    path.mkdir()
    made = cache.OutputsCache(path, {"network": "x"}, said.append)
    form = Form(tuple(expected), dict, dict)
    made({"set": 1}, form, lambda: dict(expected))
    (own,) = path.iterdir()
    own.write_bytes(mutated(draw, own.read_bytes()))
    found = made({"set": 1}, form, lambda: dict(expected))
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


# Command lines.

OPTIONS = (
    *("--seed", "--limit", "--batch-size", "--detectors", "--detector", "--cut", "--model"),
    *("--dataset", "--target-tpr", "--calibration-share", "--per-class", "--data-dir", "--fdr"),
    *("--output-dir", "--cache-dir", "--search", "--epochs", "--learning-rate", "--format", "--x"),
)
WORDS = (
    *("0", "-1", "1", "2", "nan", "inf", "1e999", "9" * 30, "9" * 5000, "", " ", "digits", "all"),
    *("msp", "grood:k=0", "knn:k=[[[[", "msp+msp", "grood:" + "," * 5000, "small", "layer9", "ü\n"),
    *("\udcff", "..", "file", "a\0b", "n" * 300, "--", "-", "cifar10", "None", "csv"),
)


@door(24)
def command_lines(draw, world):
    main, safe = one_of(
        draw,
        (evaluation.main, ["--checkpoint", "nowhere"]),
        (fitting.main, ["--checkpoint", "nowhere"]),
        # Nothing can be made there: no training begins.
        (training.main, ["--output-dir", "file/x"]),
        (predict.main, ["nowhere", "x.png"]),
    )
    words = []
    for _ in range(draw(st.integers(1, 3))):
        words.append(one_of(draw, *OPTIONS))
        words += [one_of(draw, *WORDS)] * draw(st.integers(0, 1))
    folder = world.place().parent
    (folder / "file").touch()
    said, printed = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(printed),
    ):
        try:
            status = main([*words, *safe])
        except SystemExit as stop:
            status = stop.code
    assert status in (1, 2), (words, status)
    errors = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, (words, said.getvalue())
    assert "Traceback" not in said.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("name", DOORS)
@pytest.mark.usefixtures("unchecked")
def test_hostile_input(name, world):
    function, examples = DOORS[name]
    cases = 0

    # Longer runs find more; in each of them failing examples are still made small.
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=not SECONDS,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(st.data())
    def tried(data):
        nonlocal cases
        cases += 1
        with in_time(SLOWEST):
            function(data.draw, world)

    end = time.monotonic() + SECONDS / len(DOORS)
    tried()
    while time.monotonic() < end:
        tried()
    print(f"{name}: {cases} cases")
