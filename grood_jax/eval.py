"""The door ``python -m grood_jax.eval``; what is behind it is `grood_jax.cli.eval`."""

import sys

from grood_jax.cli.eval import EvalConfig, main, run

__all__ = ["EvalConfig", "main", "run"]

if __name__ == "__main__":
    sys.exit(main())
