"""Prints results files as Markdown tables: of evaluations and of benchmarks.

python experiments/tools/tables.py experiments/results/digits.json …
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def markdown(results: dict[str, Any]) -> str:
    """One table, under a line that says what was run."""
    detectors = results["detectors"]
    sets = next(iter(detectors.values()))["datasets"]
    columns = [f"{name} ({row['group']}, {row['n']})" for name, row in sets.items()]
    groups = [g for g in ("near", "far") if any(r["group"] == g for r in sets.values())]
    header = ["detector", *columns, *(f"mean {group}" for group in groups)]
    header += ["fit, s", "score, µs"]
    rows = [
        [f"`{name}`", *(_cell(row) for row in found["datasets"].values())]
        + [_cell(found[group]) for group in groups]
        + [f"{found['fit_seconds']:.2f}", f"{found['score_seconds_per_image'] * 1e6:.1f}"]
        for name, found in detectors.items()
    ]
    test = results["data"]["test"]["n"]
    about = (
        f"{results['benchmark']}, {results['model']}, seed {results['seed']}: ID accuracy "
        f"{results['id_accuracy']:.4f} ({test} images)"
    )
    return _table(about, results, header, rows)


def summary_markdown(evaluations: list[dict[str, Any]]) -> str:
    """Means over near and far sets of several evaluations, one row a detector."""
    groups = [
        (found, group)
        for found in evaluations
        for group in ("near", "far")
        if next(iter(found["detectors"].values()))[group]
    ]
    header = ["detector", *(f"{found['benchmark']}, {group}" for found, group in groups)]
    names = dict.fromkeys(name for found in evaluations for name in found["detectors"])
    rows = [
        [f"`{name}`"]
        + [
            _cell(found["detectors"][name][group]) if name in found["detectors"] else ""
            for found, group in groups
        ]
        for name in names
    ]
    return _rows(header, rows)


def seeds_markdown(results: dict[str, Any]) -> str:
    """Means and deviations over seeds, the best in bold and the second best in italics."""
    names = list(_detectors(results))
    first = _detectors(results)[names[0]]
    columns = {
        f"{k} ({v['group']}, {v['n']})": ("datasets", k) for k, v in first["datasets"].items()
    }
    columns |= {f"mean {group}": (group,) for group in ("near", "far") if first[group]}

    cells: dict[str, list[str]] = {name: [] for name in names}
    for where in columns.values():
        parts = []
        for metric, highest in (("auroc", True), ("fpr95", False)):
            values = [_of_seeds(results, name, where, metric) for name in names]
            parts.append(marked(values, highest))
        for name, auroc, fpr95 in zip(names, *parts, strict=True):
            cells[name].append(f"{auroc} / {fpr95}")
    accuracy = mean_and_deviation([run["id_accuracy"] for run in results["seeds"].values()])
    about = (
        f"{results['benchmark']}, {results['model']}, {_seeds(results)}: ID accuracy {accuracy} "
        f"({results['data']['test']['n']} images); mean ± standard deviation over seeds, **best** "
        f"and *second best*; {results['date']}"
    )
    rows = [[f"`{name}`", *row] for name, row in cells.items()]
    return _table(about, results, ["detector", *columns], rows)


def seeds_summary_markdown(every: Sequence[dict[str, Any]]) -> str:
    """AUROC, means over near and far sets, of networks trained from several seeds."""
    names = list(dict.fromkeys(name for results in every for name in _detectors(results)))
    columns = {}
    for results in every:
        found = _detectors(results)
        for group in ("near", "far"):
            if next(iter(found.values()))[group]:
                values = [_of_seeds(results, name, (group,), "auroc") for name in found]
                cells = dict(zip(found, marked(values, highest=True), strict=True))
                columns[f"{results['benchmark']}, {results['model']}, {group}"] = cells
    rows = [[f"`{name}`", *(cells.get(name, "") for cells in columns.values())] for name in names]
    return _rows(["detector", *columns], rows)


def _detectors(results: dict[str, Any]) -> dict[str, Any]:
    """Those of the first seed; the others have the same."""
    return next(iter(results["seeds"].values()))["detectors"]


def _of_seeds(results: dict[str, Any], name: str, where: Sequence[str], metric: str) -> list[float]:
    """What a detector reached with each seed, on a set or a group of sets."""
    found = [run["detectors"][name] for run in results["seeds"].values()]
    for key in where:
        found = [part[key] for part in found]
    return [part[metric] for part in found]


def curves_markdown(results: dict[str, Any]) -> str:
    """How each seed's network was trained."""
    seeds = results["seeds"]
    epochs = len(next(iter(seeds.values()))["history"])
    rows = [
        [
            seed,
            *(f"{epoch['loss']:.3f} / {epoch['accuracy']:.4f}" for epoch in _some(run["history"])),
            f"{run['id_accuracy']:.4f}",
            f"`{run['checkpoint'][:12]}`",
        ]
        for seed, run in seeds.items()
    ]
    titles = (f"epoch {number}" for number in _some(range(1, epochs + 1)))
    header = ["seed", *titles, "ID accuracy", "fingerprint"]
    about = (
        f"{results['benchmark']}, {results['model']}, {_seeds(results)}: training loss / accuracy "
        f"by epoch, of {results['data']['train']['n']} images; {results['date']}"
    )
    return _table(about, results, header, rows)


def mean_and_deviation(values: Sequence[float]) -> str:
    """The mean and, of more than one value, the standard deviation of the sample (n − 1)."""
    mean = f"{statistics.fmean(values):.4f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.4f}"


def marked(values: Sequence[Sequence[float]], highest: bool) -> list[str]:
    """Cells of a column: the best mean in bold, the second best in italics, as far as is shown."""
    means = [round(statistics.fmean(each), 4) for each in values]
    order = sorted(set(means), reverse=highest)
    marks = dict(zip(order, ("**", "*"), strict=False))
    found = []
    for mean, each in zip(means, values, strict=True):
        mark = marks.get(mean, "")
        found.append(f"{mark}{mean_and_deviation(each)}{mark}")
    return found


def ablations_markdown(results: dict[str, Any]) -> list[str]:
    """One table for each part that was changed."""
    made = []
    for name, found in results["ablations"].items():
        rows = found["rows"]
        first = next(iter(rows.values()))
        groups = [group for group in ("near", "far") if first[group]]
        extra = list(first.get("extra", {}))
        header = [found["rows_are"], *(f"mean {group}" for group in groups), *extra]
        columns = []
        for group in groups:
            parts = [
                marked([[row[group][metric]] for row in rows.values()], highest)
                for metric, highest in (("auroc", True), ("fpr95", False))
            ]
            columns.append([" / ".join(cell) for cell in zip(*parts, strict=True)])
        cells = [
            [label, *(column[i] for column in columns), *row.get("extra", {}).values()]
            for i, (label, row) in enumerate(rows.items())
        ]
        about = (
            f"Ablation `{name}`: {found['title']}; {results['benchmark']}, {results['model']}, "
            f"at most {results['limit']} images of each test set, {results['date']}"
        )
        made.append(_table(about, results, header, cells))
    return made


def _some(epochs: Sequence[Any], most: int = 6) -> list[Any]:
    """The first and the last epoch, and some evenly between."""
    if len(epochs) <= most:
        return list(epochs)
    return [epochs[round(i * (len(epochs) - 1) / (most - 1))] for i in range(most)]


def _seeds(results: dict[str, Any]) -> str:
    numbers = ", ".join(results["seeds"])
    count = len(results["seeds"])
    return f"{count} seeds ({numbers})" if count > 1 else f"seed {numbers}"


def search_markdown(results: dict[str, Any]) -> str:
    """Times a query and errors of each method, one row a bank and k."""
    compared = results["compare"]
    methods = list(next(iter(compared.values()))["methods"])
    rows = []
    for name, found in compared.items():
        fastest = {own: row["least_and_most_seconds"][0] for own, row in found["methods"].items()}
        cells = [
            f"{row['microseconds_per_query']:.0f} µs, {row['times_faiss']:.2f} × "
            f"({fastest['faiss'] / fastest[method]:.2f} ×)"
            for method, row in found["methods"].items()
        ]
        ours = found["methods"]["grood-jax"]["largest_relative_error"]
        theirs = found["methods"]["faiss"]["largest_relative_error"]
        bank = f"{name} ({found['rows']} × {found['columns']}, r = {found['axes']})"
        rows.append([bank, *cells, f"{ours:.0e} / {theirs:.0e}"])
    header = ["bank", *methods, "largest error, ours / FAISS"]
    about = "Search: medians, and × FAISS's time, in brackets that of the fastest runs"
    return _table(about, results, header, rows)


def growth_markdown(results: dict[str, Any]) -> str:
    """How time, index and memory grow with rows and columns."""
    rows = [
        [size.replace("x", "×"), *_grown(found), f"{found['index_bytes_per_row']:.0f}"]
        for size, found in results["growth"].items()
    ]
    header = ["rows × columns", *GROWN, "index, bytes a row"]
    return _table("Growth", results, header, rows)


def imagenet_markdown(results: dict[str, Any]) -> str:
    """A bank of ImageNet's size."""
    rows = [
        [
            name,
            *_grown(found),
            f"{found['device_bytes'] / 2**30:.2f} GiB",
            f"{found['peak_memory_bytes'] / 2**30:.1f} GiB",
        ]
        for name, found in results["imagenet"].items()
    ]
    header = ["1,281,167 × 2,048 rows", *GROWN, "on the device", "peak of the process"]
    return _table("ImageNet's size", results, header, rows)


def auto_markdown(results: dict[str, Any]) -> list[str]:
    """`auto` in each setting beside the best of the others, and means over settings."""
    rows = []
    for name, found in results["settings"].items():
        cells = [name, "yes" if found["rules chosen on it"] else "no"]
        for group in ("near", "far"):
            if figures := found.get(group):
                best = max((word for word in figures if word != "auto"), key=figures.__getitem__)
                cells += [f"{figures['auto']:.4f}", f"`{best}` {figures[best]:.4f}"]
            else:
                cells += ["", ""]
        rows.append([*cells, found["explanation"].partition(",")[0]])
    header = ["setting", "rules chosen on it"]
    header += [title for group in ("near", "far") for title in (group, f"best other, {group}")]
    made = [_table("`auto`, mean AUROC", results, [*header, "members"], rows)]
    for half, groups in results["summary"].items():
        for group, found in groups.items():
            means = [
                [f"`{name}`", *(_interval(figures[what]) for what in SUMMED)]
                for name, figures in list(found["detectors"].items())[:BEST]
            ]
            about = f"Settings: {half}; AUROC over {group} sets, mean of settings, the ten highest"
            made.append(_table(about, results, ["detector", *SUMMED], means))
    return made


BEST = 10
"""How many detectors are shown of those over settings."""

SUMMED = ("auroc", "rank", "auto ahead by")
"""What `studies/auto.py` has of each detector over settings."""


def _interval(figures: Sequence[float]) -> str:
    mean, low, high = figures
    return f"{mean:.4f} ({low:.4f} to {high:.4f})"


def scoring_markdown(results: dict[str, Any]) -> str:
    """GROOD's scoring beside the forward pass."""
    rows = []
    for name, bank in results["overhead"]["banks"].items():
        for by, row in bank.items():
            if by.startswith("by "):
                rows.append(
                    [
                        f"{name}, {by[3:]} at once",
                        str(bank["axes"]),
                        f"{row['forward_seconds_per_image']['median'] * 1e6:.0f}",
                        f"{row['scoring_seconds_per_image']['median'] * 1e6:.1f}",
                        f"{row['overhead']:.1%}",
                    ]
                )
    header = ["bank", "axes", "forward pass, µs an image", "scoring, µs", "overhead"]
    return _table(f"Scoring, {results['overhead']['model']}", results, header, rows)


def gradients_markdown(results: dict[str, Any]) -> str:
    """The gradient stage beside a loop over torch.autograd.grad."""
    rows = [
        [
            f"({row['classes']}, {row['columns']})",
            f"{row['seconds_per_sample']['median'] * 1e6:.2f}",
            f"{row['torch_seconds_per_sample']['median'] * 1e6:.0f}",
            f"{row['times_torch']:.0f} ×",
        ]
        for row in results["gradients"]["sizes"]
    ]
    header = ["(C, D)", "ours, µs a sample", "torch.autograd.grad, µs", "ratio"]
    return _table("Gradients", results, header, rows)


def peers_markdown(results: dict[str, Any]) -> str:
    """Each detector beside the same one of other packages."""
    peers = list(results["peers"])
    rows = []
    for name, found in results["detectors"].items():
        if isinstance(found, str):
            rows.append([f"`{name}`", found, *[""] * (1 + 3 * len(peers))])
            continue
        ours = found["grood-jax"]
        row = [f"`{name}`", f"{ours['fit_seconds']:.2f}", f"{ours['score_microseconds']:.1f}"]
        for peer in peers:
            theirs = found[peer]
            if isinstance(theirs, str):
                row += [theirs, "", ""]
                continue
            said = f" ({theirs['note']})" if theirs["note"] else ""
            row += [
                f"{theirs['fit_seconds']:.2f}",
                f"{theirs['score_microseconds']:.1f}",
                f"{theirs['largest_difference']:.0e}{said}",
            ]
        rows.append(row)
    header = ["detector", "fit, s", "score, µs"]
    for peer in peers:
        header += [f"{peer}: fit, s", "score, µs", "largest difference"]
    return _table("Detectors on the same features", results, header, rows)


def evaluation_markdown(results: dict[str, Any]) -> list[str]:
    """Whole evaluations beside OpenOOD's, and each of its own."""
    seconds, core = results["seconds"], results["core_seconds"]
    ratios = (results["times_openood"], results["times_openood_of_cores"])
    ratios += (results["times_openood_without_its_slowest"],)
    whole = [
        [name, f"{seconds[name]:.1f}", f"{core[name]:.1f}"]
        + [f"{ratio[name]:.1f} ×" if name in ratio else "" for ratio in ratios]
        for name in seconds
    ]
    images = results["images"]
    test = sum(count for name, count in images.items() if name.startswith("test"))
    rows = results["evaluated"]
    about = (
        f"Whole evaluations of {len(rows)} detectors beside OpenOOD's, {results['model']}, "
        f"{images['train_cifar10']} training and {test} test images, {results['date']}"
    )
    each = [
        [f"`{name}`", row["openood"], f"{row['openood_seconds']:.1f}"]
        + [f"{row[group]:.4f} / {row[f'openood_{group}']:.4f}" for group in ("near", "far")]
        + [row["note"]]
        for name, row in rows.items()
    ]
    header = [
        "",
        "s",
        "s of cores",
        "OpenOOD's time / ours",
        "of cores",
        "without its slowest five",
    ]
    titles = ["detector", "OpenOOD's", "its s", "AUROC near, ours / its", "far", "it differs"]
    return [_table(about, results, header, whole), _rows(titles, each)]


def first_run_markdown(results: dict[str, Any]) -> list[str]:
    """What a first evaluation compiles, and the fits that take most."""
    evaluations = [
        [name, str(row["programs"]), f"{row['seconds']:.1f}", f"{row['core_seconds']:.1f}"]
        for name, row in results["evaluations"].items()
    ]
    fits = results["fits"]
    rows = {"all": fits["sum"]} | fits["detectors"]
    fitted = [
        [f"`{name}`" if name in fits["detectors"] else name]
        + [f"{seconds:.2f}" for what in ("seconds", "core_seconds") for seconds in row[what]]
        for name, row in list(rows.items())[:FITS]
    ]
    count = next(iter(results["evaluations"].values()))["detectors"]
    about = f"{count} detectors evaluated on the digits, twice in a process, {results['date']}"
    own = f"Fits on {fits['images']} images of {fits['dataset']}, {fits['model']}"
    return [
        _table(about, results, ["evaluation", "programs", "s", "s of cores"], evaluations),
        _table(own, results, ["detector", "first, s", "warm", "first, s of cores", "warm"], fitted),
    ]


FITS = 13
"""Rows of fits that are shown, those that take most, after their sum."""


def serving_markdown(results: dict[str, Any]) -> str:
    """Requests per second and latency of the service, beside the network alone."""
    about = f"Service, {results['model']} with {results['detector']}"
    bare = [
        [
            str(row["batch"]),
            f"{row['forward_images_per_second']:.0f}",
            f"{row['predict_images_per_second']:.0f}",
            f"{row['predict_images_per_second'] / row['forward_images_per_second']:.2f}",
        ]
        for row in results["bare"]
    ]
    alone = {row["concurrency"]: row["requests_per_second"] for row in results["http"]}
    load = [
        [
            str(row["concurrency"]),
            str(row["images_per_request"]),
            f"{row['requests_per_second']:.0f}",
            f"{alone[row['concurrency']]:.0f}" if row["images_per_request"] == 1 else "",
            f"{row['images_per_second']:.0f}",
            f"{row['p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
            f"{row['server_cores']:.2f}",
            f"{row['client_cores']:.2f}",
        ]
        for row in results["load"]
    ]
    stop = results["stop"]
    return "\n\n".join(
        [
            _table(
                f"{about}: no server",
                results,
                ["images at once", "forward pass, images/s", "whole prediction, images/s", "share"],
                bare,
            ),
            _table(
                f"{about}: under load",
                results,
                [
                    "connections",
                    "images a request",
                    "requests/s",
                    "of HTTP alone",
                    "images/s",
                    "p50, ms",
                    "p99, ms",
                    "cores of the server",
                    "cores of the clients",
                ],
                load,
            ),
            f"Stopped under load in {stop['seconds_to_stop']:.1f} s: "
            f"{stop['accepted_since_start']} requests accepted since the start, "
            f"{stop['answered_since_start']} answered, all of them received.",
        ]
    )


def loader_markdown(results: dict[str, Any]) -> str:
    """Images a second without a network, one row a source."""
    threads = list(next(iter(results["loader"].values()))["by_threads"])
    rows = [
        [name, str(found["images"])]
        + [f"{found['by_threads'][number]['images_per_second']:.0f}" for number in threads]
        + [f"{found['by_threads'][threads[0]]['images_per_core_second']:.0f}"]
        for name, found in results["loader"].items()
    ]
    header = ["source", "images", *(f"{number}, images/s" for number in threads), "a core's time"]
    alone = [
        [name, f"{found['images_per_second']:.0f}", f"{found['images_per_core_second']:.0f}"]
        for name, found in results["steps"].items()
    ]
    passes = [
        [name, f"{found['images_per_second']:.0f}"] for name, found in results["passes"].items()
    ]
    return "\n\n".join(
        [
            _table("Reading, decoding, resizing", results, header, rows),
            _table(
                "Steps of reading alone, one thread",
                results,
                ["step", "images/s", "a core's time"],
                alone,
            ),
            _table(
                "ResNet-20's pass over cifar10, batches of 256",
                results,
                ["images", "images/s"],
                passes,
            ),
        ]
    )


def parity_markdown(results: dict[str, Any]) -> str:
    """Largest differences from PyTorch's numbers, beside the largest numbers themselves."""
    rows = [
        [
            name,
            found["of"],
            str(found["image_size"]),
            *(
                f"{found[f'{what}_difference']:.0e} of {found[f'{what}_largest']:.1f}"
                for what in ("features", "logits")
            ),
        ]
        for name, found in results["parity"].items()
    ]
    header = ["network", "PyTorch's by", "image size", "features differ by", "logits differ by"]
    about = f"Networks beside PyTorch {results['versions']['torch']} on two photographs"
    return _table(about, results, header, rows)


def detector_parity_markdown(results: dict[str, Any]) -> list[str]:
    """AUROCs of ours and of the peers' code on the same outputs, and what ours take."""
    header = ["detector", "code", "AUROC", "its AUROC", "differ by", "Spearman's ρ"]
    header += ["fit, s", "µs a score", "note"]
    made = []
    for network, found in results["detector_parity"].items():
        rows = [
            [
                name.split(" (")[0],
                row["peer"],
                f"{row['auroc']:.4f}",
                f"{row['peer_auroc']:.4f}",
                f"{abs(row['auroc'] - row['peer_auroc']):.0e}",
                f"{row['spearman']:.6f}",
                f"{row['fit_seconds']:.2f}",
                f"{row['score_microseconds']:.1f}",
                row["note"],
            ]
            for name, row in found["detectors"].items()
        ]
        about = (
            f"Detectors beside their authors' code on the same outputs, {found['model']}, {network}"
        )
        own = results | {"command": found["command"]}
        made.append(_table(about, own, header, rows))
    return made


def space_markdown(results: dict[str, Any]) -> str:
    """Mean AUROCs over settings of GROOD in each space, and of each setting."""
    means = results["space_summary"]
    spaces = list(next(iter(results["space_settings"].values()))["spaces"])
    header = ["GROOD", "setting", *(f"{space}, near / far" for space in spaces)]
    rows = []
    for word in next(iter(means.values())):
        found = [
            [f"{means[group][word][space]['auroc'][0]:.4f}" for group in means] for space in spaces
        ]
        rows.append([f"`{word}`", "all", *map(" / ".join, found)])
        for name, row in results["space_settings"].items():
            own = [
                [f"{figures[word]:.4f}" for figures in row["spaces"][space].values()]
                for space in spaces
            ]
            rows.append(["", name, *map(" / ".join, own)])
    count = len(results["space_settings"])
    about = f"GROOD by the space of its features, mean AUROC over {count} settings"
    return _table(about, results, header, rows)


def processes_markdown(results: dict[str, Any]) -> str:
    """Seconds of an evaluation in one process and in several: medians, all runs, ratios."""
    header = ["words", "compiled programs", "processes", "s", "runs, s", "ratio"]
    header += ["a core's time, s", "of the process that took most, s", "ratio"]
    rows = []
    for words, found in results["processes"].items():
        for kept, title in (("cold", "none kept"), ("warm", "kept")):
            one = found[kept]["one"]
            for own, count in ((one, 1), (found[kept]["several"], found["count"])):
                wall, total, most = (
                    statistics.median(own[part])
                    for part in ("seconds", "processor_seconds", "most_processor_seconds")
                )
                ratios = (
                    f"{value / statistics.median(one[part]):.2f}" if count > 1 else ""
                    for value, part in ((wall, "seconds"), (most, "most_processor_seconds"))
                )
                runs = ", ".join(f"{seconds:.1f}" for seconds in own["seconds"])
                row = [f"`{words}`", title, str(count), f"{wall:.1f}", runs, next(ratios)]
                rows.append([*row, f"{total:.1f}", f"{most:.1f}", next(ratios)])
    return _table("An evaluation in one process and in several", results, header, rows)


IMAGENET_TRAIN, IMAGENET_MIXED = 1_281_167, 10_000
IMAGENET_TEST, IMAGENET_OOD = 45_000, 86_000
"""Images of OpenOOD v1.5's imagenet1k; those of the five OOD sets are about as many."""


def plan_markdown(
    loader: dict[str, Any], models: dict[str, Any], search: dict[str, Any], network: str
) -> str:
    """How long imagenet1k takes, stage by stage, worked out from measured rates."""
    (read,) = (row for name, row in loader["loader"].items() if "JPEG" in name)
    reading = max(rate["images_per_core_second"] for rate in read["by_threads"].values())
    forward = max(
        row["images_per_second"]["grood-jax"]["median"]
        for row in models["forward_passes"]
        if row["model"] == network
    )
    bank = search["imagenet"]["like gradients"]
    tested = IMAGENET_TEST + IMAGENET_OOD
    passes = {
        "training set, once": IMAGENET_TRAIN,
        "samples that are mixed": IMAGENET_MIXED,
        "test sets": tested,
    }
    rows = [
        [stage, f"{images:,}", _time(images / reading), _time(images / forward)]
        for stage, images in passes.items()
    ]
    scoring = tested * bank["microseconds_per_query"] / 1e6
    rows.insert(2, ["bank of all training gradients", f"{IMAGENET_TRAIN:,}", "", ""])
    rows[2][3] = _time(bank["build_seconds"])
    rows.append(["search in it", f"{tested:,}", "", _time(scoring)])
    rates = f"{reading:.0f} images/s read by a core, {forward:.0f} in forward passes"
    header = ["stage", "images", "reading", "computing"]
    return "\n".join(
        [
            f"imagenet1k with {network}: {rates}; {models['device']}",
            "",
            _rows(header, rows),
        ]
    )


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def forward_markdown(results: dict[str, Any]) -> str:
    """The networks' forward passes, in several forms and beside PyTorch's."""
    forms = list(results["forward_passes"][0]["images_per_second"])
    compared = "times_torch" in results["forward_passes"][0]
    rows = []
    for row in results["forward_passes"]:
        rates = (row["images_per_second"][form] for form in forms)
        cells = [f"{rate['median']:,.{0 if rate['median'] >= 100 else 1}f}" for rate in rates]
        if compared:
            cells += [f"{row['times_torch']:.2f} ×", f"{row['times_torch_fastest']:.2f} ×"]
        cells.append(f"{row['largest_relative_difference']:.0e}")
        rows.append([f"`{row['model']}`, {row['images']}", str(row["batch"]), *cells])
    header = ["network", "batch", *forms]
    header += ["PyTorch's time / ours", "of the fastest runs"] if compared else []
    header.append("largest difference")
    return _table("Forward pass, images/s", results, header, rows)


def training_markdown(results: dict[str, Any]) -> str:
    """ResNet-20's training step and forward pass beside PyTorch's."""
    rows = []
    for row in results["training_steps"]:
        for what in ("step", "forward"):
            taken = {name: own["median"] for name, own in row[f"{what}_milliseconds"].items()}
            theirs = taken.pop("PyTorch")
            for name, own in taken.items():
                cells = [f"{own:.1f}", f"{theirs:.1f}", f"{theirs / own:.2f} ×"]
                rows.append([f"{what}, {name}", str(row["batch"]), *cells])
    header = ["ResNet-20", "batch", "ms", "PyTorch's", "PyTorch's time / ours"]
    cores = "time of one core" if results["cores_used"] == 1 else f"{results['cores_used']} cores"
    if results["glibc_tunables"] is not None:
        cores += f", {results['glibc_tunables']}"
    alone = [
        [
            f"{row['what']}, {row['side']} × {row['side']}, {row['channels']} channels",
            *(f"{rate:.0f}" for rate in row["gflops"].values()),
        ]
        for row in results["convolutions"]
    ]
    return "\n\n".join(
        [
            _table(f"Training step and forward pass, {cores}", results, header, rows),
            _table(
                f"Convolutions 3 × 3 of 128 images, GFLOP/s, {cores}",
                results,
                ["convolution", *results["convolutions"][0]["gflops"]],
                alone,
            ),
        ]
    )


def cluster_markdown(results: dict[str, Any]) -> list[str]:
    """A bank over simulated devices beside what formulae say, and what these say of clusters."""
    points, plans = results["measured, expected"], results["plans"]
    measured = []
    for name in next(iter(points.values())):
        cells = [
            own[name] if isinstance(own[name], list) else [own[name]] for own in points.values()
        ]
        measured.append([name, *(" / ".join(f"{each:,.4g}" for each in cell) for cell in cells)])
    planned = [
        [name, *(f"{own[name]:.3g}" for own in plans.values())]
        for name in next(iter(plans.values()))
    ]
    about = "A bank over simulated devices, measured / by the formulae"
    return [
        _table(about, results, ["devices", *points], measured),
        _table("Larger clusters, by the formulae", results, ["", *plans], planned),
    ]


GROWN = ("dtype", "axes", "build, s", "µs a query", "largest error")

MAKERS: dict[str, Callable[[dict[str, Any]], str | list[str]]] = {
    "settings": auto_markdown,
    "id_accuracy": markdown,
    "seeds": lambda results: [seeds_markdown(results), curves_markdown(results)],
    "ablations": ablations_markdown,
    "compare": search_markdown,
    "growth": growth_markdown,
    "imagenet": imagenet_markdown,
    "overhead": scoring_markdown,
    "gradients": gradients_markdown,
    "peers": peers_markdown,
    "load": serving_markdown,
    "evaluated": evaluation_markdown,
    "fits": first_run_markdown,
    "loader": loader_markdown,
    "parity": parity_markdown,
    "detector_parity": detector_parity_markdown,
    "space_summary": space_markdown,
    "plans": cluster_markdown,
    "processes": processes_markdown,
    "forward_passes": forward_markdown,
    "training_steps": training_markdown,
}
"""Tables by the entry of a results file that they show."""


def tables(results: dict[str, Any]) -> list[str]:
    """All tables of a results file."""
    made = [make(results) for entry, make in MAKERS.items() if entry in results]
    return [table for one in made for table in (one if isinstance(one, list) else [one])]


def _grown(found: dict[str, Any]) -> list[str]:
    return [
        found["dtype"],
        str(found["axes"]),
        f"{found['build_seconds']:.1f}",
        f"{found['microseconds_per_query']:.0f}",
        f"{found['largest_relative_error']:.0e}",
    ]


def _table(about: str, results: dict[str, Any], header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(
        [
            f"{about}; {results['device']}, jax {results['versions']['jax']}; "
            f"`{results['command']}`",
            "",
            _rows(header, rows),
        ]
    )


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    every = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join(["| " + " | ".join(header) + " |", "|" + " --- |" * len(header), *every])


def _cell(figures: dict[str, float]) -> str:
    return f"{figures['auroc']:.4f} / {figures['fpr95']:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path)
    help_ = "one table of all evaluations, or of all results over seeds"
    parser.add_argument("--summary", action="store_true", help=help_)
    parser.add_argument("--plan", help="time for imagenet1k with this network, of three files")
    given = parser.parse_args()
    every = [json.loads(path.read_text()) for path in given.results]
    if given.plan:
        print(plan_markdown(*every, network=given.plan))
        return
    if given.summary:
        over_seeds = all("seeds" in results for results in every)
        print(seeds_summary_markdown(every) if over_seeds else summary_markdown(every))
        return
    for results in every:
        print("\n\n".join(tables(results)), end="\n\n")


if __name__ == "__main__":
    main()
