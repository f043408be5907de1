"""What users install: sdist, the wheel made of it, and the command line outside the checkout.

``python tests/smoke.py`` builds both, unpacks the wheel into a folder of its own, and there trains
for an epoch and evaluates that network and the one that comes with the package. The packages it
depends on are those of the Python that runs it.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
IN_WHEEL = (
    "py.typed",
    "deploying/serving/page.html",
    "evaluation/report/page.html",
    "models/weights/digits_small.npz",
    "models/weights/digits_small.json",
    "detectors/grood.py",
)
IN_SDIST = ("tests/conftest.py", "docs/index.md", "mkdocs.yml", "CITATION.cff", "LICENSE")
WHERE = """
import importlib.metadata, json, grood_jax
found = importlib.metadata.distribution("grood-jax")
print(json.dumps([grood_jax.__file__, grood_jax.__version__, found.version]))
"""


def run(*command: str, **options) -> str:
    """What a command prints; its errors are shown, and end this."""
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, **options).stdout


def main() -> None:
    """Builds, installs and runs."""
    with tempfile.TemporaryDirectory(prefix="grood-jax-smoke-") as name:
        built, site, elsewhere = (Path(name, part) for part in ("built", "site", "elsewhere"))
        elsewhere.mkdir()
        # Without --sdist or --wheel, the wheel is built of the sdist.
        run(sys.executable, "-m", "build", "--outdir", str(built), str(ROOT))
        (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            packed = {name.partition("/")[2] for name in archive.getnames()}
        assert set(IN_SDIST) <= packed, sorted(set(IN_SDIST) - packed)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
        run(*pip, "--target", str(site), str(wheel))
        assert all((site / "grood_jax" / part).is_file() for part in IN_WHEEL)
        assert sorted(path.name for path in site.iterdir() if path.is_dir()) == [
            "bin",
            "grood_jax",
            wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info",
        ]
        outside = {
            "cwd": elsewhere,
            "env": os.environ | {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"},
        }
        file, version, installed = json.loads(run(sys.executable, "-c", WHERE, **outside))
        assert Path(file).is_relative_to(site), file
        assert version == installed, (version, installed)
        python = [sys.executable, "-m"]
        train = ["grood_jax.train", "--dataset", "digits", "--epochs", "1"]
        run(*python, *train, "--output-dir", "network", **outside)
        for words in (["--checkpoint", "network"], []):
            words += ["--detectors", "msp", "--limit", "100"]
            print(run(*python, "grood_jax.eval", *words, **outside))
        assert run(str(site / "bin" / "grood"), "--version", **outside) == f"grood-jax {version}\n"
        results = json.loads((elsewhere / "results/digits/results.json").read_text())
        assert list(results["detectors"]) == ["msp"]
        print(f"{wheel.name} works outside the checkout")


if __name__ == "__main__":
    main()
