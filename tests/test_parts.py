"""A pass that was ended at any moment goes on, in as many processes or others."""

import json
import threading
from functools import partial

import jax
import numpy as np
import pytest
import tiny_network
from damaged_files import changed, cut_short, emptied

from grood_jax.backbone.outputs import LayerMeans, Mix
from grood_jax.data import ArraySet, Preprocessing
from grood_jax.data.sets import UnreadableImage
from grood_jax.evaluation import fitting
from grood_jax.passes import devices, forward, parts, processes, runtime, training_pass
from grood_jax.passes.processes import Processes
from grood_jax.passes.reading import BadImages, Reader
from grood_jax.storage.cache import OutputsCache
from grood_jax.storage.parts import PartsFolder

COUNT, BATCH = 50, 4
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (COUNT, 4, 4, 1), dtype=np.uint8)
LABELS = RNG.integers(0, tiny_network.CLASSES, COUNT).astype(np.int32)
MIX = Mix(2, 0.3)


class Killed(BaseException):
    """What ends a pass where a process would have been killed."""


class Watched(ArraySet):
    """A set that says which of its images were read, and may have some that cannot be."""

    def __init__(self, holes=()):
        super().__init__("watched", "here", PIXELS, LABELS)
        object.__setattr__(self, "rows", [])
        object.__setattr__(self, "holes", holes)

    def read(self, indices):
        for row in set(np.asarray(indices).tolist()) & set(self.holes):
            raise UnreadableImage(f"image {row} is no image")
        self.rows.extend(np.asarray(indices).tolist())
        return super().read(indices)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART_ROWS", 7)
    monkeypatch.setattr(parts, "SUMS_SHARE", 1e9)


@pytest.fixture
def said():
    return []


class Company:
    """Threads that stand for processes: what they exchange goes through a barrier."""

    def __init__(self, monkeypatch, count):
        self.count, self.own = count, threading.local()
        self.barrier, self.slots = threading.Barrier(count), [None] * count
        monkeypatch.setattr(runtime, "exchange", self.exchange)
        monkeypatch.setattr(processes, "_allgathered", lambda a: np.stack(self.exchange(a)))

    def exchange(self, given):
        self.slots[self.own.index] = given
        self.barrier.wait(300)
        found = list(self.slots)
        self.barrier.wait(300)
        return found

    def run(self, work):
        """What each has made; raises what ended them, if anything did."""
        made, ends = [None] * self.count, []

        def one(index):
            self.own.index = index
            try:
                made[index] = work(Processes(index, self.count))
            except threading.BrokenBarrierError:
                pass
            except BaseException as end:
                ends.append(end)
                self.barrier.abort()

        threads = [threading.Thread(target=one, args=(index,)) for index in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if ends:
            raise ends[0]
        return made


@pytest.fixture
def run(monkeypatch, tmp_path, said):
    """Runs a pass in some processes, and ends them before the write of a given number."""
    write = PartsFolder.write

    def running(work, count=1, kill=None, images=None, batch=BATCH, folders=("cache",) * 9):
        writes = iter(range(10_000))

        def written(self, name, facts, arrays):
            if next(writes) == kill:
                raise Killed
            write(self, name, facts, arrays)

        monkeypatch.setattr(PartsFolder, "write", written)
        images = Watched() if images is None else images

        def one(crew):
            own = tmp_path / folders[crew.index]
            own.mkdir(exist_ok=True)
            memo = crew.agreed(OutputsCache(own, {}, said.append if crew.leads else pytest.fail))
            read = Reader(
                Preprocessing(4, 1, (0.5,), (0.5,)), batch, False, crew=crew, memo=memo, workers=1
            )
            return work(read, images)

        return Company(monkeypatch, count).run(one)

    return running


def train(read, images, early=True, needs=()):
    seen = training_pass.run_training_set(
        tiny_network.backbone(),
        read.training(images),
        early=early,
        needs=needs,
        memo=read.memo,
    )
    return seen


def test_set(read, images):
    return forward.extract_labelled(
        tiny_network.backbone(), read(images, "test"), memo=read.memo, about=read.identity(images)
    )


def copies(read, images):
    """Those of most rows, in a pass of their own after that over the training set."""
    return train(read, images).mixed_copies(np.arange(3, COUNT), MIX)


def arrays(made):
    """All arrays of what passes give, and none of the rest."""
    if isinstance(made, training_pass.TrainingPass):
        made = made.outputs, made.labels, made.early_prototypes
    return [np.asarray(array) for array in jax.tree.leaves(made)]


def same(found, expected, rtol=None):
    for one in found:
        assert len(arrays(one)) == len(arrays(expected))
        for own, other in zip(arrays(one), arrays(expected), strict=True):
            assert own.dtype == other.dtype
            if rtol is None:
                np.testing.assert_array_equal(own, other)
            else:
                np.testing.assert_allclose(own, other, rtol, atol=rtol)


def parts_in(folder):
    return sorted(path for path in folder.glob("cache*/*.parts/*.npz"))


def undisturbed(work, count, monkeypatch, batch=BATCH):
    """What a pass gives that keeps nothing."""

    def one(crew):
        read = Reader(Preprocessing(4, 1, (0.5,), (0.5,)), batch, False, crew=crew, workers=1)
        return work(read, Watched())

    return Company(monkeypatch, count).run(one)[0]


test_set.__test__ = False


@pytest.mark.parametrize("seed", range(20))
def test_spans_are_sets_of_rows(seed):
    rng = np.random.default_rng(seed)

    def some():
        ends = np.sort(rng.choice(30, 2 * rng.integers(0, 5), replace=False)).tolist()
        return list(zip(ends[::2], ends[1::2], strict=True))

    def rows(spans):
        return [row for start, stop in spans for row in range(start, stop)]

    one, other = some(), some()
    assert rows(parts.without(one, other)) == sorted(set(rows(one)) - set(rows(other)))
    assert rows(parts.within(one, other)) == sorted(set(rows(one)) & set(rows(other)))
    for count in (1, 2, 3, 7):
        shares = [rows(parts.share_of(one, index, count)) for index in range(count)]
        assert sum(shares, []) == rows(one)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("count", [1, 2, 3])
def test_parts_are_bounded_and_gone_when_the_whole_is_there(run, tmp_path, said, count):
    with pytest.raises(Killed):
        run(train, count, kill=6)
    left = parts_in(tmp_path)
    assert left
    for path in left:
        with np.load(path) as file:
            if path.stem.startswith("rows"):
                # The batch that reaches seven rows brings at most three more.
                assert len(file["features"]) == len(file["labels"]) <= 10
    run(train, count)
    assert not parts_in(tmp_path) and not list(tmp_path.glob("cache/*.parts"))
    assert len(list(tmp_path.glob("cache/*.npz"))) == 1
    images = Watched()
    run(train, count, images=images)
    assert images.rows == []
    assert len(said) == 1 and said[0].startswith("training set: taken up at row ")


@pytest.mark.parametrize("work", [train, test_set, copies])
@pytest.mark.parametrize("count", [1, 2])
def test_a_pass_ended_before_any_write_goes_on_to_the_same_bits(run, monkeypatch, work, count):
    expected = undisturbed(work, count, monkeypatch)
    for kill in range(60):
        try:
            same(run(work, count, kill=kill), expected)
            break
        except Killed:
            continue
    # Each run wrote more than the one before.
    assert 1 < kill < 59


@pytest.mark.parametrize("kill", range(0, 14, 3))
@pytest.mark.parametrize("count", [1, 2])
def test_a_pass_goes_on_from_each_moment(run, monkeypatch, tmp_path, said, kill, count):
    expected = undisturbed(train, count, monkeypatch)
    with pytest.raises(Killed):
        run(train, count, kill=kill)
    summed = [path for path in parts_in(tmp_path) if path.stem.startswith("sums")]
    images = Watched()
    same(run(train, count, images=images), expected)
    assert len(said) == (1 if summed else 0)
    if said:
        row = int(said[0].split()[-3])
        assert said[0].endswith(f" of {COUNT}")
        # A process with nothing left to do reads one image, for the shapes of others' arrays.
        assert COUNT - row <= len(images.rows) < COUNT - row + count


@pytest.mark.parametrize("counts", [(1, 2, 3), (3, 2, 1), (2, 3, 2), (1, 4, 1)])
@pytest.mark.parametrize("apart", [False, True])
def test_other_processes_go_on(run, monkeypatch, said, counts, apart):
    expected = undisturbed(train, 1, monkeypatch)
    folders = [f"cache{index}" if apart else "cache" for index in range(9)]
    images = Watched()
    for count, kill in zip(counts[:-1], (6, 3), strict=True):
        with pytest.raises(Killed):
            run(train, count, kill=kill, folders=folders, images=images)
    # Of four processes only the first may be left: what the others kept in their own folders is
    # there for nobody, and is made again.
    same(run(train, counts[-1], folders=folders, images=images), expected, 1e-6)
    assert len(said) == 2 and set(images.rows) == set(range(COUNT))
    if not apart:
        # What was not yet kept is made again, at most a part and a batch of each process.
        assert len(images.rows) < COUNT + sum(counts) * 11


@pytest.mark.devices
def test_class_means_of_several_devices_go_on(run, monkeypatch, said):
    network = devices.spread(tiny_network.backbone())
    assert len(jax.local_devices()) == 8

    def on_all(read, images):
        return training_pass.run_training_set(
            network, read.training(images), early=True, memo=read.memo
        )

    expected = undisturbed(on_all, 1, monkeypatch, batch=10)
    for kill in (2, 3):
        with pytest.raises(Killed):
            run(on_all, kill=kill, batch=10)
    same(run(on_all, batch=10), expected)
    assert said[-1] == f"training set: taken up at row 20 of {COUNT}"


def test_batches_of_another_size_go_on(run, monkeypatch, said):
    expected = undisturbed(train, 1, monkeypatch)
    with pytest.raises(Killed):
        run(train, kill=5)
    same(run(train, batch=9), expected, 1e-6)
    assert said == [f"training set: taken up at row 16 of {COUNT}"]


def of_another_set(path):
    other = path.parent.with_name("other.parts")
    PartsFolder(other, {"set": "another"}, pytest.fail).write(path.stem, {}, {})
    (other / path.name).replace(path)


def used(paths):
    """Sums, and the parts whose rows are in some."""

    def facts(path):
        with np.load(path) as file:
            return json.loads(str(file["manifest"]))["about"]["part"]

    summed = [
        span for path in paths if path.stem.startswith("sums") for span in facts(path)["rows"]
    ]

    def covered(path):
        start, stop = map(int, path.stem.split("-")[1:3])
        return any(first <= start and stop <= last for first, last in summed)

    return [path for path in paths if path.stem.startswith("sums") or covered(path)]


@pytest.mark.parametrize("spoil", [cut_short, emptied, changed, of_another_set])
@pytest.mark.parametrize("which", [0, 1, -1])
@pytest.mark.parametrize("count", [1, 2])
def test_a_spoilt_part_is_made_anew_and_said_so(
    run, monkeypatch, tmp_path, said, spoil, which, count
):
    expected = undisturbed(train, count, monkeypatch)
    with pytest.raises(Killed):
        run(train, count, kill=9)
    path = used(parts_in(tmp_path))[which]
    assert path.stem.startswith("rows" if which >= 0 else "sums")
    spoil(path)
    same(run(train, count), expected)
    complaint, *taken_up = said
    why = "is about something else" if spoil is of_another_set else "is damaged ("
    assert complaint.startswith(f"cache: {path} {why}") and complaint.endswith("; it is made anew")
    # With the sums of the only process all is lost; another's are its own.
    assert len(taken_up) == (0 if which < 0 and count == 1 else 1)


def test_what_other_detectors_need_too_is_made_anew(run, monkeypatch, said):
    more = partial(train, needs=(LayerMeans(),))
    with pytest.raises(Killed):
        run(train, kill=6)
    same(run(more), undisturbed(more, 1, monkeypatch))
    assert said == [
        "cache: a part has no LayerMeans(), which other detectors did not need; it is made anew"
    ]


def test_what_other_detectors_needed_is_left_out(run, monkeypatch, said):
    with pytest.raises(Killed):
        run(partial(train, needs=(LayerMeans(),)), kill=6)
    fewer = partial(train, early=False)
    same(run(fewer), undisturbed(fewer, 1, monkeypatch))
    assert said == [f"training set: taken up at row 24 of {COUNT}"]


def test_a_slow_pass_keeps_each_batch(run, monkeypatch, tmp_path):
    monkeypatch.setattr(parts, "PART_SECONDS", 0)
    with pytest.raises(Killed):
        run(test_set, kill=3)
    assert [path.stem for path in parts_in(tmp_path)] == [
        f"rows-{start}-{start + BATCH}-of-1" for start in (0, 4, 8)
    ]


def test_sums_that_take_long_are_written_seldom(run, monkeypatch, tmp_path, said):
    monkeypatch.setattr(parts, "SUMS_SHARE", 1e-9)
    expected = undisturbed(train, 1, monkeypatch)
    # The first part, its sums, and three parts more.
    with pytest.raises(Killed):
        run(train, kill=5)
    same(run(train), expected)
    assert said == [f"training set: taken up at row 8 of {COUNT}"]


@pytest.mark.parametrize("count", [1, 2])
def test_where_no_part_can_be_written_the_pass_goes_on(run, monkeypatch, said, count):
    expected = undisturbed(train, count, monkeypatch)

    def failing(path, *given):
        raise OSError(f"no room for {path.name}")

    monkeypatch.setattr("grood_jax.storage.packed.write", failing)
    same(run(train, count), expected)
    # The first also says that it cannot keep the whole.
    assert len(said) == count + 1 and all(line.endswith("; going on without") for line in said)
    assert said[0].endswith(f"(no room for rows-0-8-of-{count}.npz); going on without")
    assert count == 1 or said[1].startswith("process 1: cache: ")


def test_parts_that_another_process_left_are_removed(run, monkeypatch, tmp_path):
    folders = ("cache0", "cache1")
    with monkeypatch.context() as patch:
        patch.setattr(PartsFolder, "remove", lambda self: None)
        run(train, 2, folders=folders)
    assert {path.parents[1].name for path in parts_in(tmp_path)} == {*folders}
    run(train, 2, folders=folders)
    assert not parts_in(tmp_path)


def test_parts_that_were_left_beside_the_whole_are_removed(run, monkeypatch, tmp_path):
    more = partial(train, needs=(LayerMeans(),))
    with monkeypatch.context() as patch:
        patch.setattr(PartsFolder, "remove", lambda self: None)
        run(train)
    assert parts_in(tmp_path)
    with pytest.raises(Killed):
        run(more, kill=2)
    # These are of a pass that may be taken up yet.
    left = parts_in(tmp_path)
    run(train)
    assert parts_in(tmp_path) == left
    for path in left:
        with np.load(path) as file:
            if any(name.startswith("LayerMeans") for name in file):
                path.unlink()
    run(train)
    assert not parts_in(tmp_path)


@pytest.mark.parametrize("count", [1, 2])
def test_unreadable_images_are_counted_where_a_pass_is_taken_up(run, count):
    def work(read, images):
        read = Reader(read.preprocessing, BATCH, False, 1, BadImages(), read.crew, memo=read.memo)
        seen = train(read, images)
        return seen, read.readable(images), read.described(images)["unreadable"]

    with pytest.raises(Killed):
        run(work, count, kill=6, images=Watched((5, 41)))
    images = Watched((5, 41))
    expected = np.delete(np.arange(COUNT), [5, 41])
    for seen, readable, unreadable in run(work, count, images=images):
        np.testing.assert_array_equal(seen.labels, LABELS[expected])
        np.testing.assert_array_equal(readable, expected)
        assert unreadable == 2


def test_a_set_without_images(run):
    empty = ArraySet("empty", "here", PIXELS[:0], LABELS[:0])
    with pytest.raises(ValueError, match="batches is empty; expected at least one batch"):
        run(test_set, images=empty)


def test_detectors_fitted_on_a_pass_that_was_taken_up(run, monkeypatch):
    from grood_jax.detectors import grood

    detector = grood(interpolate=True, interpolate_classes=1)

    def fit(read, images):
        made = fitting.fit_detectors(
            tiny_network.backbone(),
            read.training(images),
            {"grood": detector},
            key=jax.random.key(0),
            memo=read.memo,
        )
        return made.detectors["grood"].state

    expected = undisturbed(fit, 1, monkeypatch)
    for kill in (3, 8):
        with pytest.raises(Killed):
            run(fit, kill=kill)
    same(run(fit), expected)
