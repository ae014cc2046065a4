"""What the process has loaded of which the worker processes are copies."""

from experiments.launch import run
from experiments.runs.code import read_training_code

read_training_code()

__all__ = ["run"]
