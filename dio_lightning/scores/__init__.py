"""The one vocabulary of scores: what each is called, measured in, read as and computed by, and what is made of many.

`vocabulary` lists them; `pairs` takes them of a pair; `rows`, `summary`, `runs`, `statistics` and `comparing` go from
rows to seeds and methods; `table` writes them down. Naming a score imports no torch: a misspelt one is refused at once.
"""

from dio_lightning.scores.score import Score
from dio_lightning.scores.vocabulary import SCORES, expect, look_up, of_kind

__all__ = ["SCORES", "Score", "expect", "look_up", "of_kind"]
