"""The door ``python -m grood_jax.data.convert``; behind it is `grood_jax.cli.convert`."""

import sys

from grood_jax.cli.convert import ConvertConfig, main, run

__all__ = ["ConvertConfig", "main", "run"]

if __name__ == "__main__":
    sys.exit(main())
