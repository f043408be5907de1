"""The door ``python -m grood_jax.models.import_torch`` to `grood_jax.cli.import_torch`."""

import sys

from grood_jax.cli.import_torch import ImportConfig, main, run

__all__ = ["ImportConfig", "main", "run"]

if __name__ == "__main__":
    sys.exit(main())
