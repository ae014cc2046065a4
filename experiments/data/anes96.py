"""The 944 voters of 1996 that statsmodels contains."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from experiments.data.card import Card
from experiments.data.tabular import TabularSource

FEATURES = ("popul", "TVnews", "selfLR", "ClinLR", "DoleLR", "PID", "age", "educ", "income")


@dataclass(frozen=True, kw_only=True)
class Anes96(TabularSource):
    """Voters for Clinton (0) or Dole (1), with nine features between 0 and 7,300."""

    card: ClassVar[Card] = Card(
        name="anes96",
        version="1.0.0",
        notes="755 train, 189 test, stratified.",
        description="""\
944 voters of the American presidential election of 1996, for Clinton (0) or Dole (1): nine features
of very different scale, as statsmodels ships them from the American National Election Studies. The
population of the voter's place (0 to 7,300 thousand; its logarithm, which is there too, is left
out), news watched (0 to 7 times a week), left or right of the voter, Clinton and Dole (1 to 7),
identification with a party (0 to 6), age (19 to 91), education (1 to 7), income (1 to 24).

20% of each class, drawn with a fixed seed, are the test set.
""",
        homepage="https://electionstudies.org",
        citation="""\
@misc{anes1996,
  author = {{American National Election Studies}},
  title = {1996 Time Series Study},
  year = {1996},
  note = {944 of the respondents, as shipped by statsmodels},
}
""",
    )
    num_examples: ClassVar[int] = 944
    num_features: ClassVar[int] = len(FEATURES)
    num_classes: ClassVar[int] = 2

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        from statsmodels.datasets import anes96  # takes most of a second

        data = anes96.load_pandas().data
        return data[list(FEATURES)].to_numpy(), data["vote"].to_numpy().astype(np.int64)
