"""JAX's coordination service in a process of its own: ``coordinator.py ADDRESS COUNT SECONDS``.

The first process starts it, and it outlives that one: in JAX's own arrangement the service dies
with the first process, and takes all others down before they can say why. Says ``ready`` on stdout,
or what is wrong; ends when its stdin does: at once after a word of goodbye, and otherwise, where
the first process has died, when the others have had time to notice.
"""

import sys
import time

START_SECONDS = 20
"""How long processes wait for one another at the start; known without importing JAX."""

GRACE = 2.0
"""How many times the seconds in which a death is noticed it stays after that of the first."""


def main(address: str, count: int, seconds: int) -> None:
    """Serves until the process that started it ends.

    Args:
      address: where to listen.
      count: how many processes will come.
      seconds: after how many without a heartbeat one of them has died.
    """
    from jaxlib import _jax

    # Recoverable: where one has died, the others are told, and not ended.
    service = _jax.get_distributed_runtime_service(
        address, count, heartbeat_timeout=seconds, shutdown_timeout=seconds, recoverable=True
    )
    print("ready", flush=True)
    if not sys.stdin.buffer.read():
        time.sleep(GRACE * seconds)
    service.shutdown()


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    except Exception as error:
        print(str(error).splitlines()[0], flush=True)
        sys.exit(1)
