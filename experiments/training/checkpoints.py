"""Checkpoints of a seed in training. Orbax writes them atomically."""

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from experiments.errors import ConfigError

FINAL = "final"
ROOM = 1_000_000  # bytes besides the arrays; if orbax fails inside a save, it fills the terminal
log = logging.getLogger(__name__)


class Checkpoints:
    """The newest checkpoints of one seed, identified by their step."""

    def __init__(self, directory: Path, keep: int) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._directory = directory.absolute()
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, step: int, state: Any) -> None:
        """Write a checkpoint, then remove the oldest ones beyond the limit."""
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        if shutil.disk_usage(self._directory).free < size + ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._directory))
        self._manager.save(step, args=ocp.args.StandardSave(state), force=True)

    def restore(self, step: int, like: Any) -> Any | None:
        """Return the state of a checkpoint with the structure of `like`; None if it is damaged."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except Exception as error:  # orbax raises no specific error for a truncated file
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            log.warning("checkpoint %s/%d is skipped: %s", self._directory, step, reason)
            return None

    def drop_after(self, step: int) -> None:
        """Remove later checkpoints that were skipped, because they will be written again."""
        for later in (other for other in self.steps() if other > step):
            self._manager.delete(later)

    def close(self) -> None:
        self._manager.close()


def save_final(directory: Path, variables: Any) -> None:
    """Write the variables that evaluation needs."""
    target = (directory / FINAL).absolute()
    shutil.rmtree(target, ignore_errors=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(target, variables)


def restore_final(directory: Path) -> Any:
    """Return the final {"params", "batch_stats"} of a seed as NumPy arrays."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore((directory / FINAL).absolute())


@contextlib.contextmanager
def full_disk_as_config_error(directory: Path) -> Iterator[None]:
    """Raise `ConfigError` if a write failed because the disk is full."""
    try:
        yield
    except Exception as error:  # TensorStore raises a ValueError with the message of the system
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(error) or "quota exceeded" in str(error):
            raise ConfigError(
                f"the disk is full: {directory} could not be written. Earlier results are kept; "
                "free space, and repeat the command to continue from there"
            ) from error
        raise
