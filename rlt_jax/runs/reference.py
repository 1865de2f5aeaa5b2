"""The reference of an RLT run, if it has one: is it used, is it in the checkpoint, and its loading.

Without a KL term in the loss (beta 0), and with a reward whose teacher it is not, nothing reads a reference. Then none
is loaded, saved or fingerprinted.
"""

import logging
from dataclasses import asdict
from pathlib import Path

from rlt_jax.checkpoints.manifest import Damaged, read_manifest
from rlt_jax.checkpoints.store import checkpoint_steps
from rlt_jax.configs import TrainConfig
from rlt_jax.configs.dtype import decided_dtype
from rlt_jax.configs.schema import RefConfig
from rlt_jax.errors import UserError
from rlt_jax.models import Model, Params, load_model
from rlt_jax.rewards.rlt import Reads
from rlt_jax.runs.setup import place_frozen

_IN_CHECKPOINT = "[1]"  # how the names of its arrays begin: a run's state is (policy with optimizer, reference)

log = logging.getLogger("rlt_jax")


def check_reference(config: TrainConfig, run_dir: Path, *, used: bool, reads: Reads) -> None:
    """Name settings that have no effect without a reference, and refuse to resume without the one that is needed.

    Args:
      used: whether the run has a reference.
      reads: the models that the reward reads.
    Raises:
      UserError: the run so far had no reference.
    """
    if unused := unused_settings(config, used=used, reads=reads):
        log.warning("no effect, as nothing reads a reference: %s", ", ".join(unused))
    if used and _saved_without(run_dir):
        cause = f"loss.beta={config.loss.beta:g}" if config.loss.beta > 0 else "the reward's teacher is the reference"
        raise UserError(
            f"{run_dir}: expected a checkpoint with a reference ({cause}), but the run so far had none, so that the "
            "reference that it would have by now is not known: resume with the settings that it had (--loss.beta 0), "
            "or start a run with another --output-dir, whose --teacher, and so its reference, may be this one's model"
        )


def unused_settings(config: TrainConfig, *, used: bool, reads: Reads) -> list[str]:
    """Settings of a reference, other than the defaults, that have no effect. To keep it as loaded is none of them."""
    found = []
    if config.reward.use_reference_teacher_model and "teacher" not in reads:
        found.append("reward.use_reference_teacher_model (the reward does not read the teacher's log-probs)")
    if used:
        return found
    if config.reference is not None:
        found.append(f"reference={config.reference}")
    if config.ref.sync_ref_model:
        defaults, values = asdict(RefConfig()), asdict(config.ref)
        found += [f"ref.{name}={value}" for name, value in values.items() if value != defaults[name]]
    return found


def _saved_without(run_dir: Path) -> bool:
    """Whether the newest checkpoint of a run is whole, and without a reference."""
    folder = run_dir / "checkpoints"
    for step in reversed(checkpoint_steps(folder)):
        try:
            manifest = read_manifest(folder / str(step))
        except Damaged:  # an older one may be whole
            continue
        return not any(array.name.startswith(_IN_CHECKPOINT) for array in manifest.arrays)
    return False


def load_reference(config: TrainConfig, teacher: Model, params: Params) -> Params:
    """Load the parameters of the reference, which the teacher's model runs with and the teacher's are mixed into.

    Args:
      params: the teacher's, as loaded. The reference gets its own arrays, as the policy's are donated.
    Raises:
      UserError: its architecture is not the teacher's, or it cannot be loaded.
    """
    if config.reference_model == config.teacher:
        return place_frozen(config, params, copy=True)
    model, reference_params = load_model(config.reference_model, dtype=decided_dtype(config.dtype))
    expected, found = asdict(teacher.config), asdict(model.config)
    # Neither shapes nor computation depend on these.
    ignored = {"max_position_embeddings", "initializer_range", "source"}
    different = [
        f"{name}={found[name]} (teacher: {expected[name]})"
        for name in expected
        if name not in ignored and found[name] != expected[name]
    ]
    if different:
        raise UserError(
            f"--reference {config.reference}: expected the teacher's architecture, but it has "
            f"{', '.join(different)}: give a model with the teacher's, or leave out the flag to use the teacher itself"
        )
    return place_frozen(config, reference_params)
