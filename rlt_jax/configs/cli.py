"""The command line: every field of a configuration is a flag, with defaults from a preset or a file.

A mistake ends in a `UserError` (bad value) or in tyro's message and exit code 2 (bad spelling or type), never in a
traceback.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import tyro

from rlt_jax.configs.files import build, class_defaults, config_yaml, read_yaml
from rlt_jax.configs.following import Layer, for_rows, given_flags, given_keys, print_note, rows_note, settle
from rlt_jax.configs.presets import PRESETS, SUMMARIES, own_values, train_config, unknown_preset, unnamed_preset
from rlt_jax.configs.settings import Settings
from rlt_jax.configs.train import TrainConfig, check_config
from rlt_jax.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")
Line = TypeVar("Line", bound="_ChatLine[TrainConfig]")
Action = Literal["run", "print-config", "show-chat"]


@dataclass(frozen=True, kw_only=True)
class _CommandLine(Generic[Config]):
    config: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """YAML file with the defaults of the flags below, as printed by --print-config."""
    print_config: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the resolved configuration as YAML and exit."""
    settings: Annotated[Config, tyro.conf.arg(name="")]  # an empty name: flags without prefix

    @property
    def action(self) -> Action:
        """What the command is asked to do."""
        return "print-config" if self.print_config else "run"


@dataclass(frozen=True, kw_only=True)
class _ChatLine(_CommandLine[Config]):
    show_chat: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the chat of the first row, as text and as tokens, with what is counted marked, and exit."""

    @property
    def action(self) -> Action:
        """What the command is asked to do."""
        return "show-chat" if self.show_chat and not self.print_config else super().action


@dataclass(frozen=True, kw_only=True)
class PlanOptions(Settings):
    """Settings of `rlt_jax.plan` beyond those of the run."""

    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object instead of tables."""
    compile: bool = True
    """On an NVIDIA GPU, compile the run's programs and use the sizes of their temporaries instead of formulas; takes
    minutes the first time."""


@dataclass(frozen=True, kw_only=True)
class _PlanLine(_ChatLine[TrainConfig]):
    options: Annotated[PlanOptions, tyro.conf.arg(name="")] = PlanOptions()
    """Settings of the plan."""


def parse_train_args(argv: Sequence[str]) -> tuple[TrainConfig, Action]:
    """Parse and check the command line of `rlt_jax.train`.

    Defaults come from `--config FILE` or `--preset NAME` (else tiny); every other flag replaces one value. Another
    `--data.path` takes nothing else from the section `data` of a file or preset, and other untouched values follow the
    given ones (`following.py`); a line on stderr says so for each.

    Args:
      argv: arguments without the program's name.
    Returns:
      The run's settings, and what to do: train, or print them or the chats.
    Raises:
      UserError: an unknown preset, an unusable file, inconsistent values.
      SystemExit: code 2 with a message for an unknown flag or a value of the wrong type, 0 after `--help`.
    """
    line = _parse_run(
        _ChatLine[TrainConfig],
        argv,
        command="train",
        description="Train a teacher with GRPO on the RLT reward (arXiv 2506.08388).",
    )
    return line.settings, line.action


def parse_plan_args(argv: Sequence[str]) -> tuple[TrainConfig, Action, PlanOptions]:
    """Parse and check the command line of `rlt_jax.plan`: the flags of training, and those of `PlanOptions`.

    Returns:
      The run's settings, what to do, and the settings of the plan.
    Raises:
      UserError, SystemExit: as `parse_train_args`.
    """
    line = _parse_run(
        _PlanLine,
        argv,
        command="plan",
        description="Show how much GPU and host memory a training run needs, whether it fits, and what to lower if it "
        "does not, before anything is downloaded. Takes every flag of python -m rlt_jax.train. Exit code: 0 if it "
        "fits, 1 if not, 2 for a mistake.",
    )
    return line.settings, line.action, line.options


def parse_command(
    config_class: type[Config], argv: Sequence[str], *, command: str, description: str, shows_chat: bool = False
) -> tuple[Config, Action]:
    """Parse the command line of a command without presets. The command itself checks the values against each other.

    Args:
      config_class: a frozen dataclass; its fields are the flags, fields without a default are required.
      argv: arguments without the program's name.
      command: the command's name, such as `score`.
      description: what the command does, the first lines of `--help`.
      shows_chat: whether it has the flag --show-chat.
    Returns:
      The command's settings, and what to do.
    Raises:
      UserError: an unusable `--config` file.
      SystemExit: code 2 with a message for an unknown or missing flag or a value of the wrong type, 0 after `--help`.
    """
    front = _read_front(argv)
    generic: type[_CommandLine] = _ChatLine if shows_chat else _CommandLine
    line_class = generic[config_class]  # type: ignore[index]  # the class is known only at run time
    default: Any = tyro.MISSING_NONPROP  # then the class's own defaults apply, and fields without one are required
    base, in_file = None, frozenset[str]()
    notes: list[str] = []
    if front.file is not None:
        values = read_yaml(front.file)
        keys, in_file = given_keys(values), given_keys(values, class_defaults(config_class))
        base, followed = settle(build(config_class, values, source=front.file), Layer(given=keys, now=keys))
        base, dropped = _for_rows(base, front)
        default = generic(settings=base)
        notes = [*(f"{front.file}: {note}" for note in followed), *dropped(given_flags(argv, config_class))]
    line = tyro.cli(line_class, args=list(argv), prog=_program_name(command), description=description, default=default)
    return _settled(line.settings, argv, in_file=in_file, base=base, notes=notes), line.action


def command_again(command: str, argv: Sequence[str], *, resume: str) -> str:
    """The command line that resumes a run: the one that was given, but for `--resume never`, which would refuse it.

    Args:
      argv: arguments without the program's name.
      resume: the setting, wherever it comes from.
    """
    given = list(argv)
    if resume == "never":
        given = [
            word
            for before, word in zip(["", *given], given)
            if "--resume" not in (before, word) and not word.startswith("--resume=")
        ]
        given += ["--resume", "auto"]
    return shlex.join([*_program_name(command).split(), *given])


def run_or_print(
    config: Config,
    action: Action,
    *,
    run: Callable[[Config], object],
    show_chat: Callable[[Config], object] | None = None,
) -> None:
    """Print the configuration or the chats if the user asks for it, else run the command.

    Args:
      show_chat: for a command with the flag --show-chat.
    """
    if action == "print-config":
        print(config_yaml(config), end="")
    elif action == "show-chat":
        assert show_chat is not None  # else the command has no such flag
        show_chat(config)
    else:
        run(config)


def _parse_run(line_class: type[Line], argv: Sequence[str], *, command: str, description: str) -> Line:
    """Parse and check the settings of a training run, with defaults from --preset or --config."""
    front = _read_front(argv)
    preset, file = front.preset, front.file
    if preset is not None and file is not None:
        raise UserError(f"--preset {preset} and --config {file}: give only one; a file names the preset it starts from")
    if preset is not None and preset not in PRESETS:
        raise UserError(unknown_preset(preset))
    default = PRESETS["tiny"] if preset is None else PRESETS[preset]  # type: ignore[index]  # checked above
    named, in_file = preset is not None, frozenset[str]()
    notes: list[str] = []
    if file is not None:
        values = read_yaml(file)
        default, in_file = train_config(values, source=file, log=notes.append), own_values(values)
        named = "preset" in values
    default, dropped = _for_rows(default, front)
    presets = "\n".join(f"  {name}: {summary}" for name, summary in SUMMARIES.items())
    line = tyro.cli(
        line_class,
        args=list(argv),
        prog=_program_name(command),
        description=f"{description} The defaults shown are those of --preset or --config.\n\nPresets:\n{presets}",
        default=line_class(settings=default),
    )
    how = "--preset NAME" if file is None else "a line `preset: NAME` in the file"
    if not named and (problem := unnamed_preset(line.settings, how=how)):
        raise UserError(problem)
    notes += dropped(given_flags(argv, TrainConfig))
    settings = _settled(line.settings, argv, in_file=in_file, base=default, notes=notes)
    check_config(settings)
    return replace(line, settings=settings)


def _for_rows(base: Config, front: "_Front") -> tuple[Config, Callable[[frozenset[str]], list[str]]]:
    """The defaults for the rows of --data.path, and a function of the given flags: the lines to log on what is left
    out.
    """
    data = getattr(base, "data", None)
    if front.path is None or not is_dataclass(data) or isinstance(data, type):
        return base, lambda given: []
    preset = PRESETS[base.preset].data if isinstance(base, TrainConfig) else None
    fresh, dropped = for_rows(data, front.path, preset=preset)
    old = front.file or f"the preset {front.preset or 'tiny'}"
    path = front.path
    return replace(base, data=fresh), lambda given: rows_note(path, old, dropped, given=given)  # type: ignore[call-arg]


def _settled(
    config: Config, argv: Sequence[str], *, in_file: frozenset[str], base: Config | None, notes: Sequence[str]
) -> Config:
    """The settings after tyro, in which untouched values follow; a line on stderr says so for each, after `notes`.

    Args:
      in_file: fields that the user's file sets itself.
      base: the defaults that flags changed; None: the class's own.
    """
    flags = given_flags(argv, type(config))
    config, followed = settle(config, Layer(given=flags | in_file, now=flags, base=base))
    for note in [*notes, *followed]:
        print_note(note)
    return config


def _program_name(command: str) -> str:
    """The command as the user typed it, for messages."""
    console_command = f"rlt-{command}"
    return console_command if Path(sys.argv[0]).name == console_command else f"python -m rlt_jax.{command}"


class _Front(NamedTuple):
    """Flags that decide the defaults of the others, so that they must be known before tyro parses the rest."""

    preset: str | None
    file: str | None  # --config
    path: str | None  # --data.path


def _read_front(argv: Sequence[str]) -> _Front:
    """Read the flags of `_Front`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?")  # if the value is missing, tyro says so
    parser.add_argument("--config", nargs="?")
    parser.add_argument("--data.path", nargs="?")
    known, _ = parser.parse_known_args(list(argv))
    return _Front(known.preset, known.config, vars(known)["data.path"])
