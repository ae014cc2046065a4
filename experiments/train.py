"""Train one run, or with --multirun the runs of a study.

    python -m experiments.train norm=group data=digits batch_size=16
    python -m experiments.train parallel=shard_map sync=local
    python -m experiments.train --multirun study=norms

`--cfg job` prints the configuration, `--help` the choices. A run whose result is there already
is not trained again.
"""

import os
import sys
import time
from typing import NoReturn

import hydra
import numpy as np
from hydra.errors import HydraException
from omegaconf import DictConfig

from experiments import hosts
from experiments.config import Config, register_schemas
from experiments.data.loading import load
from experiments.progress import display
from experiments.runs import is_finished, run_directory, write_config, write_result
from experiments.study import CONFIG_DIR, CONFIG_NAME, explain, to_config
from experiments.training import train


def run(config: Config) -> None:
    """Train all seeds of one configuration and write what came out, unless it is there.

    Of several processes, the first one writes.
    """
    directory = run_directory(config)
    hosts.check_alike(directory.name)
    if hosts.as_the_first(is_finished(directory)):
        display.end_run(directory.name, f"already done, see {directory}")
        return
    dataset = load(config.data.name, config.data.directory)
    if hosts.is_first():
        write_config(directory, config)
    title = f"{config.norm.name}, batch size {config.batch_size}"
    display.start_run(directory.name, title, config.seeds * config.epochs)
    start = time.perf_counter()
    histories = train(config, dataset, display.on_epoch)
    seconds = time.perf_counter() - start
    if hosts.is_first():
        write_result(directory, histories, seconds)
    accuracy = np.mean([history[-1].test_accuracy for history in histories])
    display.end_run(
        directory.name,
        f"test accuracy {accuracy:.1%} in {seconds:.1f} s",
    )


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name=CONFIG_NAME)
def _job(composed: DictConfig) -> None:
    run(to_config(composed))


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
    message = "interrupted; the same command goes on with the runs that are not finished"
    print(message, file=sys.stderr, flush=True)
    os._exit(130)  # as shells tell SIGINT


if __name__ == "__main__":
    main()
