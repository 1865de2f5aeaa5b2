"""Run configurations: frozen dataclasses, presets, the command line and YAML files. Imports no JAX."""

from rlt_jax.configs.check import check_config
from rlt_jax.configs.cli import parse_command, parse_train_args
from rlt_jax.configs.files import config_yaml, load_config, load_settings, save_config
from rlt_jax.configs.presets import PRESETS
from rlt_jax.configs.schema import (
    CheckpointConfig,
    DataConfig,
    LogConfig,
    LossConfig,
    OptimizerConfig,
    PresetName,
    RefConfig,
    RewardConfig,
    SamplerConfig,
    TrainConfig,
)
from rlt_jax.configs.score import ScoreConfig, check_score_config
from rlt_jax.configs.sft import SftConfig, check_sft_config

__all__ = [
    "PRESETS",
    "CheckpointConfig",
    "DataConfig",
    "LogConfig",
    "LossConfig",
    "OptimizerConfig",
    "PresetName",
    "RefConfig",
    "RewardConfig",
    "SamplerConfig",
    "ScoreConfig",
    "SftConfig",
    "TrainConfig",
    "check_config",
    "check_score_config",
    "check_sft_config",
    "config_yaml",
    "load_config",
    "load_settings",
    "parse_command",
    "parse_train_args",
    "save_config",
]
