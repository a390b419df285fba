"""Questions about an encyclopedia, to be answered by searching it: seven sets, as A2TGPO's paper uses them.

sets.py       the seven sets: their splits and sizes
questions.py  a folder of files, or the hub -> questions with all accepted answers
leakage.py    questions to train on and to test on -> those that are in both
answerable.py questions, a search -> which of them the corpus can answer at all
prompts.py    a family of models -> how it is asked, and in which form it answers (families/)
task.py       sets by name, prompts -> the task
"""
