"""Write chats with a chat template that is not trusted: in a process of its own, within bounded time and memory.

A template comes with a model's folder, and Jinja's sandbox keeps it from Python's internals, but not from an endless
loop or from a text of a terabyte. `template_worker.py` says what the bounds are. A batch of chats is one message each
way, so that a chat takes about as long as in this process.
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlt_jax.errors import UserError
from rlt_jax.secrets import public_environment

Message = dict[str, str]

PER_CALL = 256  # chats that are sent at once,
CHARACTERS_PER_CALL = 2**20  # of together so many characters, unless there is one alone
SECONDS = 5.0  # of processor time for a template at the start; each chat adds to what is left of it
STALLED_SECONDS = 600.0  # for one call, if the process gets no processor time at all


class TemplateRefused(UserError):
    """The template itself raised an error, perhaps because of these messages."""


class TemplateUnsafe(UserError):
    """The template took more time or memory than it may, or reached for what it must not touch."""


class Renderer:
    """A process that has compiled a template. Made by `renderer_of`."""

    def __init__(self, template: str, variables: Mapping[str, Any], file: str) -> None:
        self._first = {"template": template, "variables": dict(variables), "seconds": SECONDS}
        self._file = file
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def render(self, chats: Sequence[list[Message]], *, generate: bool) -> list[str]:
        """The text of each chat.

        Args:
          generate: with the generation prompt.
        Raises:
          TemplateRefused: the template cannot be read, or raises an error.
          TemplateUnsafe: it exceeds its bounds.
        """
        texts: list[str] = []
        with self._lock:
            for part in _parts(chats):
                texts += self._ask(part, generate)
        return texts

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._end()
            self._process = None

    def _ask(self, chats: Sequence[list[Message]], generate: bool) -> list[str]:
        header = {
            "roles": [" ".join(message["role"] for message in chat) for chat in chats],
            "lengths": [len(message["content"]) for chat in chats for message in chat],
            "generate": generate,
        }
        if self._process is None or self._owner != os.getpid():
            self._start()
        answer, text = self._exchange(header, "".join(message["content"] for chat in chats for message in chat))
        texts, start = [], 0
        for length in answer["lengths"]:
            texts.append(text[start : start + length])
            start += length
        return texts

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("template_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=public_environment(),
            start_new_session=True,  # Ctrl-C is the trainer's
        )
        self._owner = os.getpid()
        self._end = weakref.finalize(self, _end, self._process, self._owner)  # also when the interpreter ends
        self._exchange(self._first, "")

    def _exchange(self, header: dict[str, Any], text: str) -> tuple[dict[str, Any], str]:
        assert self._process and self._process.stdin and self._process.stdout
        from rlt_jax.data.template_worker import receive, send  # here: the import takes a while

        answer = None
        try:
            with suppress(BrokenPipeError):
                send(self._process.stdin, header, text)
                if select.select([self._process.stdout], [], [], STALLED_SECONDS)[0]:
                    answer = receive(self._process.stdout)
                else:
                    self._process.kill()
            if answer is None:
                raise self._died()
            if "error" in answer[0]:
                raise self._error(answer[0]["error"], refused=answer[0]["refused"])
        except BaseException as error:  # an interruption too: what is half said would be read as the next answer
            if not isinstance(error, TemplateRefused) or "template" in header:
                self.close()
            raise
        return answer

    def _died(self) -> UserError:
        assert self._process
        code = self._process.wait()
        if code == -signal.SIGPROF:
            return self._error("it takes too long", refused=False)
        return self._error(f"Python ends while it reads it (exit code {code})", refused=False)

    def _error(self, reason: str, *, refused: bool) -> UserError:
        if refused:
            return TemplateRefused(
                f"expected a chat template that takes a system and a user message, but it says: {reason}: use the "
                f"model's own template (this one is in {self._file})"
            )
        return TemplateUnsafe(
            f"expected a chat template that writes a chat in bounded time and memory, but of the one in {self._file}: "
            f"{reason}: use the model's own template"
        )


def renderer_of(template: str, variables: Mapping[str, Any], *, file: str) -> Renderer:
    """The process of a template, started at its first chat.

    Args:
      variables: that it sees besides the messages; `date_string` is today's date.
      file: where it comes from, for messages.
    """
    return _cached(template, json.dumps(variables, sort_keys=True, default=str), file)


@lru_cache(maxsize=8)
def _cached(template: str, variables: str, file: str) -> Renderer:
    return Renderer(template, json.loads(variables), file)


def _end(process: "subprocess.Popen[bytes]", owner: int) -> None:
    if owner == os.getpid():  # and not in a fork
        process.kill()
        process.communicate()


def _parts(chats: Sequence[list[Message]]) -> Iterator[Sequence[list[Message]]]:
    """Consecutive chats that are sent together."""
    first = characters = 0
    for number, chat in enumerate(chats):
        size = sum(len(message["content"]) for message in chat)
        if number > first and (number - first >= PER_CALL or characters + size > CHARACTERS_PER_CALL):
            yield chats[first:number]
            first, characters = number, 0
        characters += size
    if first < len(chats):
        yield chats[first:]
