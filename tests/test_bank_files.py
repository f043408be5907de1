import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import grood_jax as gj
from grood_jax.storage.banks import load_bank, save_bank
from grood_jax.support import manifest as manifests

pytestmark = pytest.mark.usefixtures("bounded")

ROWS = np.random.default_rng(0).normal(size=(700, 24)).astype(np.float32)
QUERIES = np.random.default_rng(1).normal(size=(40, 24)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_restored_bank_gives_the_same_bits(tmp_path, dtype):
    bank = gj.build_bank_in_pieces([ROWS[:300], ROWS[300:]], dtype=dtype, memory=2**17)
    save_bank(tmp_path / "bank", bank)
    restored = load_bank(tmp_path / "bank")
    assert (restored.size, restored.memory) == (700, 2**17)
    assert (restored.host is None) == (dtype == "float32")
    np.testing.assert_array_equal(gj.bank_rows(restored), ROWS)
    for left, right in zip(jax.tree.leaves(bank), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(left, right)
    np.testing.assert_array_equal(
        gj.nearest_distances(QUERIES, restored, 10), gj.nearest_distances(QUERIES, bank, 10)
    )


def test_a_directory_that_holds_one_is_not_overwritten(tmp_path):
    save_bank(tmp_path, gj.build_bank(ROWS[:3]))
    with pytest.raises(gj.UserError, match=re.escape(f"{tmp_path} holds a checkpoint already")):
        save_bank(tmp_path, gj.build_bank(ROWS))
    assert load_bank(tmp_path).size == 3


def test_no_bank(tmp_path):
    with pytest.raises(gj.UserError, match=re.escape(f"there is no bank in {tmp_path}")):
        load_bank(tmp_path)


def test_a_damaged_bank_is_refused(tmp_path, monkeypatch):
    save_bank(tmp_path, gj.build_bank(ROWS))
    original = np.ascontiguousarray
    monkeypatch.setattr(np, "ascontiguousarray", lambda array: original(array) + 1)
    with pytest.raises(gj.UserError, match=re.escape(f"the bank in {tmp_path} is damaged")):
        load_bank(tmp_path)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    import orbax.checkpoint as ocp

    from grood_jax.storage import checkpoints

    with checkpoints.manager(tmp_path) as opened:
        opened.save(0, args=ocp.args.Composite(about=ocp.args.JsonSave({"shape": [1, 1]})))
    with pytest.raises(
        gj.UserError, match="the bank in .* is damaged: its manifest cannot be read"
    ):
        load_bank(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["about"].update(dtype="x"),
        lambda m: m["about"].update(memory=1),
        lambda m: m["about"].pop("memory"),
        lambda m: m["arrays"]["bank"]["rows"].update(shape=["x"]),
        lambda m: m["arrays"]["bank"]["rows"].update(shape=[-1, 2]),
        lambda m: m["arrays"]["bank"].update(columns=m["arrays"]["bank"].pop("rows")),
    ],
)
def test_an_altered_description_is_refused(tmp_path, change):
    save_bank(tmp_path, gj.build_bank(ROWS[:3]))
    path = tmp_path / "0" / "manifest" / "metadata"
    manifest = json.loads(path.read_text())
    change(manifest)
    manifest["checksum"] = manifests.checksum_of(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(gj.UserError, match="damaged"):
        load_bank(tmp_path)


def test_paths_may_be_strings(tmp_path):
    save_bank(str(tmp_path / "bank"), gj.build_bank(ROWS[:3]))
    np.testing.assert_array_equal(gj.bank_rows(load_bank(str(tmp_path / "bank"))), ROWS[:3])


def test_what_is_no_bank_makes_no_directory(tmp_path, unchecked):
    with pytest.raises(TypeError, match="bank"):
        save_bank(tmp_path / "bank", ROWS)
    assert not (tmp_path / "bank").exists()


def test_paths_of_no_directory(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    names = ("file/x", "loop", "n" * 300, "a\0b", "\udcff")
    for path in [*(tmp_path / name for name in names), Path("~nobody-here/x"), "~nobody-here/x"]:
        with pytest.raises(gj.UserError):
            save_bank(path, gj.build_bank(ROWS[:3]))
        with pytest.raises(gj.UserError):
            load_bank(path)
