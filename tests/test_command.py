"""The command line that a results file records."""

import shlex
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import tyro

from grood_jax.cli import command
from grood_jax.support import provenance


@dataclass(frozen=True)
class Config:
    dataset: str = "digits"
    seeds: tuple[int, ...] = (0, 1)
    share: float = 1.0
    limit: int | None = None
    report: bool = True
    save_scores: bool = False
    data_dir: Path | None = None
    output: Path = Path("out.json")


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(dataset="two words", seeds=(7,), share=0.25, limit=3),
        Config(report=False, save_scores=True, data_dir=Path("/data/$HOME/it's")),
    ],
)
def test_the_command_line_gives_the_configuration_back(config):
    words = shlex.split(provenance.command_line("python run.py", config))
    assert words[:2] == ["python", "run.py"]
    assert tyro.cli(Config, args=words[2:]) == config


def test_defaults_are_left_out():
    assert provenance.command_line("python run.py", Config()) == "python run.py"
    assert provenance.command_line("run", Config(seeds=(2, 3)), always=("dataset",)) == (
        "run --dataset digits --seeds 2 3"
    )


def test_what_says_nothing_elsewhere_can_be_left_out():
    config = Config(data_dir=Path("/home/me/images"), output=Path("/tmp/a.json"))
    assert (
        provenance.command_line("run", config, never=("output",), folders=False)
        == "run --data-dir images"
    )
    inside = Config(data_dir=Path("data/tfds"))
    assert provenance.command_line("run", inside, folders=False) == "run --data-dir data/tfds"


def test_a_warning_is_a_line(capsys):
    def work():
        warnings.warn("a class has\n few samples", UserWarning, stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert command.status(work) == 0
    assert capsys.readouterr().err == "warning: a class has few samples\n"
