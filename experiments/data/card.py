"""What is known of a data set besides its examples."""

from typing import NamedTuple

import numpy as np


class Examples(NamedTuple):
    """Inputs (examples, ...) as the source has them, and their labels (examples,)."""

    inputs: np.ndarray
    labels: np.ndarray


class Card(NamedTuple):
    """What is known of a data set besides its examples.

    Attributes:
        name: under which TFDS prepares it.
        version: of the examples and their split; another is prepared anew.
        notes: what this version is.
        description: what it holds, and how train and test were split.
        homepage, citation: where it comes from.
    """

    name: str
    version: str
    notes: str
    description: str
    homepage: str
    citation: str
