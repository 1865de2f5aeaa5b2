"""What cannot be read: damaged, or whole behind something that can be fixed."""

import errno
import os

import pytest

from rlt_jax.checkpoints.manifest import Damaged, unreadable
from rlt_jax.errors import UserError


@pytest.mark.parametrize("code", [errno.EIO, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG])
def test_a_file_that_is_broken_is_damaged(tmp_path, code):
    error = unreadable(tmp_path, OSError(code, os.strerror(code), str(tmp_path / "arrays" / "x")))
    assert isinstance(error, Damaged) and str(error) == f"arrays/x: {os.strerror(code)}"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EMFILE, errno.ESTALE, errno.ETIMEDOUT])
def test_a_file_that_may_be_whole_is_no_reason_to_set_a_checkpoint_aside(tmp_path, code):
    error = unreadable(tmp_path, OSError(code, os.strerror(code), str(tmp_path / "arrays" / "x")))
    assert isinstance(error, UserError)
    assert str(error) == (
        f"{tmp_path}: expected a checkpoint that can be read, but arrays/x: {os.strerror(code)}: fix that, and repeat"
    )
