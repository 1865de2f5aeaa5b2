"""User errors end with an actionable message and an exit code. Anything else is a bug and shows its traceback."""

import os
import sys
from collections.abc import Callable
from functools import wraps


class UserError(Exception):
    """A mistake the user can fix. The message says what was expected, what came, and what to do."""


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate a command's `main`: a UserError ends the process with exit code 2 and its message on stderr.

    Ctrl-C exits with 130, a closed pipe with 141, as shells expect.
    """

    @wraps(main)
    def guarded() -> None:
        run_command(main)

    return guarded


def run_command(main: Callable[[], None]) -> None:
    """Call `main` at once, with the error handling of `command`."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader of our output is gone (`... | head`), so nobody would see a message
        sys.stdout = open(os.devnull, "w")  # else the interpreter complains once more when it flushes  # noqa: SIM115
        raise SystemExit(141) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
