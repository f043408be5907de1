"""The door ``python -m grood_jax.predict``; what is behind it is `grood_jax.cli.predict`."""

import sys

from grood_jax.cli.predict import PredictConfig, main, run

__all__ = ["PredictConfig", "main", "run"]

if __name__ == "__main__":
    sys.exit(main())
