"""Images and bodies of requests that a coverage-guided fuzzer makes up.

  python experiments/tools/fuzz_images.py --seconds 600

An image must be decoded, or refused with ValueError; a body of a request must become pixels, or an
error of status 400 to 499. Anything else, memory beyond --megabytes, or 20 s spent on one input
ends the run with a traceback and a file ``crash-…`` that holds the input. Needs atheris, and for
the bodies what ``pip install -e '.[serve]'`` brings.
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

import numpy as np

SIZE = 8


def seeds(folder: Path) -> None:
    """Images of each format, a .npy file and a JSON text, each behind a byte for its kind."""
    from PIL import Image

    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    for form, options in (
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {"save_all": True, "append_images": [picture]}),
        ("GIF", {"save_all": True, "append_images": [picture]}),
        ("BMP", {}),
    ):
        file = io.BytesIO()
        picture.save(file, form, **options)
        (folder / f"{form}{len(options)}").write_bytes(b"\0" + file.getvalue())
    file = io.BytesIO()
    np.save(file, np.zeros((1, SIZE, SIZE, 3), np.uint8))
    (folder / "npy").write_bytes(b"\1" + file.getvalue())
    (folder / "json").write_bytes(b'\2{"pixels": [[[0, 1, 255]]]}')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="how long (default: 60)")
    parser.add_argument("--megabytes", type=int, default=4096, help="of memory (default: 4096)")
    parser.add_argument("--corpus", type=Path, help="a folder whose inputs are used and added to")
    options = parser.parse_args()
    try:
        import atheris
    except ImportError:
        print("error: atheris is not installed; pip install atheris", file=sys.stderr)
        return 1
    # What is imported here is watched: inputs that reach new code are kept.
    with atheris.instrument_imports(
        include=["PIL", "grood_jax.data", "grood_jax.deploying.serving"]
    ):
        from PIL import Image

        from grood_jax.data.preprocessing import Preprocessing, decode

        # Pillow loads what reads a format when it first meets it.
        Image.init()
        try:
            from starlette.exceptions import HTTPException

            from grood_jax.deploying.serving import images as bodies
            from grood_jax.deploying.serving.limits import Limits
        except ImportError:
            bodies = None
            print("starlette is not installed: bodies of requests are left out", file=sys.stderr)
    preprocessing = Preprocessing(SIZE, 3, (0.5,) * 3, (0.5,) * 3)

    def try_one(data: bytes) -> None:
        kind, rest = data[:1], data[1:]
        try:
            found = decode(rest, SIZE, 3)
            assert found.shape == (SIZE, SIZE, 3) and found.dtype == np.uint8
        except ValueError:
            pass
        if bodies is None:
            return
        types = {b"\1": bodies.NPY_TYPE, b"\2": bodies.JSON_TYPE}
        try:
            found = bodies.read(types.get(kind, "image/png"), rest, preprocessing, Limits())
            assert found.shape[-3:] == (SIZE, SIZE, 3) and found.dtype == np.uint8
        except HTTPException as error:
            assert 400 <= error.status_code < 500 and error.detail

    with tempfile.TemporaryDirectory() as folder:
        seeds(Path(folder))
        if options.corpus is not None:
            options.corpus.mkdir(parents=True, exist_ok=True)
        given = [str(options.corpus)] if options.corpus else []
        flags = [
            f"-max_total_time={options.seconds}",
            f"-rss_limit_mb={options.megabytes}",
            "-timeout=20",
            "-max_len=20000",
        ]
        # The first folder is the one that is added to.
        atheris.Setup([sys.argv[0], *flags, *given, folder], try_one)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
