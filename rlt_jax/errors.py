"""User errors: a message to act on, an exit code, no traceback. Anything else is our bug and keeps its traceback."""

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
    """Call `main` as `command` does, for one that is no function of its own."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader of our output is gone (`... | head`): nothing to say, and no one to say it to
        sys.stdout = open(os.devnull, "w")  # else the interpreter complains once more when it flushes  # noqa: SIM115
        raise SystemExit(141) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
