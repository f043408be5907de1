"""What PyTorch calls the arrays of the networks here, one function a family."""

from grood_jax.models.efficientnet import REPEATS

_ARRAYS = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def torch_name(model: str, path: tuple[str, ...]) -> str:
    """The name of an array in a PyTorch state dict.

    Args:
      model: the network, one of `grood_jax.models.Importable`.
      path: of the array in the network here, as ``("layer1", "layers", "0", "conv1", "kernel")``.

    References:
      The names: resnet.py of github.com/akamaster/pytorch_resnet_cifar10; OpenOOD v1.5,
      openood/networks; torchvision/models; the PyPI package efficientnet-lite-pytorch 0.1.0;
      densenet.py of github.com/andreasveit/densenet-pytorch.
    """
    # What holds modules in a row has no name of its own there.
    *modules, array = [part for part in path if part != "layers"]
    array = _ARRAYS.get(array, array)
    match model:
        case "vit_b_16":
            return _vit(modules, array)
        case "swin_t":
            return _swin(modules, array)
        case "regnet_y_16gf":
            return _regnet(modules, array)
        case "efficientnet_lite0":
            return _efficientnet(modules, array)
        case "densenet_bc_100_12":
            return _densenet(modules, array)
    return _resnet(modules, array, *_RESNETS[model])


_RESNETS = {
    **dict.fromkeys(("resnet20", "resnet32", "resnet44", "resnet56"), ("linear", "shortcut")),
    **dict.fromkeys(("resnet18_32x32", "resnet18_64x64"), ("fc", "shortcut")),
    **dict.fromkeys(("resnet18_224x224", "resnet18", "resnet34", "resnet50"), ("fc", "downsample")),
}
"""How each ResNet calls its class head and its shortcuts."""


def head_name(model: str) -> str:
    """The name of the class head's weight, which has a row for each class."""
    return torch_name(model, ("head", "kernel"))


def stem_name(model: str) -> str:
    """The name of the first convolution's weight, whose second axis are the images' channels."""
    inner = {"vit_b_16": ("patches",), "densenet_bc_100_12": ()}.get(model, ("conv",))
    return torch_name(model, ("stem", *inner, "kernel"))


def _resnet(modules: list[str], array: str, head: str, shortcut: str) -> str:
    match modules:
        case ["head"]:
            return f"{head}.{array}"
        case ["stem", "conv"]:
            return f"conv1.{array}"
        case ["stem", "norm"]:
            return f"bn1.{array}"
        case [stage, block, "shortcut", layer]:
            return f"{stage}.{block}.{shortcut}.{_PAIR[layer]}.{array}"
    stage, block, layer = modules
    return f"{stage}.{block}.{layer.replace('norm', 'bn')}.{array}"


def _vit(modules: list[str], array: str) -> str:
    match modules:
        case ["head"]:
            return f"heads.head.{array}"
        case ["norm"]:
            return f"encoder.ln.{array}"
        case ["stem", "patches"]:
            return f"conv_proj.{array}"
        case ["stem"]:
            return "class_token" if array == "class_token" else "encoder.pos_embedding"
    stage, *rest = modules
    # What ends in an underscore is no module but the beginning of the array's name.
    place = {
        ("norm1",): "ln_1.",
        ("attention", "qkv"): "self_attention.in_proj_",
        ("attention", "out"): "self_attention.out_proj.",
        ("norm2",): "ln_2.",
        ("mlp", "first"): "mlp.0.",
        ("mlp", "second"): "mlp.3.",
    }[tuple(rest)]
    return f"encoder.layers.encoder_layer_{_number(stage) - 1}.{place}{array}"


def _swin(modules: list[str], array: str) -> str:
    match modules:
        case ["head" | "norm" as layer]:
            return f"{layer}.{array}"
        case ["stem", "conv"]:
            return f"features.0.0.{array}"
        case ["stem", "norm"]:
            return f"features.0.2.{array}"
        case [stage, "merging", layer]:
            return f"features.{2 * _number(stage) - 2}.{layer}.{array}"
    stage, _, block, *rest = modules
    place = {
        ("norm1",): "norm1",
        ("attention",): "attn",
        ("attention", "qkv"): "attn.qkv",
        ("attention", "out"): "attn.proj",
        ("norm2",): "norm2",
        ("mlp", "first"): "mlp.0",
        ("mlp", "second"): "mlp.3",
    }[tuple(rest)]
    array = {"bias_table": "relative_position_bias_table"}.get(array, array)
    return f"features.{2 * _number(stage) - 1}.{block}.{place}.{array}"


def _regnet(modules: list[str], array: str) -> str:
    match modules:
        case ["head"]:
            return f"fc.{array}"
        case ["stem", layer]:
            return f"stem.{_PAIR[layer]}.{array}"
    stage, block, part, layer = modules
    place = {
        "shortcut": "proj",
        "first": "f.a",
        "grouped": "f.b",
        "excite": "f.se",
        "last": "f.c",
    }[part]
    inner = {"reduce": "fc1", "expand": "fc2"}.get(layer) or _PAIR[layer]
    number = _number(stage)
    return f"trunk_output.block{number}.block{number}-{block}.{place}.{inner}.{array}"


def _efficientnet(modules: list[str], array: str) -> str:
    match modules:
        case ["head"]:
            return f"_fc.{array}"
        case ["stem", "conv"]:
            return f"_conv_stem.{array}"
        case ["stem", "norm"]:
            return f"_bn0.{array}"
        case ["top", "conv"]:
            return f"_conv_head.{array}"
        case ["top", "norm"]:
            return f"_bn1.{array}"
    stage, block, part, layer = modules
    # Blocks are numbered through all stages.
    index = sum(REPEATS[: _number(stage) - 1]) + int(block)
    conv, norm = {
        "expand": ("_expand_conv", "_bn0"),
        "depthwise": ("_depthwise_conv", "_bn1"),
        "project": ("_project_conv", "_bn2"),
    }[part]
    return f"_blocks.{index}.{conv if layer == 'conv' else norm}.{array}"


def _densenet(modules: list[str], array: str) -> str:
    match modules:
        case ["head"]:
            return f"fc.{array}"
        case ["stem"]:
            return f"conv1.{array}"
        case ["top", "norm"]:
            return f"bn1.{array}"
    stage, *place = modules
    stage = stage.replace("transition", "trans").replace("layer", "block")
    inner = ".".join([stage, *(["layer", place[0]] if len(place) == 2 else [])])
    return f"{inner}.{place[-1].replace('norm', 'bn')}.{array}"


_PAIR = {"conv": "0", "norm": "1"}
"""A convolution and its norm where they stand in a row."""


def _number(stage: str) -> int:
    return int(stage.removeprefix("layer"))
