"""The process behind `rendering.py`: compiles one chat template, then writes chats with it, within bounds.

Runs as a program by its path, so it imports nothing of the package. A template comes with a model's folder and is not
trusted: it may loop without end, or ask for more memory than there is, inside one call that nothing interrupts. So the
kernel ends this process when its processor time is over (a signal without a handler), and gives it no more memory,
files or processes than it needs.

A message is the length of its JSON header, the length of its text in bytes (both u64, little-endian), header and text.

    -> {"template": template, "variables": {...}, "seconds": number}    <- {} or {"error": ..., "refused": ...}
    -> {"roles": ["system user", ...], "lengths": [...], "generate": bool}, the messages' texts one after the other
    <- {"lengths": [...]}, the chats one after the other;               or {"error": ..., "refused": ...}

Lengths are in characters. `refused` tells that the template itself raised the error, which may be about these messages.
"""

import contextlib
import json
import resource
import signal
import struct
import sys
from typing import IO, Any

import jinja2
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace

MEMORY = 1 << 30  # bytes of address space,
MEMORY_PER_CHARACTER = 256  # and for each character of the messages
SECONDS_PER_CHAT = 0.02  # that each chat adds to the processor time that is left; real templates take 20 microseconds,
SECONDS_PER_CHARACTER = 1e-6  # and each character of it; a real template passes 100 million a second
LONGEST = 200_000  # characters that a template may add to a chat,
LONGEST_RATIO = 8  # and how often it may repeat the messages

LENGTHS = struct.Struct("<QQ")


def main() -> None:
    """Answer until the input ends."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the parent decides when to end
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(ValueError, OSError):
        for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
            resource.setrlimit(limit, (0, 0))
    left = most = 0.0  # seconds of processor time
    template: jinja2.Template | None = None
    variables: dict[str, Any] = {}
    while (request := receive(requests)) is not None:
        header, text = request
        if template is None:
            left = most = header["seconds"]
        left = min(left + _earned(header), most)
        _limit_memory(MEMORY + MEMORY_PER_CHARACTER * len(text))
        signal.setitimer(signal.ITIMER_PROF, left)  # SIGPROF, which ends the process
        try:
            if template is None:
                variables = header["variables"]
                template = environment(variables["date_string"]).from_string(header["template"])
                answer: tuple[dict[str, Any], str] = ({}, "")
            else:
                answer = _rendered(template, variables, header, text)
        except TemplateError as error:
            answer = ({"error": _said(error), "refused": not isinstance(error, SecurityError)}, "")
        except MemoryError:
            answer = ({"error": "it takes too much memory", "refused": False}, "")
        except Exception as error:  # RecursionError, OverflowError, what a filter raises
            answer = ({"error": f"{type(error).__name__}: {_said(error)}", "refused": True}, "")
        left = signal.setitimer(signal.ITIMER_PROF, 0)[0]
        _limit_memory(None)
        send(answers, *answer)


def environment(today: str) -> ImmutableSandboxedEnvironment:
    """Jinja as `transformers` sets it up for chat templates, but for the date, which is always the same."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], autoescape=False
    )
    made.filters["tojson"] = _to_json
    made.globals |= {"raise_exception": _raise, "dict": _Dict(), "namespace": _Namespace}
    made.globals["strftime_now"] = lambda format: today
    return made


def _rendered(
    template: jinja2.Template, variables: dict[str, Any], header: dict[str, Any], text: str
) -> tuple[dict[str, Any], str]:
    chats, start, lengths = [], 0, iter(header["lengths"])
    always = {**variables, "tools": None, "documents": None, "add_generation_prompt": header["generate"]}
    for roles in header["roles"]:
        messages, begin = [], start
        for role in roles.split():
            end = start + next(lengths)
            messages.append({"role": role, "content": text[start:end]})
            start = end
        chat = template.render({**always, "messages": messages})
        if len(chat) > LONGEST + LONGEST_RATIO * (start - begin):
            return {"error": f"it makes {len(chat)} characters of {start - begin}", "refused": False}, ""
        chats.append(chat)
    return {"lengths": list(map(len, chats))}, "".join(chats)


def _earned(header: dict[str, Any]) -> float:
    """Seconds that a request adds to those left."""
    lengths = header.get("lengths", ())
    return SECONDS_PER_CHAT * len(lengths) + SECONDS_PER_CHARACTER * sum(lengths)


def _limit_memory(size: int | None) -> None:
    """Allow so many bytes of address space; None: what the process was started with."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (most if size is None else size, most))


def _said(error: Exception) -> str:
    return str(error)[:1000]


class _Generation(Extension):
    """`{% generation %}`, which marks what an assistant wrote, and changes nothing in the text."""

    tags = {"generation"}  # noqa: RUF012  (as jinja declares it)

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller: Any) -> str:
        return caller()


class _Dict:
    """`dict(...)` without the class, whose attributes lead on."""

    def __call__(self, *args: Any, **values: Any) -> dict:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace(...)` without names that begin with an underscore, which may be Python's own."""

    def __init__(*args: Any, **values: Any) -> None:  # so that `self` may be a name
        self, *given = args
        named = dict(*given, **values)
        for name in named:
            _check_name(name)
        Namespace.__init__(self, named)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


def _raise(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def send(stream: IO[bytes], header: dict[str, Any], text: str = "") -> None:
    """Write one message."""
    head, body = json.dumps(header).encode(), text.encode("utf-8", "surrogatepass")
    stream.write(LENGTHS.pack(len(head), len(body)) + head)
    stream.write(body)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], str] | None:
    """Read one message; None at the end of the stream."""
    start = stream.read(LENGTHS.size)
    if len(start) < LENGTHS.size:
        return None
    head, body = LENGTHS.unpack(start)
    header, text = stream.read(head), stream.read(body)
    if len(header) < head or len(text) < body:
        return None
    return json.loads(header), text.decode("utf-8", "surrogatepass")


if __name__ == "__main__":
    main()
