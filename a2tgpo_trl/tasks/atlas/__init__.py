"""Atlas: a generated world to search in, with questions of one to four hops, or harder ones.

world.py      seed -> entities, facts, documents, questions
task.py       a world -> data sets, search tool and rewards
warm_up.py    a search for each rollout, whose first calls find nothing useful
useful.py     record of a rollout -> which of its searches found a document that its question still needed
policy/       a tiny policy that searches clumsily, to train; `tests/policies/atlas.py` made it
hard_policy/  one for a harder world (`recipes/atlas_hard.yaml`); `tests/policies/atlas_hard.py` made it
eager_policy/ the same for short chains, which answers some questions immediately (`recipes/study/calling.yaml`)
"""

from pathlib import Path


POLICY = Path(__file__).parent / "policy"
HARD_POLICY = Path(__file__).parent / "hard_policy"
EAGER_POLICY = Path(__file__).parent / "eager_policy"
