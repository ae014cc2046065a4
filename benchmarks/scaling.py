"""A cost model of synced batch normalization on many devices; docs/scaling.md explains it."""

from __future__ import annotations

from math import log2

from benchmarks.collectives import Collective, counted, described
from benchmarks.table import Table
from jaxnorm.distributed import GATHERED_BYTES

START = 10e-6  # seconds until a collective starts: launch and rendezvous
HOP = 1e-6  # seconds from one device to the next
BANDWIDTH = 50e9  # bytes per second into and out of a device
GROUP = 8  # the devices of one host
DEVICES = (8, 64, 512, 4096, 16384)
CHANNELS = 256
# The batch normalizations of ResNet-50 (He et al. 2015, table 1): channels: number of layers.
RESNET_50 = {64: 7, 128: 8, 256: 16, 512: 11, 1024: 7, 2048: 4}


def seconds(collective: Collective, devices: int) -> float:
    """Return the time of a collective; an all-reduce sends its data twice."""
    ways = 2 if collective.kind == "all-reduce" else 1
    sent = ways * collective.nbytes * (devices - 1) / devices
    return START + ways * log2(devices) * HOP + sent / BANDWIDTH


def forward(channels: int, devices: int, way: str = "shard_map") -> list[Collective]:
    """Return the collectives that the forward pass waits for, in float32.

    The moments are gathered. If they are too large, the means are reduced first and then the other
    moments. Under jit there is always a reduction of an approximate mean, and then of two sums
    about it.
    """
    if way == "jit":
        return [Collective("all-reduce", 4 * channels), Collective("all-reduce", 2 * 4 * channels)]
    gathered = 3 * 4 * channels * devices
    if gathered <= GATHERED_BYTES:
        return [Collective("all-gather", gathered)]
    return [Collective("all-reduce", 4 * channels), Collective("all-reduce", 3 * 4 * channels)]


def backward(channels: int) -> list[Collective]:
    """Return the collective of two sums for each channel."""
    return [Collective("all-reduce", 2 * 4 * channels)]


def layer_seconds(channels: int, devices: int) -> float:
    """Return the time of one layer, forward and backward."""
    return sum(seconds(c, devices) for c in forward(channels, devices) + backward(channels))


def resnet_seconds(devices: int) -> float:
    """Return the time of all layers of a ResNet-50 without overlap with computation."""
    return sum(layers * layer_seconds(channels, devices) for channels, layers in RESNET_50.items())


def measure(full: bool) -> list[Table]:
    """Return the costs of the model, and its collectives next to those of compiled programs."""
    return [_at_scale(), _checked()]


def _at_scale() -> Table:
    rows = []
    for devices in DEVICES:
        there, back = forward(CHANNELS, devices), backward(CHANNELS)
        waits = [sum(seconds(c, devices) for c in way) for way in (there, back)]
        rows.append(
            (
                f"{devices:,}",
                described(there),
                *(f"{1e6 * s:.0f}" for s in waits),
                f"{1e3 * resnet_seconds(devices):.1f}",
                f"{1e3 * resnet_seconds(GROUP):.1f}",
            )
        )
    return Table(
        title="Synced statistics at scale",
        columns=("devices", "forward", "forward µs", "backward µs", "global ms", "groups ms"),
        rows=rows,
        notes=(
            f"Computed, not measured. One layer has {CHANNELS} channels. A ResNet-50 has "
            f"{sum(RESNET_50.values())} batch normalizations; groups have {GROUP} devices. The "
            f"start of a collective takes {START * 1e6:.0f} µs and each hop {HOP * 1e6:.0f} µs. "
            f"The bandwidth is {BANDWIDTH / 1e9:.0f} GB/s."
        ),
    )


def _checked() -> Table:
    rows = []
    for way, devices, channels, batch, there, back, *_ in counted():
        modelled = forward(int(channels), int(devices), way), backward(int(channels))
        rows.append((way, devices, channels, batch, described(modelled[0]), there, back))
        if (there, back) != tuple(map(described, modelled)):
            raise ValueError(f"the model differs from the compiled program: {rows[-1]}")
    return Table(
        title="The cost model and compiled programs",
        columns=("way", "devices", "channels", "batch", "model", "forward", "backward"),
        rows=rows,
        notes=(
            "The columns forward and backward are counted in programs compiled for simulated CPU "
            "devices. The column model is the forward pass of the cost model. Its backward pass is "
            "equal to the counted one."
        ),
    )
