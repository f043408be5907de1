"""Evaluation in two processes: each reads its share, and the figures are those of one."""

import json

import numpy as np
import pytest
import tiny_network
from companions import figures, run_both

import grood_jax as gj
from grood_jax import benchmarks
from grood_jax.cli import eval, fit
from grood_jax.data import Share, batches
from grood_jax.deploying import deployment
from grood_jax.eval import EvalConfig
from grood_jax.passes.memo import make_anew
from grood_jax.passes.processes import Processes

LIMIT = 61
DETECTORS = ("grood:interpolate=true,interpolate_classes=1", "react")
TOO_MANY = "knn:k=1000"
MANY = (*DETECTORS, "msp", TOO_MANY, "msp+energy", "grood:ood_prototype=prototype-mean")
"""Of these the first needs mixed copies of training samples, and so all processes."""


@pytest.mark.parametrize("count, total", [(1, 5), (2, 61), (3, 10), (4, 3), (7, 0)])
def test_shares_are_all_rows_and_no_row_twice(count, total):
    rows = np.random.default_rng(0).permutation(total)
    blocks = [Share(list, rows, index, count).block for index in range(count)]
    np.testing.assert_array_equal(np.concatenate([rows[block] for block in blocks]), rows)
    assert max(b.stop - b.start for b in blocks) - min(b.stop - b.start for b in blocks) <= 1


def test_a_process_without_rows_has_an_empty_batch():
    data = benchmarks.open_benchmark(benchmarks.get("digits"), limit=2)
    preprocessing = benchmarks.get("digits").preprocessing

    def read(rows):
        return batches(data.test, preprocessing, batch_size=8, indices=rows)

    first, middle, last = (Processes(i, 3).share(read, np.arange(2)) for i in range(3))
    assert [int(batch.valid.sum()) for part in (first, middle, last) for batch in part] == [0, 1, 1]
    assert [len(list(part)) for part in (first, middle, last)] == [1, 1, 1]


def test_one_process_alone_is_left_alone():
    alone = Processes()
    made = []
    assert alone.leads and alone.share(lambda rows: made, np.arange(3)) is made
    assert alone.agreed(make_anew) is make_anew
    assert alone.in_turn(lambda: 3) == 3
    alone.require_same({"anything": 1})
    assert alone.owners(["a", "b", "c"]) == {} and alone.known_to_all([1]) == [[1]]
    with pytest.raises(OSError, match="as it is"), alone.together():
        raise OSError("as it is")


def test_things_are_each_one_process_s_where_there_are_many():
    names = list("abcdefg")
    for own in (Processes(i, 3) for i in range(3)):
        assert own.owners(names) == dict(zip(names, [0, 1, 2, 0, 1, 2, 0], strict=True))
        assert own.owners(names[:6]) and own.owners(names[:5]) == {}


def test_flags_that_need_another(capsys):
    with pytest.raises(ValueError, match="process_id is given; expected distributed too"):
        EvalConfig(process_id=1)
    with pytest.raises(SystemExit):
        eval.main(["--coordinator", "127.0.0.1:1"])
    assert "coordinator is given; expected distributed too" in capsys.readouterr().err


@pytest.fixture(scope="module")
def ran(once, digits_checkpoint):
    """Where two processes have evaluated, what they found, and what they said."""
    folder, codes = once("processes", lambda folder: evaluate_both(folder, digits_checkpoint))
    said = [(folder / f"{number}.log").read_text() for number in (0, 1)]
    assert codes == [0, 0], said
    return folder, [json.loads((folder / f"{n}.json").read_text()) for n in (0, 1)], said


def evaluate_both(folder, checkpoint):
    words = ["--detectors", *DETECTORS, "--limit", str(LIMIT), "--checkpoint", str(checkpoint)]
    (folder / "words.json").write_text(json.dumps(words))
    (folder / "many.json").write_text(json.dumps(MANY))
    return run_both("distributed_process.py", folder, 300)


@pytest.mark.slow
def test_results_are_those_of_one_process(ran, tmp_path):
    folder, found, said = ran
    assert [part["made"]["code"] for part in found] == [0, 0]
    words = json.loads((folder / "words.json").read_text())
    assert eval.main([*words, "--output-dir", str(tmp_path)]) == 0
    assert figures(folder / "made") == figures(tmp_path)
    # Only the first reports, writes and keeps outputs.
    assert "ID accuracy" in said[0] and "ID accuracy" not in said[1]
    assert list((folder / "cache0").glob("*.npz"))
    # The other kept parts, until the first had kept the whole.
    assert not [*(folder / "cache0").glob("*.parts"), *(folder / "cache1").iterdir()]
    assert "report in " in said[0] and "report in " not in said[1]


@pytest.mark.slow
def test_each_process_reads_its_share(ran):
    first, second = (part["made"]["read"] for part in ran[1])
    unions = []
    for (name, rows), (other, others) in zip(first, second, strict=True):
        assert name == other and not set(rows) & set(others)
        assert abs(len(rows) - len(others)) <= 1
        unions.append((name, len(set(rows) | set(others))))
    # The training set twice, once mixed; then what is in the bank, mixed; and four test sets.
    sets = ["digits", "digits_8_9", "photographs", "uniform_noise"]
    assert [name for name, _ in unions] == ["digits", "digits", *sets[:1], *sets]
    # The bank has those that are classified correctly.
    assert {count for _, count in unions[:2] + unions[3:]} == {LIMIT} and unions[2][1] > LIMIT / 2


@pytest.mark.slow
def test_outputs_that_one_process_has_kept_are_all_processes(ran):
    folder, found, _ = ran
    assert [part["held"]["code"] for part in found] == [0, 0]
    assert figures(folder / "held") == figures(folder / "made")
    assert [part["held"]["read"] for part in found] == [[], []]


@pytest.mark.slow
def test_where_one_process_fails_all_do(ran):
    folder, found, said = ran
    assert [part["failed"]["code"] for part in found] == [1, 1]
    assert "error: process 1 failed; what it said tells why" in said[0]
    assert "error: the disk is gone" in said[1]
    assert "Traceback" not in said[0] + said[1]
    assert not (folder / "failed" / "results.json").exists()


@pytest.mark.slow
def test_many_detectors_are_fitted_by_one_process_each(ran, tmp_path, capsys):
    folder, found, said = ran
    # A detector that fails is told by the first.
    assert [part["many"]["code"] for part in found] == [1, 0]
    interpolated, react, msp, *_, both, drawn = MANY
    fits = [part["many"]["fits"] for part in found]
    # All those whose mixed copies are made together; then the one that the report draws from.
    assert fits == [[interpolated, both, msp, drawn], [interpolated, react, TOO_MANY]]
    words = json.loads((folder / "words.json").read_text())
    words[1 : 1 + len(DETECTORS)] = MANY
    assert eval.main([*words, "--output-dir", str(tmp_path)]) == 1
    assert figures(folder / "many") == figures(tmp_path)
    made, alone = (
        json.loads((own / "results.json").read_text()) for own in (folder / "many", tmp_path)
    )
    for part in ("detectors", "failed"):
        assert list(made[part]) == list(alone[part])
    assert list(made["failed"]) == [TOO_MANY]
    assert f"error: {TOO_MANY} failed: " in said[0] and f"error: {TOO_MANY} failed: " not in said[1]
    pages = [(own / "report.html").read_text() for own in (folder / "many", tmp_path)]
    assert len({page.count("gradients") for page in pages}) == 1


@pytest.mark.slow
def test_where_one_process_cannot_fit_all_end(ran):
    folder, found, said = ran
    assert [part["failed fit"]["code"] for part in found] == [1, 1]
    assert "error: process 1 failed; what it said tells why" in said[0]
    assert "error: the fit is gone" in said[1]


@pytest.mark.slow
def test_each_process_keeps_what_it_compiles(ran):
    assert [part["compiled"] > 0 for part in ran[1]] == [True, True]


@pytest.mark.slow
def test_other_options_and_other_data_are_refused_by_all(ran):
    _, found, said = ran
    for part, lines in zip(found, said, strict=True):
        assert part["other option"] == part["other data"] == {"code": 1, "read": []}
        assert "error: process 1 has the option seed 1, and process 0 has 0; give all" in lines
        assert "error: process 1 has the set digits_8_9 [61, '" in lines


@pytest.mark.slow
def test_a_classifier_is_fitted_together_as_alone(ran, tmp_path):
    folder, found, said = ran
    assert [part["fit"]["code"] for part in found] == [0, 0]
    words = json.loads((folder / "words.json").read_text())
    own = ["--limit", str(LIMIT), *words[words.index("--checkpoint") :], "--detector", "grood"]
    assert fit.main([*own, "--output-dir", str(tmp_path / "alone")]) == 0
    places = folder / "fitted", tmp_path / "alone"
    together, alone = (deployment.load(own).classifier.take_apart()[0] for own in places)
    assert together.keys() == alone.keys()
    assert "held_out_scores" in together and "state.ood_prototype" in together
    for name, array in together.items():
        # Scores tell whether the bank has the same rows; how they are bounded may differ more.
        if not name.startswith("state.bank."):
            np.testing.assert_allclose(array, alone[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert "it lies in" in said[0] and "it lies in" not in said[1]
    assert "other test images" in said[0] and "other test images" not in said[1]
    # No row is read by both, but the very first, which tells whether all have the same images.
    for (name, rows), (other, others) in zip(*(part["fit"]["read"] for part in found), strict=True):
        assert name == other and (not set(rows) & set(others) or rows == others == [0])
        assert abs(len(rows) - len(others)) <= 1


@pytest.mark.slow
def test_a_classifier_is_fitted_from_outputs_that_the_first_has_kept(ran):
    folder, found, _ = ran
    for part in found:
        read = part["fit"]["read"]
        # A batch for its shape, and image 0; then neither the training set nor what is mixed.
        assert part["fit again"] == {"code": 0, "read": read[:2] + read[4:]}
    assert list((folder / "fit-cache0").glob("*.npz"))
    places = folder / "fitted", folder / "fitted again"
    first, again = (deployment.load(own).classifier.take_apart()[0] for own in places)
    assert first.keys() == again.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name], err_msg=name)


@pytest.mark.slow
def test_a_classifier_fitted_in_python_is_that_of_one_process(ran):
    folder, found, _ = ran
    alone = tiny_network.tiny_fit(key=0)
    for part in found:
        scores, thresholds = part["tiny"]
        np.testing.assert_allclose(scores, alone.held_out_scores, rtol=1e-5)
        np.testing.assert_allclose(thresholds, alone.thresholds, rtol=1e-5)
        assert part["other key"].startswith("process 1 has the key [0, 1], and process 0 has [0, 0")
    # Saving writes once.
    loaded = gj.OODClassifier.load(folder / "tiny0", tiny_network.backbone())
    np.testing.assert_array_equal(loaded.thresholds, np.float32(found[0]["tiny"][1]))
    assert not (folder / "tiny1").exists()


@pytest.mark.slow
def test_unreadable_images_are_known_to_all(ran):
    readable = [0, 1, 3, 4, 5, 6, 8, 9, 10]
    pixels = np.arange(44).reshape(11, 4)[readable] / 255
    for part in ran[1]:
        assert part["holed"]["rows"] == readable
        assert part["holed"]["unreadable"] == 2
        np.testing.assert_allclose(part["holed"]["features"], pixels, rtol=1e-5)


@pytest.mark.slow
def test_rows_left_out_in_one_process_only(ran):
    # Of blocks 0–4 and 5–10, in batches of four, the first process's leave out 1.
    rows = np.array([0, 2, 3, 4, *range(5, 11)])
    pixels = np.arange(11 * 4).reshape(11, 4) / 255
    for part in ran[1]:
        few = part["few"]
        assert few["labels"] == (rows % 3).tolist()
        np.testing.assert_allclose(few["features"], pixels[rows], rtol=1e-6)
        expected = [pixels[rows[rows % 3 == c]].mean(axis=0) for c in range(3)]
        np.testing.assert_allclose(few["early"], expected, rtol=1e-6)
        features, labels = few["one row"]
        np.testing.assert_allclose(features, pixels[[5]], rtol=1e-6)
        assert labels == [2]


@pytest.mark.slow
def test_what_the_first_process_saves_others_load(ran):
    assert [part["saved"] for part in ran[1]] == [True, True]


@pytest.mark.slow
def test_processes_that_found_different_things_are_refused(ran):
    for part in ran[1]:
        assert part["refusal"].startswith(
            "process 1 has the number 1, and process 0 has 0; give all"
        )
