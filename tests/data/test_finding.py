"""What is missing is named all at once, with where it was looked for and how to get it."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prepared import encoded, random_images, write

from grood_jax.data import ArraySet, ImageSet, Preprocessing, TfdsSource, convert, download
from grood_jax.data.finding import SetSpec, Wanted, find_sets
from grood_jax.data.npz import NpzSource
from grood_jax.support.errors import UserError

SIZE = Preprocessing(8, 3, mean=(0.0,) * 3, std=(1.0,) * 3)
IMAGES = [(encoded(image), 0) for image in random_images(4, 8, 3)]

FIRST = SetSpec("first", (TfdsSource("mnist", "test"),))
SECOND = SetSpec(
    "second",
    (TfdsSource("own_name", "test", in_catalogue=False), TfdsSource("cifar10", "test")),
)
BY_HAND = SetSpec(
    "by_hand", (TfdsSource("by_hand_32", "test", in_catalogue=False),), "fill {data_dir} yourself"
)
BUILT_IN = SetSpec(
    "built_in",
    lambda: ArraySet("built_in", "here", random_images(2, 8, 3), np.zeros(2, np.int32)),
)


def find(
    data_dir: Path,
    *specs: SetSpec,
    optional: tuple[SetSpec, ...] = (),
    download: bool = False,
    skip_missing: bool = False,
) -> list[ImageSet | None]:
    wanted = [Wanted(f"the {spec.name}", spec, spec in optional) for spec in specs]
    return find_sets(wanted, data_dir, SIZE, download=download, skip_missing=skip_missing)


def complaint(data_dir: Path, *specs: SetSpec, **options: object) -> str:
    with pytest.raises(UserError) as error:
        find(data_dir, *specs, **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def blocked(monkeypatch) -> dict[str, list[str]]:
    """What stands in the way of downloads; none by default."""
    reasons: dict[str, list[str]] = {}
    monkeypatch.setattr(
        download,
        "obstacles",
        lambda names, data_dir: {name: reasons[name] for name in names if name in reasons},
    )
    return reasons


@pytest.fixture
def downloaded(monkeypatch) -> list[str]:
    """Downloads that were made; each prepares a small set."""
    made: list[str] = []

    def prepare(dataset: str, data_dir: Path) -> None:
        made.append(dataset)
        write(data_dir, dataset, {"test": IMAGES})

    monkeypatch.setattr(download, "prepare", prepare)
    return made


def test_sets_in_order(tmp_path):
    write(tmp_path, "mnist", {"test": IMAGES})
    built_in, first = find(tmp_path, BUILT_IN, FIRST)
    assert built_in is not None
    assert first is not None
    assert (built_in.source, first.source) == ("here", "tfds:mnist:1.0.0:test")
    assert (built_in.name, first.name) == ("built_in", "first")


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        (("own_name",), "own_name"),
        (("cifar10",), "cifar10"),
        (("own_name", "cifar10"), "own_name"),
    ],
)
def test_sources_are_tried_in_order(tmp_path, present, expected):
    for name in present:
        write(tmp_path, name, {"test": IMAGES})
    (found,) = find(tmp_path, SECOND)
    assert found is not None
    assert found.source == f"tfds:{expected}:1.0.0:test"


def test_all_that_is_missing_is_named_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_tensorflow_installed", lambda: True)
    assert complaint(tmp_path, FIRST, BUILT_IN, SECOND, BY_HAND) == (
        "3 of 4 sets cannot be used: "
        f"the first is missing (looked for mnist in {tmp_path}); "
        f"the second is missing (looked for own_name or cifar10 in {tmp_path}); "
        f"the by_hand is missing (looked for by_hand_32 in {tmp_path}). "
        "To get them: run again with --download, which fetches mnist (12 MB), cifar10 (170 MB). "
        f"To get by_hand: fill {tmp_path} yourself"
    )


def test_damage_is_named_along_with_what_is_missing(tmp_path):
    folder = write(tmp_path, "mnist", {"test": IMAGES})
    next(folder.glob("mnist-test*")).unlink()
    found = complaint(tmp_path, FIRST, BY_HAND)
    assert found.startswith(f"2 of 2 sets cannot be used: mnist in {folder} is incomplete: ")
    assert "; the by_hand is missing (looked for" in found


def test_sets_without_a_way_of_their_own_share_one_line(tmp_path):
    other = SetSpec("other", (TfdsSource("other", "test", in_catalogue=False),), BY_HAND.how_to_get)
    found = complaint(tmp_path, BY_HAND, other)
    assert found.endswith(f". To get by_hand, other: fill {tmp_path} yourself")


def test_one_kind_of_source_only(tmp_path):
    write(tmp_path, "mnist", {"test": IMAGES})
    np.savez(tmp_path / "mnist_test.npz", images=random_images(3, 8, 3))
    both = SetSpec("both", (TfdsSource("mnist", "test"), NpzSource("mnist_test.npz")))
    wanted = [Wanted("the set", both), Wanted("built in", BUILT_IN)]
    for kind, source in (
        (None, "tfds:mnist:1.0.0:test"),
        ("tfds", "tfds:mnist:1.0.0:test"),
        ("npz", "npz:mnist_test.npz"),
    ):
        found = find_sets(wanted, tmp_path, SIZE, download=False, skip_missing=False, source=kind)
        assert [images and images.source for images in found] == [source, "here"]
    (tmp_path / "mnist_test.npz").unlink()
    with pytest.raises(UserError, match=r"looked for mnist_test.npz in .*numpy.savez writes such"):
        find_sets(wanted, tmp_path, SIZE, download=False, skip_missing=False, source="npz")
    with pytest.raises(UserError, match="the set is missing .it is not to be had in this form."):
        find_sets(wanted, tmp_path, SIZE, download=False, skip_missing=False, source="openood")


def test_images_that_are_cropped_already_keep_their_borders(tmp_path):
    image = random_images(1, 8, 3)[0]
    write(tmp_path, "mnist", {"test": [(encoded(image), 0)]})
    larger = replace(SIZE, resize=10)
    for cropped in (True, False):
        spec = replace(FIRST, cropped=cropped)
        (found,) = find_sets(
            [Wanted("it", spec)], tmp_path, larger, download=False, skip_missing=False
        )
        assert found is not None
        same = np.array_equal(found.read(np.arange(1))[0][0], image)
        assert same == cropped


def test_what_is_optional_is_skipped_if_asked(tmp_path):
    found = find(tmp_path, BUILT_IN, FIRST, BY_HAND, optional=(FIRST, BY_HAND), skip_missing=True)
    assert [images is None for images in found] == [False, True, True]


def test_what_is_optional_is_not_skipped_unasked(tmp_path):
    found = complaint(tmp_path, BUILT_IN, FIRST, optional=(FIRST,))
    assert found.startswith("1 of 2 sets cannot be used: the first is missing")
    assert found.endswith(". --skip-missing goes on without missing OOD sets")


def test_what_is_needed_is_never_skipped(tmp_path):
    found = complaint(tmp_path, FIRST, SECOND, optional=(SECOND,), skip_missing=True)
    assert found.startswith("1 of 2 sets cannot be used: the first is missing")
    assert "skip-missing" not in found


def test_damage_is_never_skipped(tmp_path):
    folder = write(tmp_path, "mnist", {"test": IMAGES})
    next(folder.glob("mnist-test*")).unlink()
    found = complaint(tmp_path, FIRST, optional=(FIRST,), skip_missing=True)
    assert "is incomplete" in found


def test_downloads(tmp_path, blocked, downloaded):
    again = SetSpec("again", FIRST.sources)
    found = find(tmp_path, FIRST, again, SECOND, BUILT_IN, download=True)
    assert downloaded == ["mnist", "cifar10"]
    sources = [images.source for images in found if images is not None]
    assert sources == [
        "tfds:mnist:1.0.0:test",
        "tfds:mnist:1.0.0:test",
        "tfds:cifar10:1.0.0:test",
        "here",
    ]


def test_what_is_there_is_not_downloaded(tmp_path, downloaded, monkeypatch):
    monkeypatch.setattr(download, "obstacles", lambda names, data_dir: {n: ["?"] for n in names})
    write(tmp_path, "mnist", {"test": IMAGES})
    (found,) = find(tmp_path, FIRST, download=True)
    assert found is not None
    assert downloaded == []


def test_nothing_is_downloaded_while_a_set_cannot_be_had(tmp_path, blocked, downloaded):
    blocked["cifar10"] = ["the host is asleep", "the moon is full"]
    found = complaint(tmp_path, FIRST, SECOND, BY_HAND, download=True)
    assert downloaded == []
    assert found == (
        "2 of 3 sets cannot be used: "
        f"the second is missing (looked for own_name or cifar10 in {tmp_path}); "
        f"the by_hand is missing (looked for by_hand_32 in {tmp_path}). "
        "--download cannot get cifar10: the host is asleep; cifar10: the moon is full. "
        "Or copy sets that tensorflow-datasets prepared elsewhere to these folders. "
        f"To get by_hand: fill {tmp_path} yourself"
    )


def test_a_reason_for_several_sets_is_given_once(tmp_path, blocked):
    blocked |= {"mnist": ["no network"], "cifar10": ["no network"]}
    found = complaint(tmp_path, FIRST, SECOND, download=True)
    assert "--download cannot get mnist, cifar10: no network. " in found


def test_an_optional_set_out_of_reach_is_skipped_and_the_others_downloaded(
    tmp_path, blocked, downloaded
):
    blocked["cifar10"] = ["no network"]
    first, second = find(
        tmp_path, FIRST, SECOND, optional=(SECOND,), download=True, skip_missing=True
    )
    assert first is not None
    assert second is None
    assert downloaded == ["mnist"]


def test_a_download_that_leaves_nothing_usable(tmp_path, blocked, monkeypatch):
    monkeypatch.setattr(
        download, "prepare", lambda name, data_dir: write(data_dir, name, {"train": IMAGES})
    )
    assert "has splits train; expected 'test'" in complaint(tmp_path, FIRST, download=True)


def test_the_command_that_the_message_names_works(tmp_path):
    """What a user is told to run for Tiny ImageNet makes the set that is looked for."""
    from grood_jax import benchmarks

    (spec,) = (s for s in benchmarks.get("cifar10").near if s.name == "tiny_imagenet")
    message = complaint(tmp_path / "my data", spec)
    words = re.search(r"run python -m grood_jax\.data\.convert (.*)$", message)
    assert words is not None
    folders = {name: tmp_path / name for name in ("TEST", "VALIDATION")}
    for count, folder in enumerate(folders.values(), start=2):
        folder.mkdir()
        for index, (image, _) in enumerate(IMAGES[:count]):
            (folder / f"{index}.png").write_bytes(image)
    given = [str(folders.get(word, word)) for word in shlex.split(words[1])]
    assert convert.main(given) == 0
    (found,) = find(tmp_path / "my data", spec)
    assert found is not None
    assert len(found) == 2
    held_out = benchmarks.get("cifar10").validation
    assert held_out is not None
    (found,) = find(tmp_path / "my data", held_out)
    assert found is not None
    assert len(found) == 3
