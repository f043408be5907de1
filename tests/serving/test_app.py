"""Answers, and a clear refusal of everything else."""

import asyncio
import io
import json
import struct
import threading
import warnings
import zlib
from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny_network as tiny
from conftest import Client, create_app, encode
from fake_server import NAMES, SIZE, FakeModel
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from grood_jax.data import Preprocessing
from grood_jax.deploying.deployment import Deployment
from grood_jax.deploying.ood_classifier import OODClassifier
from grood_jax.deploying.serving.limits import Limits
from grood_jax.detectors import msp
from grood_jax.storage.checkpoints import ModelSpec

JSON, NPY = "application/json", "application/x-npy"
SMALL = Limits(max_batch=4, max_queue=4, max_body=20_000, max_pixels=4096)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def as_json(value):
    return json.dumps(value).encode()


def huge_png(width, height):
    """A PNG of a few bytes that claims to be large."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


@pytest.fixture(scope="module")
def client():
    client = Client(create_app(FakeModel(), SMALL))
    yield client
    client.close()


def refused(answer, *statuses):
    """The words with which a request was refused."""
    assert answer.status_code in statuses, answer.text
    assert answer.headers["content-type"] == JSON
    assert list(answer.json()) == ["error"]
    assert answer.json()["error"]
    return answer.json()["error"]


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("PNG", "image/png"),
        ("BMP", "image/bmp"),
        ("WEBP", "image/webp"),
        ("GIF", "image/gif"),
        ("JPEG", "IMAGE/JPEG; x=y"),
        ("PNG", "application/octet-stream"),
    ],
)
def test_an_image_file(client, even, form, kind):
    answer = client.predict(encode(even, form), kind)
    assert answer.status_code == 200
    found = answer.json()
    assert list(found) == ["class", "name", "score", "p_value", "is_ood"]
    assert found["class"] == 6 and found["name"] == "silver" and found["is_ood"] is False
    assert found["score"] == pytest.approx(0, abs=0.02)


def test_ways_to_give_pixels_agree(client, noisy):
    bodies = [
        (encode(noisy), "image/png"),
        (npy(noisy), NPY),
        (npy(np.asfortranarray(noisy)), NPY),
        (as_json({"pixels": noisy.tolist()}), JSON),
    ]
    answers = [client.predict(*body).json() for body in bodies]
    assert answers[0]["is_ood"] is True
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize("count", [1, 3])
def test_several(client, even, noisy, count):
    batch = np.stack([even, noisy, even])[:count]
    for content, kind in ((npy(batch), NPY), (as_json({"pixels": batch.tolist()}), JSON)):
        found = client.predict(content, kind).json()["predictions"]
        assert [one["is_ood"] for one in found] == [False, True, False][:count]


def test_a_form_of_files(client, even, noisy):
    files = [("a", ("a.png", encode(even), "image/png")), ("b", ("b", encode(noisy, "BMP")))]
    answers = client.ask("POST", "/predict", files=files).json()["predictions"]
    alone = [client.predict(encode(image)).json() for image in (even, noisy)]
    assert answers == alone
    (one,) = client.ask("POST", "/predict", files=files[:1]).json()["predictions"]
    assert one == alone[0]


def test_forms_that_are_refused(client, even):
    def ask(**more):
        return client.ask("POST", "/predict", **more)

    image = ("a.png", encode(even))
    assert "Too many files" in refused(ask(files=[("a", image)] * 5), 400)
    assert "'size' in the form" in refused(ask(files=[("a", image)], data={"size": "8"}), 422)
    assert "file 2: " in refused(ask(files=[("a", image), ("b", ("b.png", b"none"))]), 400)
    form = "multipart/form-data; boundary=x"
    assert "holds no file" in refused(client.predict(b"--x--\r\n", form), 422)
    # Cut short.
    assert "holds no file" in refused(client.predict(b"--x\r\nbad", form), 422)
    assert "no form" in refused(client.predict(b"", "multipart/form-data"), 400)
    assert "no form" in refused(client.predict(b"\0" * 99, form), 400)


def test_nearest_classes(client, even):
    found = client.predict(npy(even), NPY, "?nearest=4").json()
    assert [one["class"] for one in found["nearest"]] == [6, 6, 6, 7]
    assert found["nearest"][3] == {"class": 7, "name": "pearl", "distance": 0.75}
    assert "nearest" not in client.predict(npy(even), NPY, "?nearest=0").json()


@pytest.mark.parametrize("query", ["", "?nearest=2"])
def test_the_network_runs_once_for_a_request(serve_in_process, query):
    passes = []

    def early(arrays, images):
        jax.debug.callback(lambda: passes.append(len(images)))
        return tiny.early(arrays, images)

    network = replace(tiny.backbone(), early=early, input_mean=(0.5,))
    key = jax.random.key(0)
    classifier = OODClassifier.fit(
        network, tiny.pairs(64, 0), detector=msp(), calibration=tiny.images(20, 1), key=key
    )
    prepare = Preprocessing(4, 1, (0.5,), (0.5,))
    spec = ModelSpec(model="tiny", num_classes=tiny.CLASSES, preprocessing=prepare, source="a test")
    made = Deployment(classifier, None, spec, None, tuple("abcd"))
    client = serve_in_process(made, Limits(max_batch=1))
    jax.effects_barrier()
    passes.clear()
    found = client.predict(npy(np.zeros(tiny.SHAPE, np.uint8)), NPY, query)
    assert ("nearest" in found.json()) == bool(query)
    jax.effects_barrier()
    assert passes == [1]


@pytest.mark.parametrize("given", ["-1", "11", "x", "", "1.5", "9" * 5000, "١"])
def test_nearest_is_bounded(client, even, given):
    answer = client.ask(
        "POST",
        "/predict",
        params={"nearest": given},
        content=npy(even),
        headers={"Content-Type": NPY},
    )
    assert "expected 0 to 10" in refused(answer, 400)


@pytest.mark.parametrize("kind", ["", "text/plain", "image/tiff", "multipart/mixed; boundary=x"])
def test_unknown_types(client, even, kind):
    assert "image/png" in refused(client.predict(encode(even), kind), 415)


@pytest.mark.parametrize(
    "content",
    [b"", b"GIF89a", b"\xff\xd8\xff\xe0", b"no image", encode(np.zeros((9, 9, 3), np.uint8))[:-30]],
)
def test_broken_images(client, content):
    assert "no readable PNG, JPEG" in refused(client.predict(content), 400)


@pytest.mark.parametrize("sizes", [(65, 64), (30_000, 30_000), (11_000, 11_000), (1, 600)])
def test_decompression_bombs_are_refused_by_their_header(client, sizes):
    # 8 × 4,800 pixels are what 1 × 600 would become. The file has no pixels: decoding would fail.
    assert "pixels" in refused(client.predict(huge_png(*sizes)), 413)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright(orientation):
    class Corner(FakeModel):
        """Answers with the value of the upper left corner."""

        def predict(self, pixels):
            return replace(super().predict(pixels), score=pixels[:, 0, 0, 0].astype(np.float32))

    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    # Where the upper left corner of what is seen is stored, by TIFF 6.0's orientation.
    rows, columns = (orientation in (3, 4, 6, 7)), (orientation in (2, 3, 7, 8))
    image[-1 if rows else 0, -1 if columns else 0] = 200
    exif = Image.Exif()
    exif[274] = orientation
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", exif=exif)
    client = Client(create_app(Corner(), SMALL))
    assert client.predict(file.getvalue()).json()["score"] == 200
    client.close()


def test_a_jpeg_of_very_many_scans(client, even):
    content = encode(even, "JPEG", progressive=True)
    assert client.predict(content).status_code == 200
    assert "scans" in refused(
        client.predict(content[:-2] + b"\xff\xda\x00\x08" * 100 + content[-2:]), 413
    )


WRONG_PIXELS = [
    None,
    7,
    "x" * 192,
    [],
    [[]],
    [[[[[[1]]]]]],
    [[[0] * 3] * SIZE] * (SIZE - 1),
    [[[0] * 3] * SIZE] * (SIZE - 1) + [[[0] * 3] * (SIZE - 1)],
    [[[0] * 3] * SIZE] * (SIZE - 1) + [7],
    [[[0] * 4] * SIZE] * SIZE,
    *([[[value] * 3] * SIZE] * SIZE for value in (256, -1, 1.5, 1.0, True, None, "1", [], 10**30)),
]


@pytest.mark.parametrize("pixels", WRONG_PIXELS, ids=lambda value: str(value)[-30:])
def test_wrong_json_arrays(client, pixels):
    refused(client.predict(as_json({"pixels": pixels}), JSON), 422)


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"image": []}', b'{"pixels": [], "more": 1}'])
def test_wrong_json_objects(client, content):
    assert '{"pixels": [...]}' in refused(client.predict(content, JSON), 422)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 15_000, b"1" * 10_000, b'{"pixels": NaN', b"\x00"]
)
def test_malformed_json(client, content):
    assert "no JSON" in refused(client.predict(content, JSON), 400)


def test_json_with_nan_or_infinity(client):
    for value in (float("nan"), float("inf")):
        pixels = [[[value] * 3] * SIZE] * SIZE
        assert "whole numbers" in refused(client.predict(as_json({"pixels": pixels}), JSON), 422)


SHAPE = (SIZE, SIZE, 3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full(SHAPE, np.nan, np.float32), "dtype float32"),
        (np.full(SHAPE, np.inf), "dtype float64"),
        (np.zeros(SHAPE, np.int8), "dtype int8"),
        (np.zeros(SHAPE, "V1"), "dtype"),
        (np.zeros(SHAPE, [("a", "u1")]), "dtype"),
        (
            np.zeros((SIZE, SIZE, 1), np.uint8),
            r"shape (8, 8, 1); expected (8, 8, 3) or (B, 8, 8, 3)",
        ),
        (np.zeros((0, *SHAPE), np.uint8), "shape (0, 8, 8, 3)"),
        (np.zeros((1, 1, *SHAPE), np.uint8), "shape (1, 1, 8, 8, 3)"),
        (np.uint8(1), "shape ()"),
    ],
)
def test_wrong_npy_arrays(client, array, message):
    assert message in refused(client.predict(npy(array), NPY), 422)


def test_too_many_images(client):
    batch = np.zeros((5, *SHAPE), np.uint8)
    for content, kind in ((npy(batch), NPY), (as_json({"pixels": batch.tolist()}), JSON)):
        assert "5 images at once; expected at most 4" in refused(client.predict(content, kind), 413)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: b"",
        lambda file: file[:-1],
        lambda file: file + b"x",
        lambda file: file[:20],
        lambda file: file.replace(b"\x01\x00", b"\x03\x00", 1),
        lambda file: file.replace(b"False", b"((((("),
        lambda file: file.replace(b"False", b"1L   "),
        lambda file: file.replace(b"'|u1'", b"'|O' "),
    ],
)
def test_malformed_npy(client, even, spoil):
    refused(client.predict(spoil(npy(even)), NPY), 400, 422)


@pytest.mark.parametrize(
    "shape", ["(999999999,)", "(8, 8, 999999999)", "(0x" + "f" * 6000 + ",)", "(8, 8, -3)"]
)
def test_an_npy_header_that_promises_much_takes_no_memory(client, shape):
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    file = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    refused(client.predict(file, NPY), 422)


def test_a_pickle_is_not_opened(client):
    class Bomb:
        def __reduce__(self):
            return (print, ("opened",))

    assert "dtype object" in refused(client.predict(npy(np.array([Bomb()])), NPY), 422)


def test_a_body_too_large(client):
    assert "20000 bytes" in refused(client.predict(b"x" * 20_001), 413)


def test_a_body_too_large_without_its_length(client):
    read = 0

    async def chunks():
        nonlocal read
        while True:
            read += 1000
            yield b"x" * 1000

    refused(client.predict(chunks()), 413)
    assert read <= 22_000


def test_a_slow_body(serve_in_process):
    client = serve_in_process(limits=Limits(max_batch=1, body_timeout=0.1))

    async def chunks():
        while True:
            await asyncio.sleep(0.02)
            yield b"x"

    answer = client.predict(chunks())
    assert "longer than 0.1 s" in refused(answer, 408)
    assert answer.headers["connection"] == "close"


def test_bodies_together_are_bounded(serve_in_process, even):
    client = serve_in_process(
        limits=Limits(max_batch=1, max_body=1000, max_held=1000, body_timeout=5.0)
    )
    full = asyncio.Event()

    async def chunks():
        yield b"x" * 900
        full.set()
        await asyncio.sleep(0.2)

    async def late():
        await full.wait()
        yield b"x" * 200

    common = {"method": "POST", "url": "/predict", "headers": {"Content-Type": "image/png"}}
    first, second = client.together({**common, "content": chunks()}, {**common, "content": late()})
    refused(first, 400)
    refused(second, 503)
    assert second.headers["retry-after"] == "1"
    assert client.predict(npy(even), NPY).status_code == 200


@pytest.fixture
def slow(serve_in_process):
    """A model that waits for a signal, behind a queue of two."""
    model = FakeModel()
    client = serve_in_process(model, Limits(max_batch=2, max_queue=2, timeout=1.0))
    go = threading.Event()
    quick = model.predict
    model.predict = lambda pixels: go.wait(5) and quick(pixels)
    yield client, go
    go.set()


def request_of(image):
    headers = {"Content-Type": NPY}
    return {"method": "POST", "url": "/predict", "content": npy(image), "headers": headers}


def test_a_full_queue_and_a_deadline(slow, even):
    client, go = slow
    answers = client.together(*[request_of(np.stack([even] * 2))] * 4)
    assert {answer.status_code for answer in answers} == {503, 504}
    for answer in answers:
        refused(answer, 503, 504)
        assert answer.headers["retry-after"] == "1"
    go.set()
    assert client.predict(npy(even), NPY).status_code == 200


def test_a_failing_model_is_an_error_of_the_server(serve_in_process, even, caplog):
    model = FakeModel()
    client = serve_in_process(model, SMALL)
    assert client.ask("GET", "/healthz").json() == {"status": "ok"}
    quick = model.predict

    def broken(pixels):
        raise RuntimeError("secret")

    model.predict = broken
    message = refused(client.predict(npy(even), NPY), 500)
    assert "secret" not in message
    assert client.ask("GET", "/healthz").status_code == 503
    model.predict = quick
    assert client.predict(npy(even), NPY).status_code == 200
    assert client.ask("GET", "/healthz").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/predict", 405),
        ("POST", "/", 405),
        ("DELETE", "/healthz", 405),
        ("GET", "/predict/", 404),
        ("GET", "/../etc", 404),
        ("GET", "/%00%ff", 404),
    ],
)
def test_other_paths_and_methods(client, method, path, status):
    answer = client.ask(method, path)
    refused(answer, status)
    assert ("allow" in answer.headers) == (status == 405)


def test_calibration(serve_in_process):
    found = serve_in_process(limits=SMALL).ask("GET", "/calibration").json()
    assert sum(found["counts"]) == 500
    assert len(found["edges"]) == len(found["counts"]) + 1
    assert found["thresholds"] == [pytest.approx(0.2)]
    assert found["class_names"] == list(NAMES)


def test_infinities_are_null(serve_in_process, even):
    class Extreme(FakeModel):
        def predict(self, pixels):
            bad = np.full(len(pixels), np.inf, np.float32)
            return replace(super().predict(pixels), score=bad, p_value=np.full_like(bad, np.nan))

        def calibration_scores(self):
            return np.float32([1, 2, np.inf])

        def thresholds(self):
            return np.float32([np.inf] * 9 + [1])

    client = serve_in_process(Extreme(), SMALL)
    calibration = client.ask("GET", "/calibration").json()
    assert calibration["thresholds"] == [None] * 9 + [1]
    assert sum(calibration["counts"]) == 2
    found = client.predict(npy(even), NPY).json()
    assert (found["score"], found["p_value"]) == (None, None)


def test_no_calibration_scores(serve_in_process):
    model = FakeModel()
    model.scores = model.scores[:0]
    assert sum(serve_in_process(model, SMALL).ask("GET", "/calibration").json()["counts"]) == 0


def test_requests_at_the_same_time_share_batches(serve_in_process, even, noisy):
    model = FakeModel(seconds=0.02)
    client = serve_in_process(model, Limits(max_batch=8, max_queue=64))
    compiled = set(model.shapes)
    assert {shape[0] for shape in compiled} == {1, 2, 4, 8}
    model.shapes.clear()
    answers = client.together(*[request_of(even), request_of(noisy)] * 16)
    assert [answer.json()["is_ood"] for answer in answers] == [False, True] * 16
    assert len(model.shapes) < 16
    assert set(model.shapes) <= compiled


def test_metrics(serve_in_process, even, noisy):
    client = serve_in_process(limits=SMALL)
    client.predict(npy(np.stack([even, noisy, noisy])), NPY)
    client.predict(b"", NPY)
    client.ask("GET", "/made/up")
    answer = client.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    lines = answer.text.splitlines()
    for line in (
        'grood_requests_total{path="/predict",status="200"} 1.0',
        'grood_requests_total{path="/predict",status="400"} 1.0',
        'grood_requests_total{path="other",status="404"} 1.0',
        'grood_images_total{is_ood="true"} 2.0',
        'grood_images_total{is_ood="false"} 1.0',
        "grood_queue_images 0.0",
        "grood_batch_images_sum 3.0",
        'grood_request_seconds_count{path="/predict"} 2.0',
    ):
        assert line in lines
    # Two applications in one process do not share a registry.
    other = serve_in_process(limits=SMALL).ask("GET", "/metrics").text
    assert 'grood_images_total{is_ood="true"} 0.0' in other


def test_the_page_may_load_nothing_from_elsewhere(client):
    answer = client.ask("GET", "/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


HEADERS = (npy(np.zeros(SHAPE, np.uint8)), encode(np.zeros(SHAPE, np.uint8)))
NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=20,
)
BODIES = st.one_of(
    st.binary(max_size=300),
    NESTED.map(as_json),
    st.fixed_dictionaries({"pixels": NESTED}).map(as_json),
    arrays(
        st.sampled_from([np.uint8, np.float32, np.bool_, np.int64, np.dtype("U2")]),
        st.lists(st.sampled_from([0, 1, 3, SIZE]), max_size=5).map(tuple),
    ).map(npy),
    # Files with some bytes replaced.
    st.builds(
        lambda file, at, more: file[: at % len(file)] + more + file[at % len(file) + len(more) :],
        st.sampled_from(
            HEADERS
            + tuple(
                encode(np.zeros(SHAPE, np.uint8), form) for form in ("JPEG", "WEBP", "GIF", "BMP")
            )
        ),
        st.integers(0, 2000),
        st.binary(max_size=8),
    ),
)


@pytest.mark.slow
@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=BODIES,
    kind=st.sampled_from([JSON, NPY, "image/png", "application/octet-stream", "text/html"]),
    nearest=st.none() | st.text(max_size=4),
)
@example(content=b'{"pixels": [["' + b"x" * 9000 + b'", ""]]}', kind=JSON, nearest=None)
@example(content=b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 9000, kind=NPY, nearest=None)
def test_no_request_is_an_error_of_the_server(client, content, kind, nearest):
    params = {} if nearest is None else {"nearest": nearest}
    with warnings.catch_warnings():
        # Pillow and NumPy warn of what they find odd.
        warnings.simplefilter("ignore")
        answer = client.ask(
            "POST", "/predict", content=content, params=params, headers={"Content-Type": kind}
        )
    assert answer.status_code in (200, 400, 413, 415, 422), answer.text
    assert ("error" in answer.json()) == (answer.status_code != 200)
