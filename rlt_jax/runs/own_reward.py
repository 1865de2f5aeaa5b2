"""A run's own reward function: pinned to its file at the start of a command, and kept in the run folder.

RUN/config.yaml          reward.fn, reward.options, and the file's SHA-256 in reward.fn_sha256
RUN/reward/NAME.py       the file that the run uses
RUN/reward/NAME-HASH.py  one that it used before, where a change was accepted
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from rlt_jax.configs import GenerateConfig, PipelineStudy, RewardConfig, ScoreConfig, TrainConfig
from rlt_jax.configs.files import yaml_line
from rlt_jax.disk import replace_file
from rlt_jax.rewards.by_name import OwnReward, own_reward

FOLDER = "reward"

Config = TypeVar("Config", TrainConfig, GenerateConfig, ScoreConfig, PipelineStudy)


def pinned(config: Config) -> Config:
    """The settings with the SHA-256 of the reward function's file, so that no other is taken for it later.

    Raises:
      UserError: the function cannot be used (see `own_reward`).
    """
    own = own_reward(config.reward)
    return config if own is None else replace(config, reward=replace(config.reward, fn_sha256=own.sha256))


def unused_settings(reward: RewardConfig) -> list[str]:
    """Settings of the paper's reward, other than the defaults, that have no effect on a function without them."""
    used = {
        *("fn", "options", "fn_sha256"),
        *("unbias_teacher_log_probs", "unbias_student_log_probs_temp", "student_tokens"),  # how log-probs are computed
        "use_reference_teacher_model",
    }
    defaults, values = vars(RewardConfig()), vars(reward)
    return [f"reward.{name}" for name, value in values.items() if name not in used and value != defaults[name]]


def reward_lines(reward: RewardConfig) -> list[str]:
    """Lines for the start of a command on the user's own function; none for the paper's reward."""
    own = own_reward(reward)
    if own is None:
        return []
    options = f", options {yaml_line(reward.options)}" if reward.options else ""
    lines = [f"the reward is your function {reward.fn}{options} (SHA-256 of its file {own.sha256[:16]}...)"]
    if not own.reads_settings and (unused := unused_settings(reward)):
        lines.append(f"no effect, as it has no parameter `config: RewardConfig`: {', '.join(unused)}")
    return lines


def keep_copy(reward: RewardConfig, folder: Path) -> None:
    """Write the function's file, as it runs, into a run folder, beside those that the run used before.

    Raises:
      OSError: it cannot be written.
    """
    own = own_reward(reward)
    if own is None:
        return
    place = folder / FOLDER / own.file.name
    if place.is_file() and (before := place.read_bytes()) != own.source:
        replace_file(place.with_name(f"{place.stem}-{hashlib.sha256(before).hexdigest()[:8]}.py"), before)
    place.parent.mkdir(exist_ok=True)
    replace_file(place, own.source)


def kept_reward(reward: RewardConfig, folder: Path) -> OwnReward | None:
    """The function of a run: its file where it was, or else the copy in the run folder.

    Raises:
      UserError: neither has the SHA-256 that is recorded, or it cannot be used.
    """
    return own_reward(reward, copies=folder / FOLDER)
