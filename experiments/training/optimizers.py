"""The optimizer and its learning rate, from the configuration."""

import optax

from experiments.config import SGD, Adam, OptimizerConfig


def make_optimizer(
    config: OptimizerConfig, *, batch_size: int, total_steps: int
) -> optax.GradientTransformation:
    """Return the optimizer, with a linear warmup and a cosine decay to 0.

    The peak is proportional to the batch size (Goyal et al. 2017; Wu & He 2018).
    """
    peak = config.learning_rate * batch_size / 32
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=peak,
        warmup_steps=round(config.warmup * total_steps),
        decay_steps=total_steps,
    )
    match config:
        case SGD():
            return optax.sgd(schedule, momentum=config.momentum, nesterov=True)
        case Adam():
            return optax.adam(schedule, b1=config.b1, b2=config.b2)
        case _:
            raise TypeError(f"no optimizer for {config!r}")
