"""The watch over a stream: its martingale, its promise, what it notices, and its file."""

import contextlib
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from grood_jax.conformal import drift
from grood_jax.conformal.calibration import calibrate, conformal_p_values
from grood_jax.conformal.drift import DriftMonitor
from grood_jax.support import manifest as manifests
from grood_jax.support.errors import UserError


def p_values_of(held_out, stream):
    """Conformal p-values by counting, float32."""
    above = len(held_out) - np.searchsorted(np.sort(held_out), stream)
    return ((1 + above) / (len(held_out) + 1)).astype(np.float32)


def online_p_values(places, size):
    """By the definition, one sample after the other; places are j, from 1."""
    return [(j + sum(i <= j for i in places[:t])) / (size + t + 1) for t, j in enumerate(places)]


def fortunes_by_definition(online):
    """M after each sample: what is set aside, and every bet at every starting time."""
    found = []
    for t in range(1, len(online) + 1):
        total = 1 / math.sqrt(t + 1)
        for s in range(1, t + 1):
            stake = 1 / math.sqrt(s) - 1 / math.sqrt(s + 1)
            for e in drift.BETS:
                won = math.prod(e * q ** (e - 1) for q in online[s - 1 : t])
                total += stake / len(drift.BETS) * won
        found.append(total)
    return found


def test_fortunes_of_two_samples():
    _, found = drift.update(drift.init(3), [2 / 4, 1 / 4])
    # The second is above the first, which therefore does not count.
    online = [2 / 4, 1 / 5]

    def factor(q):
        return np.array([e * q ** (e - 1) for e in drift.BETS])

    first = 2**-0.5 + (1 - 2**-0.5) * factor(online[0]).mean()
    second = (
        3**-0.5
        + (1 - 2**-0.5) * (factor(online[0]) * factor(online[1])).mean()
        + (2**-0.5 - 3**-0.5) * factor(online[1]).mean()
    )
    np.testing.assert_allclose(np.exp(found), [first, second], rtol=1e-12)


@settings(deadline=None, max_examples=40)
@given(size=st.integers(1, 12), data=st.data())
def test_fortunes_equal_their_definition(size, data):
    places = data.draw(st.lists(st.integers(1, size + 1), min_size=1, max_size=40))
    p_values = (np.array(places) / (size + 1)).astype(np.float32)
    _, found = drift.update(drift.init(size), p_values)
    expected = fortunes_by_definition(online_p_values(places, size))
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-10)


def test_samples_are_compared_across_blocks():
    rng = np.random.default_rng(0)
    size, count = 50, 3 * drift.BLOCK + 17
    places = rng.integers(1, size + 2, count)
    state, found = drift.update(drift.init(size), places / (size + 1))
    online = np.array(online_p_values(places.tolist(), size))
    products = [np.sum(np.log(e) + (e - 1) * np.log(online)) for e in drift.BETS]
    np.testing.assert_allclose(state.log_products, products, rtol=1e-12)
    np.testing.assert_array_equal(state.counts, np.bincount(places - 1, minlength=size + 1))
    assert found.shape == (count,) and found.dtype == np.float64


def test_log_fortunes_stay_finite_in_long_streams():
    for place in (1, 5, 11):
        _, found = drift.update(drift.init(10), np.full(200_000, place / 11))
        assert np.isfinite(found).all()
    # Nothing but highest p-values: what is set aside remains.
    assert found[-1] == pytest.approx(-0.5 * math.log(200_000), abs=0.05)


def test_the_expected_fortune_never_exceeds_one():
    """Every course of cells of short streams, with the probability that exchangeability gives."""
    size, length = 3, 5
    courses = np.stack(np.meshgrid(*[np.arange(1, size + 2)] * length), -1).reshape(-1, length)
    expected = np.zeros(length)
    for course in courses:
        chance = 1.0
        for t, j in enumerate(course):
            chance *= (1 + (course[:t] == j).sum()) / (size + 1 + t)
        _, found = drift.update(drift.init(size), course / (size + 1))
        expected += chance * np.exp(found)
    assert (np.diff(expected, prepend=1.0) <= 1e-12).all() and expected[-1] > 0.7


def uniform(rng, count):
    return rng.random(count)


def with_ties(rng, count):
    return rng.binomial(40, 0.3, count)


@pytest.mark.parametrize(
    ("draw", "size", "length", "repeats"),
    [
        (uniform, 1000, 10_000, 200),
        (uniform, 5000, 10_000, 100),
        (uniform, 30, 300, 500),
        (with_ties, 1000, 10_000, 100),
    ],
)
def test_false_alarms_are_as_rare_as_promised(draw, size, length, repeats):
    rng = np.random.default_rng(0)
    highest = []
    for _ in range(repeats):
        p_values = p_values_of(draw(rng, size), draw(rng, length))
        highest.append(drift.update(drift.init(size), p_values)[1].max())
    for rate in (0.05, 0.2, 0.5):
        alarms = (np.array(highest) >= -math.log(rate)).sum()
        # A promise that is kept gives more only once in a thousand times.
        assert alarms <= stats.binom(repeats, rate).ppf(0.999)


def test_the_test_of_false_alarms_notices_p_values_taken_for_independent():
    rng = np.random.default_rng(1)
    rate, repeats, alarms = 0.05, 100, 0
    for _ in range(repeats):
        p_values = p_values_of(rng.random(1000), rng.random(10_000)).astype(np.float64)
        # The same bets on the p-values themselves.
        factors = np.array([np.log(e) + (e - 1) * np.log(p_values) for e in drift.BETS])
        fortunes = np.exp(np.add.accumulate(factors, axis=1)).mean(axis=0)
        alarms += (fortunes >= 1 / rate).any()
    assert alarms > stats.binom(repeats, rate).ppf(0.999)


def drifted(rng, kind, length, at):
    """Normal scores whose mean rises: at once, or over as many samples as had none."""
    times = np.arange(length) - at
    rise = {"abrupt": 1.0 * (times >= 0), "gradual": np.clip(times / at, 0.0, 1.0)}[kind]
    return rng.normal(size=length) + 1.5 * rise


@pytest.mark.parametrize(("kind", "within"), [("abrupt", 60), ("gradual", 1500)])
@pytest.mark.parametrize("size", [500, 5000])
def test_drift_is_noticed(kind, within, size):
    rng = np.random.default_rng(2)
    delays = []
    for _ in range(20):
        p_values = p_values_of(rng.normal(size=size), drifted(rng, kind, 5000, 2000))
        monitor = DriftMonitor.start(size, 0.01).update(p_values)
        assert monitor.alarm_at is not None
        delays.append(monitor.alarm_at - 2000)
    assert min(delays) >= 0 and np.median(delays) < within


def test_drift_from_the_first_sample_on_is_noticed():
    rng = np.random.default_rng(3)
    p_values = p_values_of(rng.normal(size=1000), rng.normal(0.5, 1.0, 2000))
    monitor = DriftMonitor.start(1000).update(p_values)
    assert monitor.alarm_at is not None and monitor.alarm_at < 300


def test_lower_scores_are_no_drift():
    rng = np.random.default_rng(4)
    p_values = p_values_of(rng.normal(size=1000), rng.normal(-2.0, 1.0, 5000))
    assert not DriftMonitor.start(1000).update(p_values).alarm


def test_the_alarm_is_at_the_first_high_fortune_and_stays():
    rng = np.random.default_rng(5)
    means = np.repeat([0.0, 4.0, -4.0], [30, 70, 1000])
    p_values = p_values_of(rng.normal(size=200), rng.normal(means))
    monitor = DriftMonitor.start(200)
    assert (monitor.alarm, monitor.alarm_at, monitor.seen) == (False, None, 0)
    assert monitor.log_martingale == pytest.approx(0.0, abs=1e-15)
    _, fortunes = drift.update(monitor.state, p_values)
    first = int(np.argmax(fortunes >= math.log(20)))
    assert fortunes[first] >= math.log(20) > fortunes[:first].max()
    for part in np.split(p_values, [3, first, first + 1, 500]):
        before, monitor = monitor, monitor.update(part)
        assert monitor.alarm == (monitor.seen > first)
        assert monitor.log_martingale == fortunes[monitor.seen - 1]
        assert before.seen + len(part) == monitor.seen
    assert monitor.alarm_at == first and monitor.seen == 1100


def stream(size=80, length=700):
    rng = np.random.default_rng(6)
    return p_values_of(rng.normal(size=size), rng.normal(1.0, 1.0, length))


def assert_same(one, other):
    assert (one.false_alarm_rate, one.alarm_at) == (other.false_alarm_rate, other.alarm_at)
    assert one.log_martingale == other.log_martingale
    for a, b in zip(jax.tree.leaves(one.state), jax.tree.leaves(other.state), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@settings(deadline=None, max_examples=40)
@given(cuts=st.lists(st.integers(0, 700), max_size=12))
def test_the_division_into_batches_does_not_matter(cuts):
    p_values = stream()
    whole = DriftMonitor.start(80).update(p_values)
    assert whole.alarm
    parts = DriftMonitor.start(80)
    for part in np.split(p_values, sorted(cuts)):
        parts = parts.update(part)
    assert_same(parts, whole)


def test_one_sample_at_a_time():
    p_values = stream()
    monitor, whole = DriftMonitor.start(80), DriftMonitor.start(80).update(p_values)
    for value in p_values:
        monitor = monitor.update(value[None])
    assert_same(monitor, whole)


def test_a_saved_monitor_goes_on_as_if_nothing_had_happened(tmp_path):
    p_values, path = stream(), tmp_path / "drift.json"
    monitor = DriftMonitor.start(80)
    for part in np.split(p_values, [0, 1, 333]):
        monitor = monitor.update(part)
        monitor.save(path)
        monitor = DriftMonitor.load(str(path))
    assert_same(monitor, DriftMonitor.start(80).update(p_values))
    assert [entry.name for entry in tmp_path.iterdir()] == ["drift.json"]


def test_p_values_of_jax_and_of_numpy_are_taken():
    rng = np.random.default_rng(7)
    held_out, scores = rng.normal(size=5000), rng.normal(size=300)
    jaxs = conformal_p_values(calibrate(held_out), scores)
    exact = (1 + (held_out[None] >= scores[:, None]).sum(axis=1)) / 5001
    assert_same(
        DriftMonitor.start(5000).update(jaxs), DriftMonitor.start(5000).update(exact.tolist())
    )


def test_every_p_value_of_the_largest_calibration_set_has_its_own_place():
    places = np.unique(np.linspace(1, drift.LARGEST + 1, 10_000).astype(np.int64))
    p_values = (places / (drift.LARGEST + 1)).astype(np.float32)
    state, _ = drift.update(drift.init(drift.LARGEST), p_values)
    np.testing.assert_array_equal(np.flatnonzero(state.counts) + 1, places)


@pytest.mark.parametrize("value", [0.0, -0.1, 1.1, float("nan"), float("inf"), 0.123])
def test_bad_p_values(value):
    message = rf"p_values holds {value}.* at index 1; expected conformal p-values, multiples of 1/"
    with pytest.raises(ValueError, match=message):
        DriftMonitor.start(9).update([0.5, value])


@pytest.mark.parametrize(
    ("p_values", "error", "message"),
    [
        (0.5, ValueError, "p_values has shape (); expected (B,)"),
        ([[0.5]], ValueError, "p_values has shape (1, 1); expected (B,)"),
        (["0.5"], TypeError, "p_values has dtype <U3; expected real numbers"),
    ],
)
def test_p_values_of_another_kind(unchecked, p_values, error, message):
    with pytest.raises(error, match=re.escape(message)):
        DriftMonitor.start(9).update(p_values)


def test_p_values_of_another_calibration_set_are_noticed():
    with pytest.raises(ValueError, match="with the calibration_size n of 81"):
        DriftMonitor.start(81).update(stream(80))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((0, 0.05), "calibration_size is 0; expected at least 1"),
        ((drift.LARGEST + 1, 0.05), "calibration_size is 1048577; expected at most 1048576"),
        ((9, 0.0), "false_alarm_rate is 0.0; expected a number in (0, 1)"),
        ((9, 1.0), "false_alarm_rate is 1.0; expected a number in (0, 1)"),
        ((9, 1.5), "false_alarm_rate is 1.5; expected a number in [0, 1]"),
    ],
)
def test_bad_options(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DriftMonitor.start(*given)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "drift.json"
    DriftMonitor.start(9).update([0.5, 0.1]).save(path)
    return path


def test_a_missing_file(tmp_path):
    path = tmp_path / "none.json"
    with pytest.raises(UserError, match=f"there is no drift monitor in {re.escape(str(path))}"):
        DriftMonitor.load(path)


def test_a_file_that_cannot_be_written(tmp_path):
    path = tmp_path / "none" / "drift.json"
    with pytest.raises(UserError, match=f"{re.escape(str(path))} cannot be written: No such"):
        DriftMonitor.start(9).save(path)


@pytest.mark.parametrize("damage", ["cut", "emptied", "digit", "bytes", "list", "other", "older"])
def test_a_damaged_file(saved, damage):
    text = saved.read_text()
    saved.write_bytes(
        {
            "cut": text[: len(text) // 2].encode(),
            "emptied": b"",
            "digit": text.replace("0.05", "0.06").encode(),
            "bytes": b"\xff\xfe\x00",
            "list": b"[]",
            "other": b'{"auroc": 0.5}',
            "older": b'{"format": 1}',
        }[damage]
    )
    with pytest.raises(UserError, match=re.escape(str(saved)) + " is (damaged|no drift monitor)"):
        DriftMonitor.load(saved)


def test_a_file_of_a_newer_format(saved):
    saved.write_text(json.dumps(json.loads(saved.read_text()) | {"format": 3, "more": 1}))
    message = f"{re.escape(str(saved))} has format 3, of grood-jax .*; this one reads up to 2: up"
    with pytest.raises(UserError, match=message):
        DriftMonitor.load(saved)


def put(contents, path, value):
    *inner, last = path
    for name in inner:
        contents = contents[name]
    if value is None:
        del contents[last]
    else:
        contents[last] = value


def signed(contents):
    """With checksums that fit, of arrays that can be."""
    arrays = contents["arrays"]
    for name, layout in arrays["values"].items() if arrays else ():
        with contextlib.suppress(KeyError, ValueError, TypeError, OverflowError):
            array = np.array(contents["values"][name], layout["dtype"])
            layout["checksum"] = manifests.checksum(name, array)
    return contents | {"checksum": manifests.checksum_of(contents)}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("values",), None),
        (("values",), 3),
        (("values", "counts"), None),
        (("values", "counts"), []),
        (("values", "counts"), [1]),
        (("values", "counts"), [-1] * 10),
        (("values", "counts"), [10**30] * 10),
        (("values", "counts"), [2**62] * 10),
        (("values", "counts"), [[1]] * 10),
        (("values", "counts"), {"a": 1}),
        (("values", "log_stakes"), [0.0]),
        (("values", "log_products"), [float("nan")] * 5),
        (("values", "log_products"), ["x"] * 5),
        (("arrays", "values", "counts", "dtype"), "O"),
        (("arrays", "values", "counts", "dtype"), "float64"),
        (("arrays", "values", "more"), {"dtype": "int8", "shape": [], "checksum": ""}),
        (("arrays",), []),
        (("about",), None),
        (("about", "false_alarm_rate"), None),
        (("about", "false_alarm_rate"), 0),
        (("about", "false_alarm_rate"), "x"),
        (("about", "alarm_at"), -1),
        (("about", "alarm_at"), 2),
        (("about", "alarm_at"), True),
        (("kind",), "bank"),
        (("kind",), [[]]),
        (("format",), True),
        (("format",), "2"),
        (("format",), 0),
    ],
)
def test_contents_made_to_deceive(saved, path, value):
    contents = json.loads(saved.read_text())
    put(contents, path, value)
    saved.write_text(json.dumps(signed(contents)))
    with pytest.raises(UserError, match=re.escape(str(saved)) + " (is damaged|holds a)"):
        DriftMonitor.load(saved)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, '"\\ud800"', "NaN"])
def test_text_made_to_deceive(saved, text):
    saved.write_text(text)
    with pytest.raises(UserError, match=re.escape(str(saved)) + " is damaged"):
        DriftMonitor.load(saved)
    saved.write_text(saved.read_text().replace(text, f'{{"format": 2, "checksum": {text}}}'))
    with pytest.raises(UserError, match=re.escape(str(saved)) + " is damaged"):
        DriftMonitor.load(saved)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(UserError, match=f"{path} cannot be read: "):
            DriftMonitor.load(path)


OF_0_1_0 = """{"format": 1, "false_alarm_rate": 0.05, "alarm_at": null,
"counts": [1, 0, 0, 0, 1, 0, 0, 0, 0, 0], "log_products": [-0.4543068822210442, 0.1592268655592674,
0.1973964684360172, 0.11931752142074424, 0.0641131110597524], "log_stakes": [-1.9333125520566594,
-2.221261048260184, -2.298852591447898, -2.3075393170828256, -2.3066354899640524],
"checksum": "9daf96ac885758db47805c06dace429bc51bd886a1c39db46fa6825318292e29"}"""


def test_a_file_of_0_1_0_is_read(saved):
    saved.write_text(OF_0_1_0)
    assert_same(DriftMonitor.load(saved), DriftMonitor.start(9).update([0.5, 0.1]))
    saved.write_text(OF_0_1_0.replace("0.05", "0.06"))
    with pytest.raises(UserError, match="is damaged: its checksum is another"):
        DriftMonitor.load(saved)


def test_a_file_stays_whole_when_writing_fails(saved, monkeypatch):
    before = saved.read_text()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        DriftMonitor.start(9).save(saved)
    assert saved.read_text() == before and len(list(saved.parent.iterdir())) == 1


def test_a_killed_process_leaves_a_whole_file(tmp_path):
    path = tmp_path / "drift.json"
    program = (
        "import sys\n"
        "from grood_jax.conformal.drift import DriftMonitor\n"
        "monitor = DriftMonitor.start(20_000)\n"
        "while True:\n"
        "    monitor = monitor.update([1.0])\n"
        "    monitor.save(sys.argv[1])\n"
        "    print(monitor.seen, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(3):
        seen = int(process.stdout.readline())
    # In the middle of whatever comes next.
    time.sleep(0.02)
    process.kill()
    process.wait()
    process.stdout.close()
    assert DriftMonitor.load(path).seen >= seen


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is no regular file"):
        DriftMonitor.start(10).save(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
