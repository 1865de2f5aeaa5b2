"""Run configurations: frozen dataclasses, presets, the command line and YAML files. Imports no JAX."""

from rlt_jax.configs.ablate import AblateConfig
from rlt_jax.configs.cli import (
    PlanOptions,
    command_again,
    parse_command,
    parse_plan_args,
    parse_train_args,
    run_or_print,
)
from rlt_jax.configs.evaluate import EvaluateConfig, QuestionsConfig, check_evaluate_config
from rlt_jax.configs.files import config_yaml, load_settings, save_config
from rlt_jax.configs.generate import GenerateConfig, RowsConfig, check_generate_config
from rlt_jax.configs.loss import AdvantagesConfig, LossConfig
from rlt_jax.configs.numbers import AlarmsConfig, ChecksConfig
from rlt_jax.configs.pipeline import (
    STAGES,
    PipelineConfig,
    PipelineData,
    PipelineStudy,
    Stage,
    check_pipeline_config,
    load_study,
)
from rlt_jax.configs.presets import PRESETS, load_config
from rlt_jax.configs.reward import RewardConfig
from rlt_jax.configs.schema import (
    CheckpointConfig,
    DataConfig,
    LogConfig,
    MemoryConfig,
    OptimizerConfig,
    RefConfig,
    Resume,
    SamplerConfig,
)
from rlt_jax.configs.score import ScoreConfig, check_score_config
from rlt_jax.configs.sft import SftConfig, check_sft_config
from rlt_jax.configs.sft_defaults import Schedule, describe_schedule, schedule_of
from rlt_jax.configs.train import PresetName, TrainConfig, check_config

__all__ = [
    "PRESETS",
    "STAGES",
    "AblateConfig",
    "AdvantagesConfig",
    "AlarmsConfig",
    "CheckpointConfig",
    "ChecksConfig",
    "DataConfig",
    "EvaluateConfig",
    "GenerateConfig",
    "LogConfig",
    "LossConfig",
    "MemoryConfig",
    "OptimizerConfig",
    "PipelineConfig",
    "PipelineData",
    "PipelineStudy",
    "PlanOptions",
    "PresetName",
    "QuestionsConfig",
    "RefConfig",
    "Resume",
    "RewardConfig",
    "RowsConfig",
    "SamplerConfig",
    "Schedule",
    "ScoreConfig",
    "SftConfig",
    "Stage",
    "TrainConfig",
    "check_config",
    "check_evaluate_config",
    "check_generate_config",
    "check_pipeline_config",
    "check_score_config",
    "check_sft_config",
    "command_again",
    "config_yaml",
    "describe_schedule",
    "load_config",
    "load_settings",
    "load_study",
    "parse_command",
    "parse_plan_args",
    "parse_train_args",
    "run_or_print",
    "save_config",
    "schedule_of",
]
