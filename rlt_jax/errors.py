"""User errors end with an actionable message and an exit code. Anything else is a bug and shows its traceback."""

import errno
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from types import TracebackType

from rlt_jax import stops
from rlt_jax.secrets import redacted
from rlt_jax.stops import StopRequested
from rlt_jax.terminal import open_terminal, output_failure, visible

DISK_ERRORS = (  # no bug of ours, wherever they come up
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EIO,
    errno.ESTALE,
    errno.ENODEV,
)


class UserError(Exception):
    """A mistake the user can fix. The message says what was expected, what came, and what to do."""


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate a command's `main`: a UserError ends the process with exit code 2 and its message on stderr.

    SIGTERM exits with 143, Ctrl-C with 130 (`stops.py`), a closed pipe with 141, as shells expect. Output is such that
    any terminal takes it (`terminal.py`); if it could not be written, a command that has otherwise succeeded says so
    and exits with 2.
    """

    @wraps(main)
    def guarded() -> None:
        run_command(main)

    return guarded


def run_command(main: Callable[[], None]) -> None:
    """Call `main` at once, with the error handling of `command`."""
    open_terminal()
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _show_bug
    code: object = None
    try:
        with stops.handled():
            main()
    except UserError as error:
        print(f"error: {visible(redacted(str(error)))}", file=sys.stderr)
        code = 2
    except SystemExit as stop:
        code = stop.code
    except BrokenPipeError:
        if output_failure() is None:  # a pipe of our own: a bug
            raise
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"error: {visible(f'{where}{error.strerror}')}: mend that and repeat the command",
            file=sys.stderr,
        )
        code = 2
    except StopRequested as stop:
        code = 128 + stop.signal
        stops.ending(code)
        print(visible(str(stop)), file=sys.stderr)
    except KeyboardInterrupt:  # where the signal was left to Python
        print("interrupted", file=sys.stderr)
        code = 130
    with suppress(BrokenPipeError):  # flushed here, where a failure is handled, not when the interpreter ends
        sys.stdout.flush()
    failure = output_failure()
    if isinstance(failure, BrokenPipeError):  # the reader of our output is gone (`... | head`): nobody sees a message
        code = code or 141
    elif failure is not None and not code:
        print(
            f"error: expected to write to the standard output, but: {failure.strerror}: what was to be shown is lost, "
            "the files are complete: redirect it to a file that can be written",
            file=sys.stderr,
        )
        code = 2
    stops.ended(code if isinstance(code, int) else int(code is not None))
    if code is not None:
        raise SystemExit(code)


def _show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback as the interpreter does, without secrets; for streams that do not keep them out themselves."""
    print(redacted("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)
