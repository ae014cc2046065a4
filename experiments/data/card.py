"""The facts about a data set that are known before it is prepared."""

from typing import NamedTuple

import numpy as np


class Card(NamedTuple):
    """The origin of a data set.

    A data set that TFDS has a builder for needs only its name and version.

    Attributes:
        name: the name that TFDS prepares it under.
        version: the version of the examples and their split. A new version is prepared again.
        notes: a description of this version.
        description: the content, and how train and test examples were split.
        homepage: the homepage of the source.
        citation: the citation of the source.
        license: the license of the source.
    """

    name: str
    version: str
    notes: str = ""
    description: str = ""
    homepage: str = ""
    citation: str = ""
    license: str = ""


class Source(NamedTuple):
    """The content of a source.

    Attributes:
        input_shape: the shape of one example.
        num_classes: the number of classes; labels count from 0.
        num_train: the number of training examples.
        num_test: the number of test examples.
        dtype: the dtype of the inputs.
        vocabulary: the number of words, if inputs are words, as integers; None otherwise.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    num_train: int
    num_test: int
    dtype: type[np.generic] = np.uint8
    vocabulary: int | None = None


class Examples(NamedTuple):
    """Inputs (examples, ...) as the source stores them, and their labels (examples,)."""

    inputs: np.ndarray
    labels: np.ndarray


class Spec(NamedTuple):
    """The shapes and sizes that training needs to know.

    Attributes:
        input_shape: the shape of one example.
        num_classes: the number of classes; labels count from 0.
        num_train: the number of training examples without the validation examples.
        max_length: the largest length of an example; None if examples have no lengths.
        vocabulary: the number of words, if inputs are words, as integers; None otherwise.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    num_train: int
    max_length: int | None = None
    vocabulary: int | None = None
