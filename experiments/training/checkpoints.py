"""Checkpoints of a seed in training, with orbax: written as a whole or not at all."""

import contextlib
import errno
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from experiments.errors import ConfigError

FINAL = "final"
log = logging.getLogger(__name__)


class Checkpoints:
    """The newest checkpoints of one seed, numbered by their step."""

    def __init__(self, directory: Path, keep: int) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._directory = directory.absolute()
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints that were written to their end, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, step: int, state: Any) -> None:
        """Write a checkpoint, and then remove those that are too many."""
        self._manager.save(step, args=ocp.args.StandardSave(state), force=True)

    def restore(self, step: int, like: Any) -> Any | None:
        """Return the state of a checkpoint, as `like` in structure; None where it is damaged."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except Exception as error:  # orbax raises just that for a file cut short
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            log.warning("checkpoint %s/%d is passed over: %s", self._directory, step, reason)
            return None

    def drop_after(self, step: int) -> None:
        """Remove the checkpoints that were passed over, which will be written again."""
        for later in (other for other in self.steps() if other > step):
            self._manager.delete(later)

    def close(self) -> None:
        self._manager.close()


def save_final(directory: Path, variables: Any) -> None:
    """Write what a model needs for evaluation."""
    target = (directory / FINAL).absolute()
    shutil.rmtree(target, ignore_errors=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(target, variables)


def restore_final(directory: Path) -> Any:
    """Return the final parameters and statistics of a seed, {"params", "batch_stats"}, in NumPy."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore((directory / FINAL).absolute())


@contextlib.contextmanager
def telling_of_a_full_disk(directory: Path) -> Iterator[None]:
    """Raise `ConfigError` where something could not be written for want of room."""
    try:
        yield
    except Exception as error:  # TensorStore raises a ValueError with the system's words
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(error) or "quota exceeded" in str(error):
            raise ConfigError(
                f"the disk is full: {directory} could not be written. What was saved before is "
                "kept; make room, and the same command goes on from there"
            ) from error
        raise
