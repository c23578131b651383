"""Run a script as a person expects: what they can cure ends it with one line, and not with a place in the code."""

import os
import sys
from collections.abc import Callable

FIRST = os.environ.get("RANK", "0") == "0"  # only the first of several ranks speaks


def run(main: Callable[[], object]) -> None:
    """Call main(). End with one line about a wrong value, a file or too little memory, or with the status of Ctrl-C.

    Characters that the terminal cannot show are replaced.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as error:
        _end(str(error).rstrip(), error)
    except (RuntimeError, MemoryError) as error:  # torch says "CUDA out of memory" or "can't allocate memory"
        if "memory" not in str(error) and not isinstance(error, MemoryError):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        _end(f"not enough memory for a video of this size: {reason}", error)
    except KeyboardInterrupt as error:
        print(*getattr(error, "__notes__", []), sep="\n", end="", file=sys.stderr)
        sys.exit(130)


def _end(message: str, error: BaseException) -> None:
    notes = getattr(error, "__notes__", [])
    sys.exit("\n".join([f"error: {message}", *notes]) if FIRST else 1)
