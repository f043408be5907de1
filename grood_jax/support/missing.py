"""What is said of a package that is missing."""

_DISTRIBUTIONS = {
    "PIL": "pillow",
    "orbax": "orbax-checkpoint",
    "python_multipart": "python-multipart",
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
    return f"the package {_name(package)} is missing; install it with {command(package)}"


def command(*packages: str) -> str:
    """What installs packages, from the index where they lie.

    Args:
      packages: the names by which they are imported.
    """
    return " ".join(["pip install", *map(_name, packages)])


def _name(package: str) -> str:
    return _DISTRIBUTIONS.get(package, package)
