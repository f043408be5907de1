"""One of the two processes of `test_processes`: ``distributed_process.py NUMBER PORT FOLDER``.

Evaluates digits with the words in ``FOLDER/words.json``, twice: the second time from the cache,
which only the first process has. Then again, with a disk that fails the second process, with other
options than the first's, with many detectors, and with other data. Fits a classifier, thrice.
Exchanges outputs by themselves, and a classifier. Writes which rows it read, exit statuses, and
what it was given, to ``FOLDER/NUMBER.json``.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from tiny_network import tiny_fit

from grood_jax.backbone.backbone import Backbone
from grood_jax.cli import eval, fit
from grood_jax.data import ArraySet, Preprocessing, batches
from grood_jax.data.sets import UnreadableImage
from grood_jax.evaluation.fitting import Fitter
from grood_jax.passes import forward, processes, reading, training_pass
from grood_jax.storage import checkpoints
from grood_jax.support.errors import UserError

number, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.config.update("jax_num_cpu_devices", 2)
words = [*json.loads((folder / "words.json").read_text()), "--distributed"]
words += ["--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--process-id", str(number)]
read, passes, rows = ArraySet.read, reading.batches, []
fails = False


def failing(self, indices):
    if fails and number == 1:
        raise OSError("the disk is gone")
    return read(self, indices)


def recorded(images, *arguments, indices, **options):
    rows.append([images.name, np.asarray(indices).tolist()])
    return passes(images, *arguments, indices=indices, **options)


ArraySet.read, reading.batches = failing, recorded


def evaluate(name, *more):
    rows.clear()
    code = eval.main([*words, "--output-dir", str(folder / name), *more])
    return {"code": code, "read": rows[:]}


# Where each process writes would be seen.
cache = ("--cache-dir", str(folder / f"cache{number}"))
found = {"made": evaluate("made", *cache), "held": evaluate("held", *cache)}
fails = True
found["failed"] = evaluate("failed")
fails = False
found["other option"] = evaluate("option", "--seed", str(number))


# So many detectors that each process fits its own; one cannot be fitted with so few images.
words[words.index("--detectors") + 1 : words.index("--limit")] = json.loads(
    (folder / "many.json").read_text()
)
fit_one, fits, breaks = Fitter.fit, [], False


def counted(self, name, detector):
    if breaks and name == "react" and number == 1:
        raise OSError("the fit is gone")
    fits.append(name)
    return fit_one(self, name, detector)


Fitter.fit = counted
found["many"] = evaluate("many", *cache) | {"fits": fits[:]}
breaks = True
found["failed fit"] = evaluate("failed", *cache)
breaks = False


def others(self, indices):
    images, labels = read(self, indices)
    return images, labels + number


ArraySet.read = others
found["other data"] = evaluate("data")
ArraySet.read = failing

# A detector fitted together, by its command, twice as above, and in Python.
limit = words[words.index("--limit") + 1]
own = ["--limit", limit, *words[words.index("--checkpoint") :], "--detector", "grood"]
own += ["--cache-dir", str(folder / f"fit-cache{number}")]
for name, place in (("fit", "fitted"), ("fit again", "fitted again")):
    rows.clear()
    code = fit.main([*own, "--output-dir", str(folder / place)])
    found[name] = {"code": code, "read": rows[:]}
made = tiny_fit(key=0)
made.save(folder / f"tiny{number}")
found["tiny"] = [made.held_out_scores.tolist(), made.thresholds.tolist()]
try:
    tiny_fit(key=number)
except UserError as error:
    found["other key"] = str(error)

# Rows that are left out in one process only, and exchanged in many small blocks.
processes.BLOCK_BYTES = 200
crew = processes.start()
pixels = np.arange(11 * 4, dtype=np.uint8).reshape(11, 2, 2, 1)
images = ArraySet("few", "here", pixels, (np.arange(11) % 3).astype(np.int32))
preprocessing = Preprocessing(2, 1, (0.0,), (1.0,))
backbone = Backbone.from_functions(
    {"head": np.eye(4, 3, dtype=np.float32)},
    lambda arrays, x: x.reshape(-1, 4),
    lambda arrays, hidden: (hidden, hidden @ arrays["head"]),
)


def share(wanted):
    def some(own):
        for batch in batches(
            images, Preprocessing(2, 1, (0.0,), (1.0,)), batch_size=4, indices=own
        ):
            batch.valid[1] &= number == 1
            yield batch

    return crew.share(some, np.arange(11) if wanted is None else wanted)


with crew.together():
    seen = training_pass.run_training_set(backbone, share, early=True)
    few, labels = forward.extract_labelled(backbone, share(np.array([5])))


class Holed(ArraySet):
    """Images of which each process meets one that cannot be read."""

    def read(self, indices):
        for row in set(np.asarray(indices).tolist()) & {2, 7}:
            raise UnreadableImage(f"image {row} is no image")
        return read(self, indices)


holed = Holed("holed", "here", pixels, images.labels)
reader = reading.Reader(preprocessing, 4, False, bad=reading.BadImages(), crew=crew)
train = reader.training(holed)
with crew.together():
    left = training_pass.run_training_set(backbone, train, early=False)
    again = train(np.arange(9)).rows
    counted = reader.described(holed)["unreadable"]
found["holed"] = {
    "features": np.asarray(left.outputs.features).tolist(),
    "rows": again.tolist(),
    "unreadable": counted,
}
found["few"] = {
    "features": np.asarray(seen.outputs.features).tolist(),
    "labels": np.asarray(seen.labels).tolist(),
    "early": np.asarray(seen.early_prototypes).tolist(),
    "one row": [few.features.tolist(), labels.tolist()],
}


def saved():
    first = checkpoints.load_model(Path(words[words.index("--checkpoint") + 1]))
    if number == 0:
        checkpoints.save_model(folder / "saved", first.model, first.spec)
    return first.fingerprint == checkpoints.load_model(folder / "saved").fingerprint


found["saved"] = crew.in_turn(saved)
try:
    with crew.together():
        crew.require_same({"number": number})
except UserError as error:
    found["refusal"] = str(error)

# What each compiles is there for its next run, in a place of its own here.
compiled = folder / f"compiled{number}"
jax.config.update("jax_compilation_cache_dir", str(compiled))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
compilation_cache.reset_cache()
jax.jit(lambda x: x + 3)(np.float32(number))
found["compiled"] = len(list(compiled.iterdir()))
(folder / f"{number}.json").write_text(json.dumps(found))
