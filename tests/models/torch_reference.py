"""PyTorch's residual networks in float64 NumPy, from the state dict's names and layouts alone."""

import numpy as np

State = dict[str, np.ndarray]
DEPTHS = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9, "resnet18_32x32": 2}


def shapes(name: str, classes: int, channels: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a state dict, in the order in which PyTorch writes them."""
    openood = name == "resnet18_32x32"
    widths = (64, 128, 256, 512) if openood else (16, 32, 64)
    result: dict[str, tuple[int, ...]] = {"conv1.weight": (widths[0], channels, 3, 3)}
    result |= _norm("bn1", widths[0])
    inputs = widths[0]
    for layer, width in enumerate(widths, 1):
        for block in range(DEPTHS[name]):
            prefix = f"layer{layer}.{block}"
            result[f"{prefix}.conv1.weight"] = (width, inputs, 3, 3)
            result |= _norm(f"{prefix}.bn1", width)
            result[f"{prefix}.conv2.weight"] = (width, width, 3, 3)
            result |= _norm(f"{prefix}.bn2", width)
            if openood and inputs != width:
                result[f"{prefix}.shortcut.0.weight"] = (width, inputs, 1, 1)
                result |= _norm(f"{prefix}.shortcut.1", width)
            inputs = width
    head = "fc" if openood else "linear"
    return result | {f"{head}.weight": (classes, inputs), f"{head}.bias": (classes,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    arrays = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{array}": (width,) for array in arrays} | {f"{name}.num_batches_tracked": ()}


def random_state(name: str, classes: int = 10, channels: int = 3, seed: int = 0) -> State:
    """A network's state dict with numbers drawn at random."""
    return draw(shapes(name, classes, channels), seed)


def draw(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> State:
    """Arrays with the spread of trained ones, so that activations neither die nor grow."""
    rng = np.random.default_rng(seed)
    state = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            state[key] = np.array(7)
        elif len(shape) > 1:
            fan = np.prod(shape[1:])
            state[key] = (rng.standard_normal(shape) * np.sqrt(2 / fan)).astype(np.float32)
        elif key.endswith(("var", "weight")):
            state[key] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            state[key] = rng.uniform(-0.3, 0.3, shape).astype(np.float32)
    return state


def conv(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """torch.nn.Conv2d with padding (size - 1) / 2 on every side: NCHW, OIHW."""
    size = weight.shape[2]
    pad = (size - 1) // 2
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(2, 3))
    windows = windows[:, :, ::stride, ::stride]
    return np.einsum("bihwyx,oiyx->bohw", windows, weight.astype(np.float64), optimize=True)


def norm(x: np.ndarray, state: State, name: str) -> np.ndarray:
    """torch.nn.BatchNorm2d in evaluation mode, with its default epsilon."""
    weight, bias, mean, var = (
        state[f"{name}.{array}"].astype(np.float64)[:, None, None]
        for array in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def block(x: np.ndarray, state: State, name: str, stride: int) -> np.ndarray:
    """A basic block with whichever shortcut the state dict has."""
    y = np.maximum(norm(conv(x, state[f"{name}.conv1.weight"], stride), state, f"{name}.bn1"), 0)
    y = norm(conv(y, state[f"{name}.conv2.weight"], 1), state, f"{name}.bn2")
    if f"{name}.shortcut.0.weight" in state:
        x = norm(conv(x, state[f"{name}.shortcut.0.weight"], stride), state, f"{name}.shortcut.1")
    elif x.shape[1] != y.shape[1]:
        extra = (y.shape[1] - x.shape[1]) // 2
        x = np.pad(x[:, :, ::stride, ::stride], ((0, 0), (extra, extra), (0, 0), (0, 0)))
    return np.maximum(x + y, 0)


def forward(state: State, x: np.ndarray) -> dict[str, np.ndarray]:
    """Activations (NCHW) after each stage, features and logits of images NCHW."""
    x = np.maximum(norm(conv(x, state["conv1.weight"], 1), state, "bn1"), 0)
    result = {"stem": x}
    layer = 1
    while f"layer{layer}.0.conv1.weight" in state:
        index = 0
        while f"layer{layer}.{index}.conv1.weight" in state:
            stride = 2 if layer > 1 and index == 0 else 1
            x = block(x, state, f"layer{layer}.{index}", stride)
            index += 1
        result[f"layer{layer}"] = x
        layer += 1
    head = "fc" if "fc.weight" in state else "linear"
    features = x.mean(axis=(2, 3))
    logits = features @ state[f"{head}.weight"].T.astype(np.float64) + state[f"{head}.bias"]
    return result | {"features": features, "logits": logits}
