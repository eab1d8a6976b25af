"""The process of a trial: a command that ends, saved, when the worker that started it is gone."""

import os
import signal
import sys
import threading


def main() -> None:
    """Run the command line; SIGTERM comes when stdin ends, which its worker holds open as long as it lives."""
    threading.Thread(target=_outlived, daemon=True).start()
    from dio_lightning.cli import main as command

    sys.argv[0] = "dio-lightning"
    command()


def _outlived() -> None:
    try:
        while os.read(0, 1024):
            pass
    except OSError:
        return
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
