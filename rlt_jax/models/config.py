"""The architecture of a model, read from a Hugging Face `config.json` and written back to one.

Features that `decoder.py` does not implement are refused here, by name, instead of being computed differently.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlt_jax.errors import UserError
from rlt_jax.models.families import FAMILIES
from rlt_jax.models.family import Family

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
    max_position_embeddings: int = 32768  # tokens that the model supports
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False  # of the projections, where the family leaves that open
    initializer_range: float = 0.02  # standard deviation of random weights
    source: str = field(default="{}", compare=False, repr=False)  # the file's JSON, for the keys that are not read here

    @property
    def family(self) -> Family:
        """The family that the model belongs to."""
        return FAMILIES[self.model_type]

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
                use_sliding_window=False,
            )
            if "layer_types" in values:
                values["layer_types"] = ["full_attention"] * self.num_hidden_layers
            if values.get("rope_parameters"):
                values["rope_parameters"]["rope_theta"] = self.rope_theta
            else:
                values["rope_theta"] = self.rope_theta
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
    if model_type not in FAMILIES:
        labels = " or ".join(family.label for family in FAMILIES.values())
        raise UserError(f"{where}: expected model_type {labels}, got {model_type!r}: use a dense Qwen model")
    _refuse_unsupported(values, where)
    missing = [name for name in _REQUIRED if name not in values]
    if missing:
        raise UserError(f"{where}: expected the keys {', '.join(missing)}, which are missing: add them")
    sizes = {name: values[name] for name in _REQUIRED}
    if sizes["num_key_value_heads"] is None:
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    for name, size in sizes.items():
        _size(size, name, where)
    heads, kv_heads, hidden = sizes["num_attention_heads"], sizes["num_key_value_heads"], sizes["hidden_size"]
    if heads % kv_heads:
        raise UserError(
            f"{where}: expected num_attention_heads to be a multiple of num_key_value_heads, "
            f"got {heads} and {kv_heads}: correct them"
        )
    head_dim = values.get("head_dim")
    if head_dim is None:
        head_dim = FAMILIES[model_type].head_dim or hidden // heads
        if FAMILIES[model_type].head_dim is None and hidden % heads:
            raise UserError(
                f"{where}: expected head_dim, or a hidden_size divisible by num_attention_heads, "
                f"got hidden_size {hidden} and {heads} heads: add head_dim"
            )
    if not isinstance(head_dim, int) or head_dim < 2 or head_dim % 2:
        raise UserError(f"{where}: expected head_dim to be a positive even integer, got {head_dim!r}: correct it")
    rope = {**values, **(values.get("rope_parameters") or {})}  # nested since transformers 5
    return ModelConfig(
        model_type=model_type,
        **sizes,
        max_position_embeddings=_size(values.get("max_position_embeddings", 32768), "max_position_embeddings", where),
        head_dim=head_dim,
        rope_theta=_positive(rope.get("rope_theta", 10000.0), "rope_theta", where),
        rms_norm_eps=_positive(values.get("rms_norm_eps", 1e-6), "rms_norm_eps", where),
        tie_word_embeddings=_flag(values.get("tie_word_embeddings", False), "tie_word_embeddings", where),
        attention_bias=_flag(values.get("attention_bias", False), "attention_bias", where),
        initializer_range=_positive(values.get("initializer_range", 0.02), "initializer_range", where),
        source=json.dumps(values),
    )


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


def _refuse_unsupported(values: dict[str, Any], where: str) -> None:
    """Refuse a configuration with features that change the numbers but are not implemented, naming all of them."""
    found = []
    if values.get("use_sliding_window"):
        found.append("use_sliding_window=true (every layer attends to all earlier tokens)")
    layer_types = values.get("layer_types") or []
    if not isinstance(layer_types, list):
        raise UserError(f"{where}: expected layer_types to be a list or null, got {layer_types!r}: correct it")
    odd_layers = sorted({str(kind) for kind in layer_types if kind != "full_attention"})
    if odd_layers:
        found.append(f"layer_types {', '.join(odd_layers)} (only full_attention)")
    for key in ("rope_scaling", "rope_parameters"):
        rope = values.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise UserError(f"{where}: expected {key} to be an object or null, got {rope!r}: correct it")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", None):
            found.append(f"{key} of type {kind!r} (only default)")
    if values.get("hidden_act", "silu") != "silu":
        found.append(f"hidden_act={values['hidden_act']!r} (only silu)")
    if values.get("attention_dropout"):
        found.append(f"attention_dropout={values['attention_dropout']!r} (only 0)")
    if values.get("quantization_config") is not None:
        found.append("quantization_config (only bfloat16, float16 and float32 weights)")
    if found:
        raise UserError(f"{where} asks for what is not supported: {'; '.join(found)}: use another model or turn it off")


def _size(value: object, name: str, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{where}: expected {name} to be a positive integer, got {value!r}: correct it")
    return value


def _positive(value: object, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise UserError(f"{where}: expected {name} to be a positive number, got {value!r}: correct it")
    return float(value)


def _flag(value: object, name: str, where: str) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{where}: expected {name} to be true or false, got {value!r}: correct it")
    return value
