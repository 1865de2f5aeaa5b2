"""Run configurations: frozen dataclasses, presets, the command line and YAML files. Imports no JAX."""

from rlt_jax.configs.ablate import AblateConfig, changed_fields, study_runs
from rlt_jax.configs.check import check_config
from rlt_jax.configs.cli import PlanOptions, parse_command, parse_plan_args, parse_train_args, run_or_print
from rlt_jax.configs.drawing import deciding_settings
from rlt_jax.configs.evaluate import EvaluateConfig, QuestionsConfig, check_evaluate_config
from rlt_jax.configs.files import config_yaml, load_config, load_settings, save_config
from rlt_jax.configs.generate import GenerateConfig, RowsConfig, check_generate_config
from rlt_jax.configs.pipeline import (
    STAGES,
    PipelineData,
    PipelineStudy,
    Stage,
    Task,
    check_same_settings,
    check_same_task,
    explained_sources,
    load_study,
    pipeline_tasks,
    told_settings,
)
from rlt_jax.configs.presets import PRESETS
from rlt_jax.configs.schema import (
    CheckpointConfig,
    DataConfig,
    LogConfig,
    LossConfig,
    MemoryConfig,
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
    "STAGES",
    "AblateConfig",
    "CheckpointConfig",
    "DataConfig",
    "EvaluateConfig",
    "GenerateConfig",
    "LogConfig",
    "LossConfig",
    "MemoryConfig",
    "OptimizerConfig",
    "PipelineData",
    "PipelineStudy",
    "PlanOptions",
    "PresetName",
    "QuestionsConfig",
    "RefConfig",
    "RewardConfig",
    "RowsConfig",
    "SamplerConfig",
    "ScoreConfig",
    "SftConfig",
    "Stage",
    "Task",
    "TrainConfig",
    "changed_fields",
    "check_config",
    "check_evaluate_config",
    "check_generate_config",
    "check_same_settings",
    "check_same_task",
    "check_score_config",
    "check_sft_config",
    "config_yaml",
    "deciding_settings",
    "explained_sources",
    "load_config",
    "load_settings",
    "load_study",
    "parse_command",
    "parse_plan_args",
    "parse_train_args",
    "pipeline_tasks",
    "run_or_print",
    "save_config",
    "study_runs",
    "told_settings",
]
