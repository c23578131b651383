"""Run a script as a person expects: what they can cure ends it with one line, and not with a place in the code."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable

from .files import signals_like_ctrl_c

# Only the first of several ranks speaks. parallel/groups.py says more, but imports torch, which takes seconds.
FIRST = os.environ.get("RANK", "0") == "0"
NO_MEMORY = re.compile("out of memory|can't allocate memory|cannot allocate memory", re.IGNORECASE)


def run(main: Callable[[], object]) -> None:
    """Call main(). End with one line about a wrong value, a file or too little memory, or with the status of Ctrl-C.

    Of several ranks the first one that fails says why. Characters that the terminal cannot show are replaced.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as error:
        from .parallel.groups import is_first_to_fail  # imports torch, which a script does later

        sys.exit(_message(str(error).rstrip(), error) if is_first_to_fail() else 1)
    except subprocess.CalledProcessError as error:  # its own words are on the screen already, if nobody caught them
        sys.exit(error.stderr or f"error: {shlex.join(error.cmd)} failed with status {error.returncode}")
    except (RuntimeError, MemoryError) as error:
        if not NO_MEMORY.search(str(error)) and not isinstance(error, MemoryError):
            if "imed out" in str(error):
                error.add_note("A rank waits for the others for 120 s, or as long as KANDINSKY_TIMEOUT_SECONDS says.")
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        sys.exit(_message(f"not enough memory for this size: {reason}", error))
    except KeyboardInterrupt as error:
        for note in getattr(error, "__notes__", []):
            print(note, file=sys.stderr)
        sys.exit(130)


def run_program(command: list[str], **options: object) -> str | None:
    """Run another program, with options of subprocess.Popen, until it ends. Return its output, if that is captured.

    A signal that ends us ends it first.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    with signals_like_ctrl_c(), subprocess.Popen(command, **options) as process:
        try:
            out, err = process.communicate()
        except KeyboardInterrupt:
            process.terminate()  # a launcher passes this on to its ranks, while a kill would leave them behind
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, out, err)
    return out


def _message(reason: str, error: BaseException) -> str:
    return "\n".join([f"error: {reason}", *getattr(error, "__notes__", [])])
