"""What is known of a data set before it is prepared."""

from typing import NamedTuple

import numpy as np


class Card(NamedTuple):
    """Where a data set comes from.

    Attributes:
        name: under which TFDS prepares it.
        version: of the examples and their split; another is prepared anew.
        notes: what this version is.
        description: what it holds, and how train and test were split.
        homepage, citation: of its source.

    What TFDS has a builder of needs its name and version alone.
    """

    name: str
    version: str
    notes: str = ""
    description: str = ""
    homepage: str = ""
    citation: str = ""


class Source(NamedTuple):
    """What a source holds.

    Attributes:
        input_shape: of one example.
        num_classes: labels are 0 to below it.
        num_train, num_test: examples.
        dtype: of the inputs.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    num_train: int
    num_test: int
    dtype: type[np.generic] = np.uint8


class Examples(NamedTuple):
    """Inputs (examples, ...) as the source has them, and their labels (examples,)."""

    inputs: np.ndarray
    labels: np.ndarray


class Spec(NamedTuple):
    """What training sees of a data set.

    Attributes:
        input_shape: of one example.
        num_classes: labels are 0 to below it.
        num_train: training examples, those for validation taken away.
        max_length: the most that an example's length can be; None where all of an input counts.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    num_train: int
    max_length: int | None = None
