"""Networks against what PyTorch made of the same photographs, with weights drawn from their names.

The numbers were made by ``python experiments/tools/parity.py --golden tests/models/parity.npz``.
"""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
TOLERANCE = 1e-4


def load_experiment() -> ModuleType:
    path = ROOT / "experiments" / "tools" / "parity.py"
    spec = importlib.util.spec_from_file_location("parity", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


parity = load_experiment()


@pytest.fixture(scope="module")
def torch_numbers() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).with_name("parity.npz")) as numbers:
        return dict(numbers)


@pytest.mark.slow
@pytest.mark.parametrize("name", parity.GOLDEN_SIZES)
def test_network_gives_pytorchs_numbers(name: str, torch_numbers: dict[str, np.ndarray]) -> None:
    height, width = parity.GOLDEN_SIZES[name]
    images = np.asarray(parity.IMAGENET.normalize(torch_numbers["images"][:, :height, :width]))
    state = parity.drawn_state(name, parity.GOLDEN_CLASSES, (height, width))
    found = parity.ours(name, state, images)
    for what, array in zip(("layer1", "features", "logits"), found, strict=True):
        expected = torch_numbers[f"{name}.{what}"]
        np.testing.assert_allclose(array, expected, atol=TOLERANCE, rtol=0, err_msg=what)
        # The two photographs are told apart by far more than the tolerance.
        assert np.abs(expected[0] - expected[1]).max() > 0.1
