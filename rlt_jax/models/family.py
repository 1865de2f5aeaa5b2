"""What distinguishes one family of dense decoders from another."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Family(NamedTuple):
    """A family whose layers are those of `decoder.py`: how to read its config.json.

    A new family is a folder next to `qwen/` with its own `FAMILIES`.
    """

    model_type: str  # in config.json
    label: str  # for messages
    architecture: str  # transformers' class
    qkv_bias: bool | None  # biases of the query, key and value projections; None: as given by attention_bias
    output_bias: bool | None  # bias of the attention's output projection; None: as given by attention_bias
    qk_norm: bool  # queries and keys are normalised per head
    defaults: Mapping[str, Any]  # for keys that config.json lacks, as in transformers; max_position_embeddings is one
    known: Mapping[str, Mapping[str, Any]]  # public models: hub name in lower case -> values of its config.json
