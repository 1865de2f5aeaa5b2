"""Messages between a trainer and its engine's process: JSON and raw bytes, so that reading one can run no code.

A message is one JSON header, then the byte strings that it refers to, each with `send_bytes` of
`multiprocessing.connection.Connection`, which frames them. In the header a byte string stands as {"bytes": its number},
a tuple as a list, and a dict with other keys than texts as {"pairs": [[key, value], ...]}.

Both sides use this file: the trainer imports it, and the engine's process finds it beside its program.
"""

import json
from multiprocessing.connection import Connection
from typing import Any

LONGEST = 1 << 30  # bytes of a header or a byte string: a batch of prompts is far below


def send_message(connection: Connection, message: Any) -> None:
    """Send None, booleans, numbers, texts, byte strings, lists or tuples of these, and dicts (keys: texts, integers).

    Raises:
      TypeError: it holds something else.
      OSError: the other side is gone.
    """
    parts: list[bytes] = []
    header = json.dumps(_plain(message, parts), allow_nan=True).encode()
    connection.send_bytes(json.dumps(len(parts)).encode())
    connection.send_bytes(header)
    for part in parts:
        connection.send_bytes(part)


def receive_message(connection: Connection) -> Any:
    """The next message, with lists for tuples; waits for it.

    Raises:
      EOFError, OSError: the other side is gone, or what it sends is no message.
    """
    try:
        count = json.loads(connection.recv_bytes(LONGEST))
        header = json.loads(connection.recv_bytes(LONGEST))
        parts = [connection.recv_bytes(LONGEST) for _ in range(count)]
        return _filled(header, parts)
    except (ValueError, TypeError, LookupError) as error:
        raise OSError(f"no message: {error}") from None


def _plain(value: Any, parts: list[bytes]) -> Any:
    if isinstance(value, bytes):
        parts.append(value)
        return {"bytes": len(parts) - 1}
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value) and not value.keys() & {"bytes", "pairs"}:
            return {key: _plain(item, parts) for key, item in value.items()}
        if any(type(key) not in (str, int) for key in value):
            raise TypeError(f"a message cannot hold the keys {list(value)}")
        return {"pairs": [[key, _plain(item, parts)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        if all(type(item) is int for item in value):  # token ids, of which there are many
            return value
        return [_plain(item, parts) for item in value]
    return value


def _filled(value: Any, parts: list[bytes]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"bytes"}:
            return parts[value["bytes"]]
        if value.keys() == {"pairs"}:
            return {key: _filled(item, parts) for key, item in value["pairs"]}
        return {key: _filled(item, parts) for key, item in value.items()}
    if isinstance(value, list):
        if all(type(item) is int for item in value):
            return value
        return [_filled(item, parts) for item in value]
    return value
