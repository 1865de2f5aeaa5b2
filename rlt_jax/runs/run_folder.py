"""The run folder on its disk: what a killed process left in it, whether it has room, whether it is still there."""

import errno
import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlt_jax.checkpoints.store import checkpoint_steps, damaged_checkpoints
from rlt_jax.configs import Resume, SftConfig, TrainConfig
from rlt_jax.device.placement import nbytes
from rlt_jax.errors import UserError
from rlt_jax.models import check_replaceable, recover_model
from rlt_jax.report.folder import writing_to
from rlt_jax.report.log import LOG_FILE
from rlt_jax.report.owner import FOLDER_LOCK
from rlt_jax.report.writer import COMPLETIONS_FILE, METRICS_FILE
from rlt_jax.runs.evaluation import EVAL_FILE
from rlt_jax.runs.resume import CHANGES_FILE
from rlt_jax.types import GB

EXPORT = "final"  # the exported model

Tree = Any  # nested arrays, or their shapes

log = logging.getLogger("rlt_jax")


def check_run_folder(folder: Path, *, resume: Resume) -> bool:
    """Whether the run folder has a checkpoint to resume from.

    Raises:
      UserError: it cannot be read; `resume="must"` and it holds no checkpoint; `resume="never"` and it holds anything
        but logs; all that it holds are damaged ones that were set aside.
    """
    checkpoints = folder / "checkpoints"
    try:
        has_checkpoint, damaged = bool(checkpoint_steps(checkpoints)), damaged_checkpoints(checkpoints)
        held = {child.name for child in folder.iterdir()} if folder.is_dir() else set()
    except OSError as error:
        raise UserError(f"--output-dir {folder} cannot be used ({error.strerror}): choose another folder") from None
    if resume == "must" and not has_checkpoint:
        raise UserError(f"--resume must: no checkpoint under {checkpoints}: start without it, or check --output-dir")
    if resume == "never" and held - {"logs", FOLDER_LOCK}:
        raise UserError(f"--resume never: {folder} is not empty: choose another --output-dir, or delete it")
    if resume == "auto" and not has_checkpoint and damaged:
        raise UserError(
            f"{checkpoints} holds no whole checkpoint, but damaged ones ({', '.join(damaged)}): put a whole one back "
            "from a copy, or choose another --output-dir to start over"
        )
    if resume == "auto" and not has_checkpoint and METRICS_FILE in held:
        log.warning("%s holds a run without a checkpoint: starting over, its metrics are replaced", folder)
    return has_checkpoint


def check_files(folder: Path) -> None:
    """Refuse a run folder in which something stands where a file belongs, before any of its files is changed."""
    with writing_to(folder):
        for file in (folder / name for name in (METRICS_FILE, COMPLETIONS_FILE, EVAL_FILE, CHANGES_FILE, LOG_FILE)):
            if file.exists():
                file.open("rb").close()
        if (folder / "logs").exists() and not (folder / "logs").is_dir():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def recover_export(folder: Path) -> None:
    """Tidy up after processes that were killed while they exported; the folder is ours alone."""
    recover_model(folder / EXPORT)


def check_export(folder: Path) -> None:
    """Refuse, before the first step, a place for the exported model that saving would refuse after the last.

    Raises:
      UserError: RUN/final is a file, or holds anything but a model.
    """
    check_replaceable(folder / EXPORT)


def warn_of_room(config: TrainConfig | SftConfig, folder: Path, *, state: Tree, params: Tree) -> None:
    """Warn if the disk has less room than a run will write.

    Args:
      state: arrays of a checkpoint, or their shapes.
      params: of the exported model.
    """
    checkpoint = config.checkpoint
    writes = checkpoint.at_end or config.save_steps > 0
    keep = checkpoint.keep + (checkpoint.keep_best is not None) if writes else 0
    state_bytes, export_bytes = nbytes(state), nbytes(params) if checkpoint.export else 0
    checkpoints = (keep + 1) * state_bytes if keep else 0  # one more while it is written
    needed = max(0, checkpoints - _size(folder / "checkpoints")) + export_bytes
    with suppress(OSError):
        free = shutil.disk_usage(folder).free
        if free < needed:
            log.warning(
                "%s: %.2f GB free, but the run will write about %.2f GB more (%s): make room before it gets there, or "
                "lower --checkpoint.keep; when the disk is full the run stops, and resumes once there is room",
                folder,
                free / GB,
                needed / GB,
                ", ".join(
                    [f"{keep + 1} checkpoints of {state_bytes / GB:.2f} GB"] * bool(keep)
                    + [f"the exported model of {export_bytes / GB:.2f} GB"] * bool(export_bytes)
                ),
            )


def _size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


class FolderWatch:
    """Sees whether a path is still the folder that it was, and can be written.

    A run that goes on writing into a folder that was moved away, or makes a second one in its place, loses its work.
    """

    def __init__(self, folder: Path) -> None:
        """Raises OSError if there is none."""
        self._folder = folder
        # open: the number of a removed folder would be given to the next one
        self._was = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> "FolderWatch":
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._was)

    def check(self) -> None:
        """Refuse to go on if it is not.

        Raises:
          UserError: it was moved, removed or replaced, or can no longer be read or written.
        """
        again = "and repeat the command, which resumes from the last checkpoint in it"
        try:
            same = os.path.samestat(os.fstat(self._was), os.stat(self._folder))
        except FileNotFoundError:
            raise UserError(
                f"--output-dir {self._folder} is gone: it was moved or removed while the run was writing to it: put it "
                f"back {again}"
            ) from None
        except OSError as error:
            raise UserError(
                f"--output-dir {self._folder} can no longer be used ({error.strerror}): mend that {again}"
            ) from None
        if not same:
            raise UserError(
                f"--output-dir {self._folder} is another folder than when the run began: it was replaced, or something "
                f"was mounted over it: put the old one back {again}"
            )
        if not os.access(self._folder, os.W_OK):
            raise UserError(
                f"--output-dir {self._folder} can no longer be written (read-only file system, or permission denied): "
                f"make it writable {again}"
            )
