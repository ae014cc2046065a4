"""TEMP"""
from typing import Any, ClassVar
from flax import linen as nn
class CNN(nn.Module):
    channels: list[int]
    norm: Any
    num_classes: int
    dtype: Any
    takes_lengths: ClassVar[bool] = False
    cpu_steps_per_call: ClassVar[int] = 1
    def problems(self, shape): yield from ()
    @nn.compact
    def __call__(self, x, lengths=None, mask=None, *, train):
        for layer, channels in enumerate(self.channels):
            x = nn.Conv(channels, (3, 3), 1 if layer == 0 else 2, use_bias=not self.norm.adds_bias, kernel_init=nn.initializers.he_normal())(x)
            x = self.norm(name=f"norm_{layer}")(x, mask, train=train)
            x = nn.relu(x)
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))
