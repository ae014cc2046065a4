"""Labels that distinguish the runs of a sweep."""

from collections.abc import Sequence
from dataclasses import asdict

from experiments.config import Config, flat

SAME_RUN = {"seeds": {}, "only_seeds": {}, "study": {}}  # what does not distinguish runs


def labels(configs: Sequence[Config]) -> list[str]:
    """Return for each configuration the values in which its run differs, as overrides."""
    values = [dict(flat({**asdict(config), **SAME_RUN})) for config in configs]
    keys = list(dict.fromkeys(key for each in values for key in each))
    differing = [key for key in keys if len({repr(each.get(key)) for each in values}) > 1]
    chosen = [key for key in differing if "." not in key or key.partition(".")[0] not in differing]
    return [" ".join(f"{key}={each[key]}" for key in chosen if key in each) for each in values]
