"""Training: the optimizer, the step on the devices, the loop, checkpoints."""
