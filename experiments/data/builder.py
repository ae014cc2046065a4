"""A TFDS builder of arrays that a package or a folder of this machine holds.

Importing this imports TFDS, which takes most of a second: only what prepares or streams does.
"""

import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from experiments.data.card import Card, Examples


class ArrayBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes `input` as the source has it, and `label`, in the source's order.

    Its subclasses are made by `builder_class`.
    """

    VERSION: ClassVar[tfds.core.Version]
    CARD: ClassVar[Card]
    NUM_CLASSES: ClassVar[int]
    READ: ClassVar[Callable[[], Mapping[str, Examples]]]

    def _info(self) -> tfds.core.DatasetInfo:
        inputs = type(self).READ()["train"].inputs
        features = {
            "input": tfds.features.Tensor(shape=inputs.shape[1:], dtype=inputs.dtype),
            "label": tfds.features.ClassLabel(num_classes=self.NUM_CLASSES),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.CARD.description,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("input", "label"),
            homepage=self.CARD.homepage,
            citation=self.CARD.citation,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing is fetched
        splits = type(self).READ()
        return {name: self._generate_examples(examples) for name, examples in splits.items()}

    def _generate_examples(self, examples: Examples) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (value, label) in enumerate(zip(*examples, strict=True)):
            yield index, {"input": value, "label": int(label)}


def builder_class(
    card: Card, num_classes: int, read: Callable[[], Mapping[str, Examples]]
) -> type[ArrayBuilder]:
    """Return the builder of the splits that `read` returns."""
    attributes = {
        "name": card.name,
        "VERSION": tfds.core.Version(card.version),
        "RELEASE_NOTES": {card.version: card.notes},
        "CARD": card,
        "NUM_CLASSES": num_classes,
        "READ": staticmethod(read),
        "__module__": __name__,
    }
    name = "".join(word.capitalize() for word in card.name.split("_")) + "Builder"
    keywords = {"skip_registration": True}
    return types.new_class(name, (ArrayBuilder,), keywords, lambda own: own.update(attributes))
