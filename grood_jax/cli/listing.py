"""Detectors and their options for a --help that need not wait for JAX."""

import ast
import importlib.util
from importlib import metadata
from pathlib import Path

GROUP = "grood_jax.detectors"


def listed_detectors() -> str:
    """``name:option=default,…`` of every detector, as `grood_jax.detectors.options` has them.

    They are read from the sources. Other packages' detectors are not, so where there are any, all
    are imported.
    """
    options = None if metadata.entry_points(group=GROUP) else _from_sources()
    if options is None:
        from grood_jax import detectors

        options = {name: detectors.options(name) for name in detectors.names()}
    return "; ".join(
        ":".join([name, ",".join(f"{key}={value}" for key, value in own.items())])
        for name, own in options.items()
    )


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
