"""The door ``python -m grood_jax.train``; what is behind it is `grood_jax.cli.train`."""

import sys

from grood_jax.cli.train import TrainConfig, main, run

__all__ = ["TrainConfig", "main", "run"]

if __name__ == "__main__":
    sys.exit(main())
