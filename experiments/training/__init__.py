"""Training: optimizers, training steps on devices, the training loop, and checkpoints."""
