"""Train one run, or with --multirun the runs of a study.

    python -m experiments.train norm=group data=digits batch_size=16
    python -m experiments.train parallel=shard_map sync=local
    python -m experiments.train --multirun study=norms

`--cfg job` prints the configuration, and `--help` the choices. The same command again trains the
seeds that have no result, from their newest checkpoints on.
"""

import os
import sys
from typing import NoReturn

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from experiments.config import register_schemas
from experiments.errors import ConfigError
from experiments.launch.progress import display
from experiments.launch.run import run
from experiments.launch.study import CONFIG_DIR, CONFIG_NAME, explain, to_config
from experiments.training import hosts


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name=CONFIG_NAME)
def _job(composed: DictConfig) -> None:
    try:
        run([to_config(composed)], display.show)
    except ConfigError as error:
        if hosts.is_distributed():
            raise
        sys.exit(explain(error))  # for other errors Hydra also prints the overrides


def main() -> None:
    """Run the command line. An error ends in a message and an exit code."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting
    register_schemas()
    try:
        _job()
    except HydraException as error:
        sys.exit(explain(error))
    except KeyboardInterrupt:
        _exit_interrupted()
    except Exception as error:
        hosts.end_all(error)
    finally:
        display.stop()


def _exit_interrupted() -> NoReturn:
    """Exit immediately, because XLA crashes if the interpreter shuts down during a compilation."""
    display.stop()
    message = "interrupted; the same command continues from the newest checkpoints"
    print(message, file=sys.stderr, flush=True)
    os._exit(130)  # the exit code of shells for SIGINT


if __name__ == "__main__":
    main()
