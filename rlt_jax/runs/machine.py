"""Settings that follow the machine, decided once at the start of a command.

What the run records (config.yaml, the settings of a partial file, the plan) and what its samplers are told are the
decided values: a run that is resumed on another kind of machine differs in a setting, and does not change in silence.
"""

from dataclasses import replace
from typing import TypeVar

from rlt_jax.configs import EvaluateConfig, GenerateConfig, SftConfig, TrainConfig
from rlt_jax.configs.dtype import dtype_on
from rlt_jax.device.jax_setup import computes_on

Config = TypeVar("Config", TrainConfig, SftConfig, GenerateConfig, EvaluateConfig)


def on_this_machine(config: Config) -> Config:
    """The configuration with the dtype that this machine computes with (see `dtype_on`)."""
    if config.dtype != "auto":
        return config
    return replace(config, dtype=dtype_on(computes_on(), config.dtype))
