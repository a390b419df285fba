"""Arithmetic: generated problems of one to four steps, to be solved in Python that keeps its variables.

problems.py   seed -> problems, in sums or in stories, and the number after each step
task.py       problems -> data sets, Python tool and rewards
policy/       a tiny, clumsy policy to train; `tests/policies/arithmetic.py` made it
"""

from pathlib import Path


POLICY = Path(__file__).parent / "policy"
