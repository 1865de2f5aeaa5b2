"""What tells one family of dense decoders from another."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Family(NamedTuple):
    """A family whose layers are those of `decoder.py`: how its config.json is to be read.

    A new one is a folder beside `qwen/` that holds its `FAMILIES`, and two lines in `families.py`.
    """

    model_type: str  # in config.json
    label: str  # for messages
    architecture: str  # transformers' class
    qkv_bias: bool | None  # biases of the query, key and value projections; None: as attention_bias says
    output_bias: bool | None  # bias of the attention's output projection; None: as attention_bias says
    qk_norm: bool  # queries and keys are normalised per head
    head_dim: int | None  # where config.json has none; None: hidden_size / num_attention_heads
    known: Mapping[str, Mapping[str, Any]]  # public models: hub name in lower case -> the values of its config.json
