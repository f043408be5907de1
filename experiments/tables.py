"""Prints results files as Markdown tables: of evaluations, and of the search benchmark.

python experiments/tables.py experiments/results/digits.json …
"""

import argparse
import json
from pathlib import Path
from typing import Any


def markdown(results: dict[str, Any]) -> str:
    """One table, under a line that says what was run."""
    detectors = results["detectors"]
    sets = next(iter(detectors.values()))["datasets"]
    columns = [f"{name} ({row['group']}, {row['n']})" for name, row in sets.items()]
    groups = [g for g in ("near", "far") if any(r["group"] == g for r in sets.values())]
    header = ["detector", *columns, *(f"mean {group}" for group in groups)]
    rows = [
        [f"`{name}`", *(_cell(row) for row in found["datasets"].values())]
        + [_cell(found[group]) for group in groups]
        for name, found in detectors.items()
    ]
    test = results["data"]["test"]["n"]
    return "\n".join(
        [
            f"{results['benchmark']}, {results['model']}, seed {results['seed']}: ID accuracy "
            f"{results['id_accuracy']:.4f} ({test} images); {results['device']}, "
            f"jax {results['versions']['jax']}; `{results['command']}`",
            "",
            "| " + " | ".join(header) + " |",
            "|" + " --- |" * len(header),
            *("| " + " | ".join(row) + " |" for row in rows),
        ]
    )


def search_markdown(results: dict[str, Any]) -> str:
    """Times a query and errors of each method, one row a bank and k."""
    compared = results["compare"]
    methods = list(next(iter(compared.values()))["methods"])
    rows = []
    for name, found in compared.items():
        cells = [
            f"{row['microseconds_per_query']:.0f} µs, {row['times_faiss']:.2f} ×"
            for row in found["methods"].values()
        ]
        ours = found["methods"]["grood-jax"]["largest_relative_error"]
        theirs = found["methods"]["faiss"]["largest_relative_error"]
        bank = f"{name} ({found['rows']} × {found['columns']}, r = {found['axes']})"
        rows.append([bank, *cells, f"{ours:.0e} / {theirs:.0e}"])
    header = ["bank", *methods, "largest error, ours / FAISS"]
    return "\n".join(
        [
            f"{results['device']}, jax {results['versions']['jax']}; `{results['command']}`",
            "",
            "| " + " | ".join(header) + " |",
            "|" + " --- |" * len(header),
            *("| " + " | ".join(row) + " |" for row in rows),
        ]
    )


def _cell(figures: dict[str, float]) -> str:
    return f"{figures['auroc']:.4f} / {figures['fpr95']:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path)
    for path in parser.parse_args().results:
        results = json.loads(path.read_text())
        made = search_markdown if "compare" in results else markdown
        print(made(results), end="\n\n")


if __name__ == "__main__":
    main()
