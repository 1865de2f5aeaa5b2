"""Reinforcement-Learned Teachers in JAX/Flax: a teacher learns by GRPO to write explanations a student learns from.

from rlt_jax import PRESETS
from rlt_jax.train import train

train(replace(PRESETS["tiny"], output_dir="runs/mine"), reward_fn=my_reward)
"""

import sys

if sys.argv[:1] == ["-m"] and any(word.startswith("rlt_jax.") for word in sys.orig_argv[1:4]):
    import _signal  # built in: `signal` takes a millisecond, in which Ctrl-C would show a traceback of an import

    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # until `stops` handles it

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlt_jax.configs import PRESETS, RewardConfig, TrainConfig
    from rlt_jax.rewards.rlt import RewardInputs, Rewards, reads, rlt_reward

from rlt_jax.stops import install_for_command

install_for_command()

__version__ = "0.1.0"

__all__ = ["PRESETS", "RewardConfig", "RewardInputs", "Rewards", "TrainConfig", "__version__", "reads", "rlt_reward"]

_HOMES = {  # name -> its module, which is imported when the name is first asked for: `import rlt_jax` stays quick
    "PRESETS": "rlt_jax.configs",
    "TrainConfig": "rlt_jax.configs",
    "RewardConfig": "rlt_jax.configs",
    "RewardInputs": "rlt_jax.rewards.rlt",
    "Rewards": "rlt_jax.rewards.rlt",
    "reads": "rlt_jax.rewards.rlt",
    "rlt_reward": "rlt_jax.rewards.rlt",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
