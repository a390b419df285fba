"""What runs outside the trainer: the standard library alone, so that it starts fast and can run in any interpreter.

fork_server.py   a process without secrets that forks an interpreter when it is asked
confinement.py   what a process is confined by: bubblewrap, namespaces, another user, limits
seccomp.py       which system calls it may not make
executor.py      the interpreter itself: reads code, runs it, says that it is done
"""
