"""Detectors and their options for a --help that need not wait for JAX."""

import ast
import importlib.util
import textwrap
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

GROUP = "grood_jax.detectors"

WIDTH = 80
"""Letters of a line."""


def listed_detectors() -> str:
    """A line of ``name option=default, …`` for every detector, as `detectors.options` has them.

    They are read from the sources. Other packages' detectors are not, so where there are any, all
    are imported.
    """
    options = None if metadata.entry_points(group=GROUP) else _from_sources()
    if options is None:
        from grood_jax import detectors

        options = {name: detectors.options(name) for name in detectors.names()}
    width = max(map(len, options))
    return "\n".join(
        textwrap.fill(
            f"  {name:<{width}}  {', '.join(_words(own))}".rstrip(),
            WIDTH,
            subsequent_indent=" " * (width + 4),
            break_on_hyphens=False,
        )
        for name, own in options.items()
    )


def _words(options: Mapping[str, object]) -> list[str]:
    """Options as the command line takes them, none with a space inside."""
    return [f"{key}={str(value).replace(' ', '')}" for key, value in options.items()]


def _from_sources() -> dict[str, dict[str, object]] | None:
    """Options by detector in the order of the registry; None where the sources do not tell."""
    spec = importlib.util.find_spec("grood_jax.detectors")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    try:
        return {name: _options(folder / f"{name}.py", name) for name in _registered(folder)}
    except (OSError, LookupError, SyntaxError, ValueError):
        return None


def _registered(folder: Path) -> list[str]:
    registry = ast.parse((folder / "__init__.py").read_text("utf-8"))
    (value,) = [
        node.value
        for node in registry.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "_factories"
    ]
    return [
        item.id
        for node in ast.walk(value or registry)
        if isinstance(node, ast.Tuple)
        for item in node.elts
        if isinstance(item, ast.Name)
    ]


def _options(source: Path, name: str) -> dict[str, object]:
    (factory,) = [
        node
        for node in ast.parse(source.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    return {
        argument.arg: ast.literal_eval(default)
        for argument, default in zip(factory.args.kwonlyargs, factory.args.kw_defaults, strict=True)
        if default is not None
    }
