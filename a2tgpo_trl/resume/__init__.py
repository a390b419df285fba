"""A run that may be interrupted at any moment goes on to the same end.

    a2tgpo train my.yaml --save_strategy steps --save_steps 10
    a2tgpo train my.yaml --save_strategy steps --save_steps 10 --resume_from_checkpoint true

In a script, call `trainer.train(resume_from_checkpoint=True)`, or pass a checkpoint's folder instead of True. On a CPU
such a run ends with the same weights, to the bit, as one that was never interrupted, even in the middle of a batch of
rollouts that several steps train on: each process saves that batch beside TRL's checkpoint. Tools must give the same
answers again (`tool_cache` and `tool_replay` see to that), environments must depend only on the row that `reset` gets,
and vLLM keeps its own random states. If tools take their time, set `stream_turns: false` as well: by default, which
turns are read together depends on when tools answer, and that moves gains by rounding.

    What happens                              What follows
    a checkpoint is cut off or lacks a file   it is renamed torn-checkpoint-N, and the one before is used; if you named
                                              it, it is refused, and the error names the last whole one
    an earlier checkpoint is named            later ones are renamed left-checkpoint-N
    SIGTERM, on any process                   the step is finished, all save together, and the exit code is 75
    the disk is full                          the run stops with a message; older checkpoints are removed once a new
                                              one is whole
    settings, data or policy differ           an error with both values, unless `resume_changed` is set. You may change
                                              where and how often the run logs, saves and evaluates, and `max_steps`
    another number of processes               the run resumes from a checkpoint before a new batch of rollouts, if a
                                              step and a batch have as many rollouts as before; DeepSpeed's optimizer
                                              needs the same number of processes
    files that this package did not write     are never removed or overwritten: `_a2tgpo_files.jsonl` lists its own.
                                              Checkpoints of versions without such a list stay where they are

A checkpoint is whole when its `manifest.json` lists all its files with their sizes.

    trainer.py       `Resumable`, a GRPOTrainer: what it asks of subclasses, and the order in which all this is done
    choice.py        the checkpoint to resume from, or why there is none
    same_run.py      what must be equal for two runs to be one
    state.py         what a checkpoint holds besides TRL's state
    manifest.py      whether a checkpoint is whole
    folders.py       the checkpoints in a run's folder: which are removed, which are set aside
    own_files.py     which files in a folder belong to this package
    disk.py          no room, or no permission to write
    interruption.py  SIGTERM
"""
