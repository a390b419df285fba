"""TextWorld houses to act in, with questions in the style of QAit that a policy can answer only after looking.

games.py      seed -> a house: a map, doors, containers, things, by TextWorld's own generator; its state
walks.py      a house -> shortest walks in it
questions.py  a house -> questions, their answers, and the walks that find them
play.py       a house -> an environment with one tool, which takes commands
task.py       houses -> data sets, environment and rewards
policy/       a tiny policy that looks around clumsily, to train; `tests/policies/houses.py` made it
"""

from pathlib import Path


POLICY = Path(__file__).parent / "policy"
