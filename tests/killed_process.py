"""An evaluation that kills itself: ``killed_process.py NUMBER WORDS…``, words as of `eval`.

It does so when a part is all but written for the NUMBERth time; parts are small.
"""

import os
import signal
import sys

from grood_jax.cli import eval
from grood_jax.passes import parts

left, replace = int(sys.argv[1]), os.replace
parts.PART_ROWS = 64


def killing(source, target):
    global left
    if os.path.dirname(target).endswith(".parts"):
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)


os.replace = killing
sys.exit(eval.main(sys.argv[2:]))
