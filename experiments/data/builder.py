"""A TFDS builder for arrays from a package or a local folder.

Importing this module imports TFDS, which takes most of a second. Therefore only the code that
prepares or streams data imports it.
"""

import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from experiments.data.card import Card, Examples, Source


class ArrayBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes `input`, unchanged, and `label` in the order of the source.

    `make_builder` makes the subclasses.
    """

    CARD: ClassVar[Card]
    SOURCE: ClassVar[Source]
    READ: ClassVar[Callable[[], Mapping[str, Examples]]]

    def _info(self) -> tfds.core.DatasetInfo:
        shape, classes = self.SOURCE.input_shape, self.SOURCE.num_classes
        features = {
            "input": tfds.features.Tensor(shape=shape, dtype=self.SOURCE.dtype, encoding="bytes"),
            "label": tfds.features.ClassLabel(num_classes=classes),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.CARD.description,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("input", "label"),
            homepage=self.CARD.homepage,
            citation=self.CARD.citation,
            license=self.CARD.license or None,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # there is nothing to download
        splits = type(self).READ()
        return {name: self._generate_examples(examples) for name, examples in splits.items()}

    def _generate_examples(self, examples: Examples) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (value, label) in enumerate(zip(*examples, strict=True)):
            yield index, {"input": value, "label": int(label)}


def make_builder(
    card: Card,
    key: str,
    source: Source,
    read: Callable[[], Mapping[str, Examples]],
    directory: Path,
) -> ArrayBuilder:
    """Return a builder that writes the splits of `read` to a directory.

    Args:
        key: the name of the builder's configuration, or "" for none.
    """
    configs = [tfds.core.BuilderConfig(name=key, version=card.version)] if key else []
    attributes = {
        "name": card.name,
        "VERSION": tfds.core.Version(card.version),
        "RELEASE_NOTES": {card.version: card.notes},
        "CARD": card,
        "BUILDER_CONFIGS": configs,
        "SOURCE": source,
        "READ": staticmethod(read),
        "__module__": __name__,
    }
    name = "".join(word.capitalize() for word in card.name.split("_")) + "Builder"
    keywords = {"skip_registration": True}
    make = types.new_class(name, (ArrayBuilder,), keywords, lambda own: own.update(attributes))
    return make(data_dir=directory, file_format="array_record")
