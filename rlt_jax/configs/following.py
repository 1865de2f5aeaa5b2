"""Settings that belong together: what belongs to the rows changes with them, and what nobody gave follows what was.

Values come in layers: a preset, a file over it, flags over both. Two rules hold at each layer:

- Another `data.path` takes everything with it that belongs to the rows: held-out rows, split, columns. What a preset
  says of its own rows never reaches those of a user.
- A value that nobody gave follows the given ones where the two exclude each other and the result is the same run: a
  micro-batch is never larger than its batch. Where following would change what a result means, the checks refuse.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from rlt_jax.configs.checks import same_path
from rlt_jax.configs.files import field_names
from rlt_jax.configs.generate import GenerateConfig
from rlt_jax.configs.resume import leaves
from rlt_jax.configs.sft import SftConfig
from rlt_jax.configs.train import TrainConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")
Section = TypeVar("Section", bound="DataclassInstance")

_OF_ANY_ROWS = ("on_bad_row", "truncate_prompts", "artificial_epochs")  # settings of `data` that fit any rows
_OF_MODELS = ("tags", "teacher_prompt_file", "student_prompt_file")  # what the models were trained with


@dataclass(frozen=True)
class Layer:
    """What the user gave. Names are those of fields with their section, such as `loss.beta`."""

    given: frozenset[str]  # by the user, in this layer or below it
    now: frozenset[str]  # in this layer
    base: Any = None  # the configuration that this layer changes; None: the defaults of the class


Change = tuple[str, object, str]  # field, its new value, the given settings that it follows


def given_flags(argv: Sequence[str], config_class: "type[DataclassInstance]") -> frozenset[str]:
    """The fields that flags set, such as `loss.beta` for `--loss.beta=0.1` and `packing` for `--no-packing`."""
    fields = set(field_names(config_class))
    names = set()
    for word in argv:
        if word.startswith("--"):
            name = word[2:].split("=", 1)[0].replace("-", "_")
            section, dot, last = name.rpartition(".")
            names |= {name, f"{section}{dot}{last.removeprefix('no_')}"}
    return frozenset(names & fields)


def given_keys(values: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> frozenset[str]:
    """The fields that a file sets.

    Args:
      values: nested, as read from the file.
      defaults: nested; fields that the file sets to these do not count, as in a run's config.yaml, which has them all.
    """
    known = {} if defaults is None else dict(leaves(defaults))
    missing = object()
    return frozenset(name for name, value in leaves(values) if _plain(value) != _plain(known.get(name, missing)))


def for_rows(data: Section, path: str, *, preset: Section | None = None) -> tuple[Section, list[str]]:
    """The section `data` for the rows of `path`: unchanged for the same rows, else without what belongs to the old.

    Args:
      data: a section with a field `path`.
      preset: the preset's; prompts and tags that are the preset's own go with its rows.
    Returns:
      The section, and the names of the fields that got back their defaults.
    """
    old = vars(data)["path"]
    if same_path(path, old):
        return dataclasses.replace(data, path=path), []  # type: ignore[call-arg]  # every such section has a path
    kept = {name: value for name, value in vars(data).items() if name in _OF_ANY_ROWS}
    for name in _OF_MODELS:
        if name in vars(data) and (preset is None or vars(data)[name] != vars(preset)[name]):
            kept[name] = vars(data)[name]
    fresh = type(data)(path=path, **kept)  # type: ignore[call-arg]
    return fresh, [name for name, value in vars(fresh).items() if name != "path" and value != vars(data)[name]]


def rows_note(path: str, old: str, dropped: Sequence[str], *, given: frozenset[str]) -> list[str]:
    """A line on what `for_rows` left out; none if the user gave it all again."""
    names = [f"data.{name}" for name in dropped if f"data.{name}" not in given]
    return [f"data.path={path}: without {', '.join(names)} of {old}"] if names else []


def print_note(note: str) -> None:
    """Say on stderr what followed, so that a printed configuration stays one."""
    print(f"note: {note}", file=sys.stderr)


def settle(config: Config, layer: Layer) -> tuple[Config, list[str]]:
    """A configuration in which untouched values follow the given ones, and a line for each that did."""
    notes = []
    for rule in _RULES:
        for name, value, because in rule(config, layer):
            config = _with(config, name, value)
            notes.append(f"{name}={value}: follows {because}")
    return config, notes


def _micro_batch(config: Any, layer: Layer) -> Iterator[Change]:
    if not isinstance(config, TrainConfig | SftConfig) or "per_device_train_batch_size" in layer.given:
        return
    batch = config.train_batch_size
    if batch is not None and config.per_device_train_batch_size > batch >= 1:
        yield "per_device_train_batch_size", batch, f"train_batch_size={batch}"


def _pass_tokens(config: Any, layer: Layer) -> Iterator[Change]:
    """Rows of a pass that are given replace the preset's tokens of a pass."""
    if not isinstance(config, TrainConfig):
        return
    for tokens, rows in (("update_tokens", "per_device_train_batch_size"), ("score_tokens", "score_batch_size")):
        if rows in layer.now and tokens not in layer.now and getattr(config, tokens) is not None:
            yield tokens, None, f"{rows}={getattr(config, rows)}"


def _planned_memory(config: Any, layer: Layer) -> Iterator[Change]:
    """With another budget, the same share of it is planned for."""
    base = layer.base
    if not isinstance(config, TrainConfig) or base is None:
        return
    if "budget_gb" not in layer.now or "planned_gb" in layer.now:
        return
    budget, planned = config.budget_gb, base.planned_gb
    if budget and budget > 0 and planned and base.budget_gb and budget != base.budget_gb:
        share = round(planned / base.budget_gb * budget, 1)
        yield "planned_gb", share, f"budget_gb={budget:g} (of {base.budget_gb:g}, {planned:g} were planned for)"


def _held_out_rows(config: Any, layer: Layer) -> Iterator[Change]:
    """The number of held-out rows, and their split, belong to their source."""
    if not isinstance(config, TrainConfig | SftConfig) or layer.base is None:
        return
    data, old = config.data, layer.base.data
    if not same_path(data.path, old.path):
        return  # then nothing of the old rows is left
    changed = [name for name in ("eval_path", "eval_split", "split") if vars(data)[name] != vars(old)[name]]
    because = ", ".join(f"data.{name}={vars(data)[name]}" for name in changed)
    if "eval_path" in changed and data.eval_split is not None and "data.eval_split" not in layer.now:
        yield "data.eval_split", None, because
    if changed and data.eval_rows is not None and "data.eval_rows" not in layer.now:
        yield "data.eval_rows", None, because


def _evaluation(config: Any, layer: Layer) -> Iterator[Change]:
    if not isinstance(config, TrainConfig | SftConfig) or config.eval_steps <= 0 or config.data.eval_rows != 0:
        return
    if "eval_steps" not in layer.given:
        yield "eval_steps", 0, "data.eval_rows=0"
    elif "data.eval_rows" not in layer.given:
        yield "data.eval_rows", None, f"eval_steps={config.eval_steps}"


def _sampler(config: Any, layer: Layer) -> Iterator[Change]:
    """Interpreter and server belong to the kind of sampler that they are for."""
    sampler = getattr(config, "sampler", None)
    if sampler is None or "sampler.kind" not in layer.now:
        return
    for name, kind in (("python", "vllm"), ("url", "vllm-server")):
        if sampler.kind != kind and getattr(sampler, name) is not None and f"sampler.{name}" not in layer.now:
            yield f"sampler.{name}", None, f"sampler.kind={sampler.kind}"


def _moments(config: Any, layer: Layer) -> Iterator[Change]:
    """bfloat16 moments are moments on the host."""
    memory = getattr(config, "memory", None)
    if memory is None or memory.moments != "bfloat16" or memory.optimizer != "device":
        return
    if "memory.optimizer" not in layer.given:
        yield "memory.optimizer", "host", "memory.moments=bfloat16"
    elif "memory.moments" not in layer.given:
        yield "memory.moments", "float32", "memory.optimizer=device"


def _policy(config: Any, layer: Layer) -> Iterator[Change]:
    """The native sampler reads the policy's weights on the GPU."""
    if not isinstance(config, TrainConfig) or config.memory.policy == "device" or config.sampler.kind != "native":
        return
    if "memory.policy" not in layer.given:
        yield "memory.policy", "device", "sampler.kind=native"


def _own_reward(config: Any, layer: Layer) -> Iterator[Change]:
    """Options and the file's hash belong to the function."""
    reward, old = getattr(config, "reward", None), getattr(layer.base, "reward", None)
    if reward is None or old is None or old.fn is None or reward.fn == old.fn or "reward.fn" not in layer.now:
        return
    if reward.fn_sha256 is not None and "reward.fn_sha256" not in layer.now:
        yield "reward.fn_sha256", None, f"reward.fn={reward.fn}"
    if reward.options and not any(name.startswith("reward.options") for name in layer.now):
        yield "reward.options", {}, f"reward.fn={reward.fn}"


def _redraws(config: Any, layer: Layer) -> Iterator[Change]:
    if not isinstance(config, GenerateConfig) or "redraws" in layer.given:
        return
    if config.temperature == 0 and config.redraws > 0:
        yield "redraws", 0, "temperature=0"


def _packing(config: Any, layer: Layer) -> Iterator[Change]:
    if not isinstance(config, SftConfig) or config.packing or config.packed_length == SftConfig.packed_length:
        return
    if "packing" not in layer.given:
        yield "packing", True, f"packed_length={config.packed_length}"
    elif "packed_length" not in layer.now:
        yield "packed_length", SftConfig.packed_length, "packing=False"


_RULES: tuple[Callable[[Any, Layer], Iterator[Change]], ...] = (
    _micro_batch,
    _pass_tokens,
    _planned_memory,
    _held_out_rows,
    _evaluation,
    _sampler,
    _moments,
    _policy,
    _own_reward,
    _redraws,
    _packing,
)


def _with(config: Any, name: str, value: object) -> Any:
    """A configuration with another value of a field, which may be in a section."""
    first, _, rest = name.partition(".")
    return dataclasses.replace(config, **{first: _with(getattr(config, first), rest, value) if rest else value})


def _plain(value: object) -> object:
    """A value as a file has it: lists for tuples."""
    return list(value) if isinstance(value, tuple) else value
