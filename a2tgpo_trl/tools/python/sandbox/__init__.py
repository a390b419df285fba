"""The code that runs outside the trainer, with the standard library only: it starts fast and in any interpreter.

fork_server.py   a process without secrets that forks an interpreter on request
confinement.py   how a process is confined: bubblewrap, namespaces, another user, limits
seccomp.py       which system calls it may not make
executor.py      the interpreter itself: reads code, runs it, reports that it is done
"""
