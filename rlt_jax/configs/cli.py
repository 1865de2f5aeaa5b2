"""The command line: every field of a configuration is a flag, over the defaults of a preset or a file.

A mistake ends in a `UserError` (values) or in tyro's own message and exit code 2 (spelling, types), never a traceback.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Generic, TypeVar

import tyro

from rlt_jax.configs.files import config_yaml, load_settings
from rlt_jax.configs.presets import PRESETS, SUMMARIES, load_config, unknown_preset
from rlt_jax.configs.train import TrainConfig, check_config
from rlt_jax.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")
Line = TypeVar("Line", bound="_CommandLine[TrainConfig]")


@dataclass(frozen=True, kw_only=True)
class _CommandLine(Generic[Config]):
    config: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """YAML file with the defaults of all flags below, as --print-config prints it."""
    print_config: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the resolved configuration as YAML and exit."""
    settings: Annotated[Config, tyro.conf.arg(name="")]  # no name: its flags have no prefix


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What `rlt_jax.plan` can be told besides the run itself."""

    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object instead of tables."""
    compile: bool = True
    """Where there is an NVIDIA GPU: compile the run's programs for it and take their temporaries, instead of formulas,
    which takes minutes the first time."""


@dataclass(frozen=True, kw_only=True)
class _PlanLine(_CommandLine[TrainConfig]):
    options: Annotated[PlanOptions, tyro.conf.arg(name="")] = PlanOptions()
    """The plan itself."""


def parse_train_args(argv: Sequence[str]) -> tuple[TrainConfig, bool]:
    """The training run that a command line asks for, checked, and whether to print it instead of running it.

    Defaults come from `--config FILE` or from `--preset NAME` (else tiny); every other flag replaces one value.

    Args:
      argv: arguments without the program's name.
    Raises:
      UserError: unknown preset, unusable file, inconsistent values.
      SystemExit: code 2 with a message for an unknown flag or a value of the wrong type, 0 after `--help`.
    """
    line = _parse_run(
        _CommandLine[TrainConfig],
        argv,
        command="train",
        description="Train a teacher with GRPO on the RLT reward (arXiv 2506.08388).",
    )
    return line.settings, line.print_config


def parse_plan_args(argv: Sequence[str]) -> tuple[TrainConfig, bool, PlanOptions]:
    """`parse_train_args` for `rlt_jax.plan`, whose flags are those of training and `PlanOptions`; raises the same."""
    line = _parse_run(
        _PlanLine,
        argv,
        command="plan",
        description="Say what a training run needs of GPU and host, whether it fits, and what to lower where it does "
        "not, before anything is downloaded. Every flag of python -m rlt_jax.train. Exit code: 0 it fits, 1 it does "
        "not, 2 a mistake.",
    )
    return line.settings, line.print_config, line.options


def parse_command(
    config_class: type[Config], argv: Sequence[str], *, command: str, description: str
) -> tuple[Config, bool]:
    """The same front for a command without presets: its configuration, and whether to print it instead of running it.

    Values are not checked against each other; that is the command's part.

    Args:
      config_class: a frozen dataclass; its fields are the flags, fields without a default are required.
      argv: arguments without the program's name.
      command: its name, such as `score`.
      description: what it does, the first lines of `--help`.
    Raises:
      UserError: unusable `--config` file.
      SystemExit: code 2 with a message for an unknown or missing flag or a value of the wrong type, 0 after `--help`.
    """
    _, file = _defaults_from(argv)
    default = None if file is None else load_settings(file, config_class)
    return _parse(config_class, argv, command=command, description=description, default=default)


def run_or_print(config: Config, print_config: bool, *, run: Callable[[Config], object]) -> None:
    """What a command does with its parsed line: print the configuration under --print-config, else run."""
    if print_config:
        print(config_yaml(config), end="")
    else:
        run(config)


def _parse_run(line_class: type[Line], argv: Sequence[str], *, command: str, description: str) -> Line:
    """A command line about a training run, over the defaults of --preset or --config; the run is checked."""
    preset, file = _defaults_from(argv)
    if preset is not None and file is not None:
        raise UserError(f"--preset {preset} and --config {file}: give one, a file names the preset it starts from")
    if preset is not None and preset not in PRESETS:
        raise UserError(unknown_preset(preset))
    default = PRESETS["tiny"] if preset is None else PRESETS[preset]  # type: ignore[index]  # known since the line above
    if file is not None:
        default = load_config(file)
    presets = "\n".join(f"  {name}: {summary}" for name, summary in SUMMARIES.items())
    line = tyro.cli(
        line_class,
        args=list(argv),
        prog=_prog(command),
        description=f"{description} The defaults shown are those of --preset or --config.\n\nPresets:\n{presets}",
        default=line_class(settings=default),
    )
    check_config(line.settings)
    return line


def _prog(command: str) -> str:
    """The command as the user typed it."""
    console_command = f"rlt-{command}"
    return console_command if Path(sys.argv[0]).name == console_command else f"python -m rlt_jax.{command}"


def _defaults_from(argv: Sequence[str]) -> tuple[str | None, str | None]:
    """The values of --preset and --config, which must be known before tyro runs; all else is left to tyro."""
    front = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    front.add_argument("--preset", nargs="?")  # without a value: tyro says what is missing
    front.add_argument("--config", nargs="?")
    known, _ = front.parse_known_args(list(argv))
    return known.preset, known.config


def _parse(
    config_class: type[Config], argv: Sequence[str], *, command: str, description: str, default: Config | None
) -> tuple[Config, bool]:
    line_class = _CommandLine[config_class]  # type: ignore[valid-type]  # the class is known only at run time
    no_default = tyro.MISSING_NONPROP  # then the class's own defaults hold, and the rest is required
    line = tyro.cli(
        line_class,
        args=list(argv),
        prog=_prog(command),
        description=description,
        default=no_default if default is None else _CommandLine(settings=default),
    )
    return line.settings, line.print_config
