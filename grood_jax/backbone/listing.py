"""What submodules a model has, by the names that a backbone is cut by."""

from collections.abc import Callable
from typing import Any

from grood_jax.backbone.adapting import network_of
from grood_jax.backbone.flow import abstract_run
from grood_jax.backbone.naming import LayerTable, images_like, layer_table


def layers(
    model: Any,
    example: Any,
    variables: Any = None,
    *,
    head: str | None = None,
    call: Callable[..., Any] | None = None,
) -> LayerTable:
    """The submodules of a model in the order in which their calls end; printed, it is a table.

    Each has a path, the name of its class, the shape of its output, and whether the network can be
    cut after it: whether what follows reads nothing of what comes before. Nothing is computed.

    Args:
      model: a flax.nnx module, or a flax.linen module.
      example: a batch of images as the model takes them, (B, ...); only its shape and dtype matter.
      variables: the collections of a linen module.
      head: the path of the layer from features to logits; the last linear layer by default.
      call: how the model is run, as for `Backbone.from_nnx`.

    Raises:
      TypeError: ``model`` is no module of Flax, ``example`` no batch of images, ``head`` no name;
        ``variables`` are no mapping, or given with an nnx module.
      ValueError: the model cannot run on the example, or has no such head.
    """
    network, arrays = network_of(model, variables, call)
    return layer_table(abstract_run(network, arrays, images_like(example, False)), head)
