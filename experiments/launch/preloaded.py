"""Reads the code of training in the process of which the workers are copies."""

from experiments.runs.code import read_training_code

read_training_code()
