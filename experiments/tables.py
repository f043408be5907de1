"""Prints results files as Markdown tables, AUROC / FPR@95 by detector and data set.

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


def _cell(figures: dict[str, float]) -> str:
    return f"{figures['auroc']:.4f} / {figures['fpr95']:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path)
    for path in parser.parse_args().results:
        print(markdown(json.loads(path.read_text())), end="\n\n")


if __name__ == "__main__":
    main()
