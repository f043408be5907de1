"""Directories written whole or not at all, and read only if they are what was written."""

import json
import multiprocessing
import time

import jax.numpy as jnp
import numpy as np
import pytest

from grood_jax.storage import saving
from grood_jax.support import manifest as manifests
from grood_jax.support.errors import UserError

HOW = "make one"


def arrays_of(seed):
    rng = np.random.default_rng(seed)
    return {
        "a.b": rng.normal(size=(50, 20)).astype(np.float32),
        "half": rng.normal(size=7).astype(jnp.bfloat16),
        "none": np.zeros((0, 3), np.int32),
        "one": np.array(seed, np.int32),
    }


def same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def test_what_was_saved_is_loaded_bit_for_bit(tmp_path):
    saving.save(tmp_path / "new" / "place", "thing", arrays_of(1), {"rate": 0.1, "ü": [1, None]})
    about, arrays = saving.load(tmp_path / "new" / "place", "thing", HOW)
    assert about == {"rate": 0.1, "ü": [1, None]}
    same(arrays, arrays_of(1))


def test_no_array_at_all_is_saved_too(tmp_path):
    saving.save(tmp_path, "thing", {}, {})
    assert saving.load(tmp_path, "thing", HOW) == ({}, {})


def test_a_second_save_replaces_the_first(tmp_path):
    for seed in (1, 2, 3):
        saving.save(tmp_path, "thing", arrays_of(seed), {"seed": seed})
    about, arrays = saving.load(tmp_path, "thing", HOW)
    assert about == {"seed": 3}
    same(arrays, arrays_of(3))
    assert sum(path.name.isdigit() for path in tmp_path.iterdir()) == 1


def test_another_kind_is_neither_overwritten_nor_read(tmp_path):
    saving.save(tmp_path, "thing", arrays_of(1), {})
    with pytest.raises(UserError, match="holds a thing; expected an other"):
        saving.save(tmp_path, "other", arrays_of(2), {})
    with pytest.raises(UserError, match="holds a thing; expected an other"):
        saving.load(tmp_path, "other", HOW)
    saving.load(tmp_path, "thing", HOW)


@pytest.mark.parametrize("there", [False, True])
def test_an_empty_place_says_how_to_fill_it(tmp_path, there):
    folder = tmp_path / "x"
    if there:
        folder.mkdir()
    with pytest.raises(UserError, match="there is no thing in .*x; make one"):
        saving.load(folder, "thing", HOW)
    assert folder.exists() == there


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)


def array(manifest):
    return manifest["arrays"]["arrays"]["a.b"]


def rewrite(folder, change, *, sign):
    path = folder / "0" / "manifest" / "metadata"
    manifest = json.loads(path.read_text())
    change(manifest)
    if sign:
        manifest["checksum"] = manifests.checksum_of(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "sign", "said"),
    [
        (lambda m: m["about"].update(rate=0.5), False, "its manifest was altered"),
        (lambda m: m.pop("checksum"), False, "its manifest was altered"),
        (lambda m: m.pop("format"), True, "has no format"),
        (lambda m: m.update(format=99), True, "has format 99, of grood-jax .* upgrade it"),
        (lambda m: array(m).update(checksum="0"), True, "array a.b is not what was saved"),
        (lambda m: m.update(kind="bank"), True, "holds a bank; expected a thing"),
    ],
)
def test_an_altered_manifest_is_refused(tmp_path, change, sign, said):
    saving.save(tmp_path, "thing", arrays_of(1), {"rate": 0.1})
    rewrite(tmp_path, change, sign=sign)
    with pytest.raises(UserError, match=said):
        saving.load(tmp_path, "thing", HOW)


@pytest.mark.slow
def test_any_missing_or_altered_file_is_noticed(tmp_path):
    """Each file in turn is removed, cut short, and altered: an error, or the very same arrays."""
    few = {"a": arrays_of(1)["a.b"]}
    saving.save(tmp_path, "thing", few, {"rate": 0.1})
    refused = 0
    for path in files(tmp_path / "0"):
        whole = path.read_bytes()
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :]
        for broken in (None, whole[:middle], flipped):
            path.unlink()
            if broken is not None:
                path.write_bytes(broken)
            try:
                about, arrays = saving.load(tmp_path, "thing", HOW)
                same(arrays, few)
                assert about == {"rate": 0.1}
            except UserError:
                refused += 1
            path.write_bytes(whole)
    # Some files of orbax are for its own use, and nothing depends on them.
    assert refused >= 6
    saving.load(tmp_path, "thing", HOW)


def save_when_told(folder, told, done):
    told.wait()
    saving.save(folder, "thing", arrays_of(2), {"seed": 2})
    done.set()


@pytest.fixture(scope="module")
def server():
    """Starts children that have imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["grood_jax.storage.saving", "orbax.checkpoint"])
    return context


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_the_old_or_the_new_one_whole(tmp_path, server):
    saving.save(tmp_path, "thing", arrays_of(1), {"seed": 1})
    told, done = server.Event(), server.Event()
    child = server.Process(target=save_when_told, args=(tmp_path / "timed", told, done))
    child.start()
    told.set()
    start = time.perf_counter()
    assert done.wait(60)
    longest = time.perf_counter() - start
    child.join()
    seeds = []
    for delay in np.linspace(0, 1.2 * longest, 20):
        told, done = server.Event(), server.Event()
        child = server.Process(target=save_when_told, args=(tmp_path, told, done))
        child.start()
        told.set()
        time.sleep(delay)
        child.kill()
        child.join()
        about, arrays = saving.load(tmp_path, "thing", HOW)
        seeds.append(about["seed"])
        same(arrays, arrays_of(about["seed"]))
        if done.is_set():
            assert about["seed"] == 2
        # The old one again.
        saving.save(tmp_path, "thing", arrays_of(1), {"seed": 1})
    assert 1 in seeds


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(arrays=3),
        lambda m: m.update(arrays={}),
        lambda m: m.update(arrays={"arrays": {"a.b": {}}}),
        lambda m: array(m).update(dtype="x"),
        lambda m: array(m).update(dtype="O"),
        lambda m: array(m).update(shape=[2**62, 2**62]),
        lambda m: array(m).update(shape=[-1]),
        lambda m: array(m).update(shape="50"),
        lambda m: array(m).pop("checksum"),
        lambda m: m.pop("about"),
        lambda m: m.pop("kind"),
        lambda m: m.update(format=99, versions=[]),
    ],
)
def test_a_manifest_that_somebody_else_wrote_is_refused(tmp_path, change):
    saving.save(tmp_path, "thing", arrays_of(1), {"rate": 0.1})
    rewrite(tmp_path, change, sign=True)
    with pytest.raises(UserError, match="the thing in .* is damaged"):
        saving.load(tmp_path, "thing", HOW)
