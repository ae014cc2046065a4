"""Train one run, or with --multirun the runs of a study.

    python -m experiments.train norm=group data=digits batch_size=16
    python -m experiments.train parallel=shard_map sync=local
    python -m experiments.train --multirun study=norms

`--cfg job` prints the configuration, `--help` the choices. The same command again trains what is
missing: seeds that have no result, from their newest checkpoint on.
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
        if hosts.are_several():
            raise
        sys.exit(explain(error))  # of any other error Hydra prints the overrides too


def main() -> None:
    """Run the command line. What is wrong with it ends in a message and an exit code."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, instead of printing and exiting
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
    """Exit at once: XLA crashes when the interpreter takes it apart amid a compilation."""
    display.stop()
    message = "interrupted; the same command goes on from the newest checkpoints"
    print(message, file=sys.stderr, flush=True)
    os._exit(130)  # as shells tell SIGINT


if __name__ == "__main__":
    main()
