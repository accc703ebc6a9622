"""``python -m distill``."""

import signal


def main() -> None:
    """Load the command line and run it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until it is loaded there is nothing to clear away, and an interruption no reason for a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from distill.cli import main

    main()


if __name__ == "__main__":
    main()
