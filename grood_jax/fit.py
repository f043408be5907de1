"""The door ``python -m grood_jax.fit``; what is behind it is `grood_jax.cli.fit`."""

import sys

from grood_jax.cli.fit import FitConfig, main, run

__all__ = ["FitConfig", "main", "run"]

if __name__ == "__main__":
    sys.exit(main())
