"""Arithmetic: generated problems of one to four steps, to be solved in Python that keeps its variables.

problems.py   seed -> problems, in sums or in stories, and what each step makes of the number
task.py       problems -> data sets, Python tool and rewards
tokenizer.py  the words and numbers of such problems -> the tiny policy's tokenizer
school.py     from nothing to the tiny policy that is shipped (`policy/`)
"""

from pathlib import Path


POLICY = Path(__file__).parent / "policy"
