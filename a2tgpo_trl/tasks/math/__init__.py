"""GSM8K and MATH, to be solved with Python.

data.py   a folder of files as they are published, or the hub -> rows with prompt and answer
task.py   rows -> tasks with a Python tool, and rewards that compare answers as mathematics
"""
