"""The door ``python -m grood_jax.serve``; what is behind it is `grood_jax.cli.serve`."""

import sys

from grood_jax.cli.serve import ServeConfig, main, run

__all__ = ["ServeConfig", "main", "run"]

if __name__ == "__main__":
    sys.exit(main())
