"""Atlas: a generated world to search in, with questions of one to four hops.

world.py      seed -> entities, facts, documents, questions
task.py       a world -> data sets, search tool and rewards
tokenizer.py  the words of every such world -> the tiny policy's tokenizer
school.py     from nothing to the tiny policy that is shipped (`policy/`)
"""

from pathlib import Path


POLICY = Path(__file__).parent / "policy"
