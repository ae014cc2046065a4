"""Data sets as their files in configs/ say, but for what a test changes."""

import gzip
import struct
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from experiments.config import component

CONFIGS = Path(__file__).parent.parent / "configs" / "data"


def source(name, directory, **changed):
    """Return the data set that a file names, prepared under a directory."""
    values = _values(CONFIGS / f"{name}.yaml")
    return component("data", {**values, "directory": str(directory), **changed})()


def _values(path):
    """Return what a file says, with what stands in the files that it takes as defaults."""
    own = OmegaConf.to_container(OmegaConf.load(path))
    first, *others = own.pop("defaults", ["_self_"])
    if not others:
        return own
    return {**_values(CONFIGS.parent / f"{first.removesuffix('@_here_')[1:]}.yaml"), **own}


def write_idx(path, array):
    """Write an array of bytes in idx format, compressed where the name ends with .gz."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_idx_folder(folder, num_train=40, num_test=20, size=(6, 4), suffix="", seed=0):
    """Write images with blank rows around their ink and labels 0 to 3, as many of each."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for split, number in (("train", num_train), ("t10k", num_test)):
        images = rng.integers(1, 256, (number, *size))
        images[::2, 0] = 0
        images[::3, -2:] = 0
        write_idx(folder / f"{split}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte{suffix}", np.arange(number) % 4)
    return folder
