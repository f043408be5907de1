"""What is said of a package that is missing."""

_DISTRIBUTIONS = {
    "PIL": "pillow",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
    "tensorflow_datasets": "tensorflow-datasets",
}
"""What pip calls packages, where that is not the name by which they are imported."""


def sentence(error: ModuleNotFoundError) -> str:
    """Which package is missing and the command that installs it.

    Raises:
      ModuleNotFoundError: as it is, for a module of this package: that is a mistake in it.
    """
    package = (error.name or "").partition(".")[0]
    if package in ("", "grood_jax"):
        raise error
    name = _DISTRIBUTIONS.get(package, package)
    return f"the package {name} is missing; install it with pip install {name}"
