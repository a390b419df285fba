"""What runs outside the trainer: the standard library alone, so that it starts fast and can run in any interpreter.

nursery.py   a process without secrets that makes interpreters when it is asked to
jail.py      what an interpreter is closed in by: namespaces, mounts, another user, limits
filter.py    which system calls it may not make
cell.py      the interpreter itself: reads code, runs it, says that it is done
"""
