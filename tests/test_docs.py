"""The pages print what they say; the reference has every public name; examples are exact."""

import ast
import doctest
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import grood_jax as gj
from grood_jax import detectors

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
PACKAGE = Path(gj.__file__).parent
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
# Figures of a network, rounded: another processor may be on the other side of a half.
TOLERANCE = {"tutorial.md": 0.0101, "evaluate.md": 0.0101}


def blocks(page: Path) -> list[tuple[int, str]]:
    """The Python of a page, each block with the line that it starts on."""
    text = page.read_text()
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text[: block.start(1)].count("\n"), block[1]) for block in found]


RUN = [page for page in PAGES if blocks(page)]
ROOMS = [page for page in PAGES if page.parent.name == "reference" and page.stem != "index"]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_the_python_of_a_page_prints_what_it_says(
    page, digits, tmp_path, monkeypatch, capsys, unchecked
):
    shutil.copytree(digits[0] / "results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    # What a page registers is no detector of the tests that follow in this process.
    monkeypatch.setattr(detectors, "_factories", dict(detectors._factories))
    namespace = {"__name__": "__page__"}
    for line, block in blocks(page):
        capsys.readouterr()
        exec(compile("\n" * line + block, str(page), "exec"), namespace)
        said = capsys.readouterr().out.splitlines()
        shown = re.findall(r"^ *print\(.*\)  # (.*)$", block, re.MULTILINE)
        assert len(said) == len(shown), f"{page.name}, line {line}: prints {said}"
        for found, expected in zip(said, shown, strict=True):
            assert NUMBER.sub("#", found) == NUMBER.sub("#", expected), f"{page.name}: {found}"
            tolerance = {"rtol": 1e-6, "atol": TOLERANCE.get(page.name, 1e-9)}
            numbers = [[float(n) for n in NUMBER.findall(text)] for text in (found, expected)]
            np.testing.assert_allclose(*numbers, **tolerance)


def sources() -> dict[str, ast.Module]:
    """Syntax trees of all modules by name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[name] = ast.parse(path.read_text())
    return found


SOURCES = sources()
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public(name: str, tree: Documented) -> Iterator[tuple[str, Documented]]:
    """A module or class and all that is public in it."""
    yield name, tree
    for node in tree.body:
        if not isinstance(node, Documented) or node.name.startswith("_"):
            continue
        if isinstance(node, ast.ClassDef):
            yield from public(f"{name}.{node.name}", node)
        elif not any("overload" in ast.unparse(d) for d in node.decorator_list):
            yield f"{name}.{node.name}", node


PUBLIC = {name: node for module, tree in SOURCES.items() for name, node in public(module, tree)}


def test_every_public_name_has_a_docstring():
    assert len(PUBLIC) > 300
    assert [name for name, node in PUBLIC.items() if not ast.get_docstring(node)] == []
    assert [name for name in gj.__all__ if not getattr(gj, name).__doc__] == []


def is_private(name: str) -> bool:
    return any(part.startswith("_") for part in name.split("."))


def test_every_public_module_has_its_place_in_the_reference():
    pages = [page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md")]
    named = re.findall(r"^::: (\S+)$", "\n".join(pages), re.MULTILINE)
    assert sorted(named) == sorted(
        name for name in set(SOURCES) - {"grood_jax"} if not is_private(name)
    ), "docs/reference/*.md: a line `::: grood_jax.MODULE` for each public module, and no other"


@pytest.mark.parametrize("page", ROOMS, ids=lambda page: page.stem)
def test_a_page_of_the_reference_says_what_each_of_its_modules_is_for(page):
    text, room = page.read_text(), f"grood_jax.{page.stem}"
    modules = [name for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE) if name != room]
    rows = re.findall(r"^\| `(\S+)` \| \S.* \|$", text, re.MULTILINE)
    assert rows == [name.removeprefix(f"{room}.") for name in modules]


@pytest.mark.slow
def test_the_site_has_every_public_name_and_fetches_nothing(tmp_path):
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(
        [*command, "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # Sphinx's inventory: four lines of head, then compressed lines that start with names.
    packed = (tmp_path / "objects.inv").read_bytes().split(b"\n", 4)[4]
    names = {line.split()[0] for line in zlib.decompress(packed).decode().splitlines()}
    documented = {name for name in set(PUBLIC) - {"grood_jax"} if not is_private(name)}
    assert sorted(documented - names) == []
    assert sorted({f"grood_jax.{name}" for name in gj.__all__} - names) == []
    table = (ROOT / "docs" / "reference" / "index.md").read_text()
    assert [name for name in gj.__all__ if f"[`{name}`]" not in table] == []
    for page in tmp_path.rglob("*.html"):
        fetched = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(\w+:)?//', page.read_text())
        assert fetched == [], page.name


EXAMPLES = {
    name: text for name, node in PUBLIC.items() if ">>> " in (text := ast.get_docstring(node) or "")
}


def test_the_most_used_functions_have_examples():
    used = {
        f"grood_jax.{module}"
        for module in (
            "maths.prototypes.class_prototypes",
            "maths.gradients.ood_gradients",
            "neighbors.searching.nearest_distances",
            "neighbors.building.build_bank",
            "maths.mixup.mix_with_prototypes",
            "maths.metrics.ood_metrics",
        )
    }
    assert used <= set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_of_a_docstring_prints_exactly_that(name):
    example = doctest.DocTestParser().get_doctest(EXAMPLES[name], {}, name, name, 0)
    report: list[str] = []
    failed, tried = doctest.DocTestRunner(verbose=False).run(example, out=report.append)
    assert tried and not failed, "".join(report)


def test_the_citation_is_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {gj.__version__}\n" in citation
    assert f'\nversion = "{gj.__version__}"\n' in (ROOT / "pyproject.toml").read_text()
