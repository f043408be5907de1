"""State dicts of PyTorch's networks as networks of ours: names, layouts, what does not fit."""

import math
from collections.abc import Mapping
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from grood_jax import models
from grood_jax.models import Importable
from grood_jax.models.staged import Staged
from grood_jax.models.torch.names import head_name, stem_name, torch_name
from grood_jax.models.vit import PATCH
from grood_jax.support import checks
from grood_jax.support.errors import UserError

_IGNORED = ("num_batches_tracked", "relative_position_index")
"""Arrays on which nothing depends: the counters of PyTorch's batch norms, and a table that Swin's
windows alone decide."""

OTHERWISE = (
    "a network that is not imported is evaluated by its features and logits, in five lines of "
    "PyTorch and python -m grood_jax.eval --outputs: see docs/how-to/outputs.md"
)
"""What is left where a network is not known."""


def import_state_dict(state: Mapping[str, np.ndarray], name: str) -> Staged:
    """Makes a network of a PyTorch state dict.

    Args:
      state: arrays by PyTorch's names and in its layouts, as `read_state_dict` returns them. How
        many classes and channels the network has is read from their shapes, and for vit_b_16 the
        size of its images.
      name: the network, one of ``Importable``.

    Returns:
      The network, float32.

    Raises:
      TypeError: ``state`` is no mapping of names.
      ValueError: no network that can be imported has that name.
      UserError: entries are missing, unexpected, of the wrong shape, not floating-point or not
        finite; the message lists them all.

    References:
      The names: those of `torch_names.torch_name`.
    """
    if name not in get_args(Importable):
        # With the way that is left.
        try:
            checks.choice("model", name, get_args(Importable))
        except ValueError as error:
            raise ValueError(f"{error}; {OTHERWISE}") from error
    if not isinstance(state, Mapping) or not all(isinstance(entry, str) for entry in state):
        raise TypeError(f"state is a {type(state).__name__}; expected arrays by PyTorch's names")
    if name == "vit_b_16":
        state = _with_new_names(state)
    abstract = nnx.eval_shape(
        lambda: models.create(
            name,
            num_classes=_size(state, head_name(name), 0, 2, default=10),
            channels=_size(state, stem_name(name), 1, 4, default=3),
            image_size=_image_size(state),
            rngs=nnx.Rngs(0),
        )
    )
    graph, variables = nnx.split(abstract)
    tree = nnx.to_pure_dict(variables)
    _check(state, torch_shapes(abstract, name), name)
    arrays = jax.tree_util.tree_map_with_path(
        lambda path, leaf: _from_torch(_keys(path), state[torch_name(name, _keys(path))]), tree
    )
    nnx.replace_by_pure_dict(variables, arrays)
    return nnx.merge(graph, variables)


def torch_shapes(model: Staged, name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's arrays in PyTorch, where its state dict has them.

    Args:
      model: the network; its arrays may be abstract.
      name: the network's, one of ``Importable``.
    """
    arrays = nnx.to_pure_dict(nnx.split(model)[1])
    leaves = [(_keys(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)]
    return {torch_name(name, path): _torch_shape(path, leaf.shape) for path, leaf in leaves}


def _with_new_names(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    # torchvision's published ViTs have the names that its MLPBlock had in its first version.
    renamed = {}
    for key, array in state.items():
        new = key.replace(".mlp.linear_1.", ".mlp.0.").replace(".mlp.linear_2.", ".mlp.3.")
        renamed[key if new in state else new] = array
    return renamed


def _size(state: Mapping[str, np.ndarray], name: str, axis: int, rank: int, *, default: int) -> int:
    array = state.get(name)
    # Whatever is wrong with the array is listed with all else that is wrong.
    return default if array is None or array.ndim != rank else max(1, array.shape[axis])


def _image_size(state: Mapping[str, np.ndarray]) -> int:
    positions = _size(state, "encoder.pos_embedding", 1, 3, default=1) - 1
    # The other position is the class token's.
    side = math.isqrt(positions)
    return PATCH * side if 0 < side**2 == positions else 224


def _keys(path: Any) -> tuple[str, ...]:
    return tuple(str(entry.key) for entry in path)


# Kernels: HWIO here and OIHW there for convolutions, (D, C) here and (C, D) there for linear
# layers. All else is laid out alike.
def _torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    if path[-1] != "kernel":
        return shape
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def _from_torch(path: tuple[str, ...], array: np.ndarray) -> jax.Array:
    if path[-1] == "kernel":
        array = array.transpose((2, 3, 1, 0) if array.ndim == 4 else (1, 0))
    return jnp.array(array, jnp.float32)


def _check(
    state: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], name: str
) -> None:
    modules = {key.rpartition(".")[0] for key in expected}
    ignored = {f"{module}.{array}" for module in modules for array in _IGNORED}
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys() - ignored)
    wrong = []
    for key in expected.keys() & state.keys():
        array = state[key]
        if array.shape != expected[key]:
            wrong.append(f"{key} has shape {array.shape}, expected {expected[key]}")
        elif not jnp.issubdtype(array.dtype, jnp.floating):
            wrong.append(f"{key} has dtype {array.dtype}, expected floating-point numbers")
        elif not np.isfinite(array).all():
            wrong.append(f"{key} holds NaN or infinite values")
    faults = [
        *([f"missing: {', '.join(missing)}"] if missing else []),
        *([f"unexpected: {', '.join(unexpected)}"] if unexpected else []),
        *sorted(wrong),
    ]
    if faults:
        raise UserError(
            f"the state dict does not fit model {name}; {'; '.join(faults)}; if it is of another "
            f"architecture: {OTHERWISE}"
        )
