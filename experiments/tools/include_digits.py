"""Makes the files of the network that comes with the package, from a checkpoint of the digits.

python -m grood_jax.train --dataset digits && python experiments/tools/include_digits.py

Every figure that rests on it must be made anew after that: experiments/results/digits.json and
digits_all.json (their commands stand in them), the tables, and what the README and the tutorial
show; the tests say where.
"""

from pathlib import Path

from grood_jax import benchmarks
from grood_jax.storage import checkpoints, included
from grood_jax.support import provenance
from grood_jax.training import loop as training
from grood_jax.training.runs import default_directory

WEIGHTS = Path(__file__).parent.parent.parent / "grood_jax" / "models" / "weights"


def main() -> None:
    loaded = checkpoints.load_model(default_directory("digits", "small", 0))
    test = benchmarks.open_benchmark(benchmarks.get("digits"), ood=False).test
    about = {
        "command": "python -m grood_jax.train --dataset digits",
        "test_accuracy": round(training.accuracy(loaded.model, test, loaded.spec.preprocessing), 4),
        "versions": provenance.versions(),
        "device": provenance.device(),
    }
    included.write(WEIGHTS, loaded, about)


if __name__ == "__main__":
    main()
