"""Stand-ins for runs, which worker processes import; and a sweep of them as a program of its own.

A configuration is a dictionary with `name`, and of what is to happen `steps`, `fail`, `die` (how
many times the process ends under it), `files` (a directory for traces) and `beside` (another run,
which has to begin before this one ends).
"""

import os
import signal
import sys
import time
from pathlib import Path

from waiting import until

from experiments.launch import local
from experiments.launch.jobs import Job
from experiments.launch.progress import display
from experiments.training.watch import RunEnded, RunStarted, Update


def run(configs, watch):
    for config in configs:
        watch(RunStarted(config["name"], 1))
        trace(config, "begun")
        if config.get("fail") or (config.get("fail_together") and len(configs) > 1):
            raise ValueError("a bug\nin two lines")
        for step in range(config.get("steps", 0)):
            watch(Update(config["name"], 0, step, config["steps"], 1.0, None))
        if "beside" in config:
            other = {**config, "name": config["beside"]}
            until(lambda other=other: traces(other, "begun"), f"run {other['name']}")
        if 0 < len(traces(config, "begun")) <= config.get("die", 0):
            os.kill(os.getpid(), signal.SIGKILL)
        trace(config, "ended")
        watch(RunEnded(config["name"], f"on core {cores()} after {os.getpid()}"))


def cores():
    return ",".join(map(str, sorted(os.sched_getaffinity(0))))


def trace(config, what):
    if "files" in config:
        number = len(list(Path(config["files"]).iterdir()))
        name = f"{number:03}-{config['name']}-{what}-{os.getpid()}-{time.monotonic_ns()}"
        Path(config["files"], name).touch()


def traces(config, what):
    if "files" not in config:
        return []
    found = (path.name.split("-") for path in Path(config["files"]).iterdir())
    return [parts for parts in found if parts[1] == config["name"] and parts[2] == what]


def main(files, where="here"):
    """Start runs that end when there is a trace of one named go."""
    # A shell that started the tests in the background would have it ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    jobs = [Job(name, "p", {"name": name, "beside": "go", "files": files}) for name in "abc"]
    display.start_study("sweep", len(jobs))
    try:
        if where == "ray":
            from experiments.launch import cluster

            failures = cluster.launch(
                jobs, run, display.show, {}, {"num_cpus": 1, "max_retries": 3}
            )
        else:
            failures = local.launch(jobs, run, display.show, 2)
        print("failures:", failures)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(130)


if __name__ == "__main__":
    import launch_jobs  # by whose name the workers find the functions

    launch_jobs.main(*sys.argv[1:])
