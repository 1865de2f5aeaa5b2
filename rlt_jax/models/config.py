"""The architecture of a model, read from a Hugging Face `config.json` and written back to one.

Features that `decoder.py` does not implement are refused by name (`supported.py`), instead of being computed
differently.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlt_jax.errors import UserError
from rlt_jax.models.families import FAMILIES
from rlt_jax.models.family import Family
from rlt_jax.models.fields import flag, positive, size
from rlt_jax.models.rope import DEFAULT_THETA, Scaling, Yarn, read_rope, rope_json
from rlt_jax.models.supported import check_supported, check_windows

_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the parameters' shapes and the computation. Sizes are in elements."""

    model_type: str  # a key of FAMILIES
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 32768  # as in config.json; see max_positions
    rope_theta: float = DEFAULT_THETA
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False  # of the projections, where the family leaves that open
    initializer_range: float = 0.02  # standard deviation of random weights
    rope_scaling: Scaling | None = None  # stretched rotary frequencies
    source: str = field(default="{}", compare=False, repr=False)  # the file's JSON, for the keys that are not read here

    @property
    def family(self) -> Family:
        """The family that the model belongs to."""
        return FAMILIES[self.model_type]

    @property
    def max_positions(self) -> int:
        """Positions that the model was made for, a prompt's and its completion's together.

        With YaRN, original_max_position_embeddings · factor, the length to which the frequencies are stretched: by the
        authors' instructions (Qwen2.5, Qwen3) max_position_embeddings may stay at the length before stretching, and
        vLLM has rotary positions up to that product. Otherwise max_position_embeddings, which includes the stretching
        in Llama 3.1 (131072, of 8192 before).
        """
        if isinstance(self.rope_scaling, Yarn):
            return int(self.rope_scaling.original_max_position_embeddings * self.rope_scaling.factor)
        return self.max_position_embeddings

    @property
    def qkv_bias(self) -> bool:
        """Whether the query, key and value projections have a bias."""
        return self.attention_bias if self.family.qkv_bias is None else self.family.qkv_bias

    @property
    def output_bias(self) -> bool:
        """Whether the attention's output projection has a bias."""
        return self.attention_bias if self.family.output_bias is None else self.family.output_bias

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised per head."""
        return self.family.qk_norm

    def to_json(self, dtype: str) -> dict[str, Any]:
        """The contents of a `config.json`: those of the file that was read, updated where this configuration differs.

        Args:
          dtype: of the stored weights, such as "bfloat16"; written under the keys of both transformers generations
            (`torch_dtype` up to 4, `dtype` from 5).
        """
        values = json.loads(self.source)
        if not values or parse_config(values, "source") != self:
            values.update(
                {name: getattr(self, name) for name in _REQUIRED},
                architectures=[self.family.architecture],
                model_type=self.model_type,
                head_dim=self.head_dim,
                max_position_embeddings=self.max_position_embeddings,
                hidden_act="silu",
                rms_norm_eps=self.rms_norm_eps,
                tie_word_embeddings=self.tie_word_embeddings,
                attention_bias=self.attention_bias,
                initializer_range=self.initializer_range,
            )
            windows = {"use_sliding_window": False, "sliding_window": None}
            values.update({key: off for key, off in windows.items() if key in values or key in self.family.defaults})
            if "layer_types" in values:
                values["layer_types"] = ["full_attention"] * self.num_hidden_layers
            nested = bool(values.get("rope_parameters"))
            for key in ("rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings"):
                values.pop(key, None)
            values.update(rope_json(self.rope_theta, self.rope_scaling, nested=nested))
        values.update(dtype=dtype, torch_dtype=dtype)
        return values


def read_config(folder: Path) -> ModelConfig:
    """Read the configuration in `folder/config.json`.

    Raises:
      UserError: the file is missing, not JSON, incomplete, or asks for something unsupported.
    """
    path = folder / "config.json"
    return parse_config(read_json(path), str(path))


def parse_config(values: dict[str, Any], where: str) -> ModelConfig:
    """Turn a Hugging Face configuration into a ModelConfig; `where` names the file in errors.

    Raises:
      UserError: a key is missing or malformed, or asks for something unsupported (named in the message).
    """
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        labels = " or ".join(family.label for family in FAMILIES.values())
        raise UserError(
            f"{where}: expected model_type {labels}, got {model_type!r}: give a model of one of these families"
        )
    source, family = json.dumps(values), FAMILIES[model_type]
    values = {**family.defaults, **values}
    missing = [name for name in _REQUIRED if name not in values]
    if missing:
        raise UserError(f"{where}: expected the keys {', '.join(missing)}, which are missing: add them")
    sizes = {name: values[name] for name in _REQUIRED}
    if sizes["num_key_value_heads"] is None:
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    for name, value in sizes.items():
        size(value, name, where)
    heads, kv_heads, hidden = sizes["num_attention_heads"], sizes["num_key_value_heads"], sizes["hidden_size"]
    if heads % kv_heads:
        raise UserError(
            f"{where}: expected num_attention_heads to be a multiple of num_key_value_heads, "
            f"got {heads} and {kv_heads}: correct them"
        )
    head_dim = values.get("head_dim")
    if head_dim is None:
        head_dim = family.defaults.get("head_dim", hidden // heads)
        if "head_dim" not in family.defaults and hidden % heads:
            raise UserError(
                f"{where}: expected head_dim, or a hidden_size divisible by num_attention_heads, "
                f"got hidden_size {hidden} and {heads} heads: add head_dim"
            )
    if not isinstance(head_dim, int) or head_dim < 2 or head_dim % 2:
        raise UserError(f"{where}: expected head_dim to be a positive even integer, got {head_dim!r}: correct it")
    check_supported(values, family, where)
    theta, scaling = read_rope(values, where)
    config = ModelConfig(
        model_type=model_type,
        **sizes,
        max_position_embeddings=size(values["max_position_embeddings"], "max_position_embeddings", where),
        head_dim=head_dim,
        rope_theta=theta,
        rms_norm_eps=positive(values.get("rms_norm_eps", 1e-6), "rms_norm_eps", where),
        tie_word_embeddings=flag(values.get("tie_word_embeddings", False), "tie_word_embeddings", where),
        attention_bias=flag(values.get("attention_bias", False), "attention_bias", where),
        initializer_range=positive(values.get("initializer_range", 0.02), "initializer_range", where),
        rope_scaling=scaling,
        source=source,
    )
    check_windows(values, family, config.max_positions, where)
    return config


def known_config(name: str) -> ModelConfig | None:
    """The architecture of a public model by its hub name, in any case; None if it is not in the families' tables."""
    for family in FAMILIES.values():
        if values := family.known.get(name.lower()):
            return parse_config(dict(values), name)
    return None


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file.

    Raises:
      UserError: the file is missing, is not JSON, or does not hold an object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        present = ", ".join(sorted(entry.name for entry in path.parent.iterdir())) or "nothing"
        raise UserError(f"expected {path}, found {present} in that folder: give a model's folder") from None
    except ValueError as error:  # covers broken JSON and broken UTF-8
        raise UserError(f"{path}: expected JSON, but it cannot be read ({error}): copy the file again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(values).__name__}: copy the file again")
    return values
