"""A run that may be interrupted at any moment goes on to the same end.

    a2tgpo train my.yaml --save_strategy steps --save_steps 10
    a2tgpo train my.yaml --save_strategy steps --save_steps 10 --resume_from_checkpoint true

In a script it is `trainer.train(resume_from_checkpoint=True)`; a folder in the place of True names a checkpoint. On a
CPU such a run ends with the same weights, to the bit, as one that was never interrupted, also in the middle of a batch
of rollouts that several steps train on: each process saves that batch beside TRL's checkpoint. Tools must answer the
same again (`tool_cache` and `tool_replay` see to that), environments must follow from the row that `reset` gets, and
vLLM keeps random states of its own.

    What happens                              What follows
    a checkpoint is cut off or lacks a file   it is renamed torn-checkpoint-N, and the one before is used; one that was
                                              named is refused with the last whole one
    an earlier checkpoint is named            later ones are renamed left-checkpoint-N
    SIGTERM, on any process                   the step is finished, all save together, and the exit code is 75
    the disk is full                          the run stops with a line; older checkpoints go once a new one is whole
    settings, data or policy differ           an error with both values, unless `resume_changed` is set. Where and how
                                              often is logged, saved and evaluated, and `max_steps`, may change
    another number of processes               goes on where a new batch of rollouts begins, if a step and a batch have
                                              as many rollouts as before; DeepSpeed's optimizer keeps its number
    files that this package did not write     are never removed nor written over: `_a2tgpo_files.jsonl` lists its own.
                                              Checkpoints of versions that kept no such list stay where they are

A checkpoint is whole when its `manifest.json` lists all its files with their sizes.

    trainer.py       `Resumable`, a GRPOTrainer: what it asks of who inherits, and in which order all this is done
    choice.py        the checkpoint to go on from, or why there is none
    same_run.py      what must be the same in two runs that are one
    state.py         what a checkpoint holds beside TRL's
    manifest.py      whether a checkpoint is whole
    folders.py       the checkpoints in a run's folder: which give way, which are set aside
    own_files.py     which files in a folder are this package's
    disk.py          no room, or no permission to write
    interruption.py  SIGTERM
"""
