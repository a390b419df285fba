"""configuration of Accelerate, machine -> the processes that run a recipe.

A recipe says what is trained, and a configuration of Accelerate says on what. `--config_file` takes the name of one
that comes with the package (`recipes/accelerate/`) or the path of yours. The recipe still sets precision and gradient
accumulation.

    a2tgpo train quickstart --config_file cpu_ddp --num_processes 2     # a laptop, two processes
    a2tgpo train lora_24gb --config_file single_gpu                     # one GPU
    a2tgpo train paper_8gpu_colocate --config_file zero3                # eight GPUs, vLLM on the same ones
    sbatch recipes/multi_node.slurm                                     # four machines

    configuration                     what each process holds                            run for real
    single_gpu, multi_gpu             the whole model                                    no
    zero2                             the weights, a share of gradients and optimiser    no
    zero3, multi_node                 a share of everything                              no
    fsdp2                             a share of everything                              2 CPU processes, forced
    cpu_ddp, cpu_zero2, cpu_zero3     as multi_gpu, zero2, zero3                         2 CPU processes

`a2tgpo train` is short for `accelerate launch [--config_file ...] -m a2tgpo_trl.train --config RECIPE [--key value]`.
It also starts several processes on CPUs, where Accelerate would start one. If a launcher would silently ignore
something, you get an error that says what to do: several processes that would be one, FSDP that would be DDP (on
CPUs), processes that do not find each other, more processes than GPUs.

The same seed and global batch give the same run on one process or several, if each batch of rollouts serves one step:
each rollout draws from its own seed, and equal contexts have one value, whichever process scored them. Three steps of
LoRA on one process and on two and four under DDP, ZeRO-2, ZeRO-3 and FSDP2 give the same rollouts, and advantages and
adapters to 2e-5 (`tests/test_world_sizes.py`).

Exit codes: 0 done, 1 stopped, 2 refused, 75 interrupted by SIGTERM (the same command resumes from its checkpoint), 130
interrupted from the keyboard. `a2tgpo train` passes SIGTERM on to its processes and waits for them. `torchrun` and
`accelerate launch` give several processes 30 seconds and leave a single one running; with them, signal the Python
processes of the training.

    processes.py   configuration, number of processes, machine -> how processes are started
    launcher.py    words of `accelerate launch` -> its processes, and their exit code
    launched.py    what was asked for, and what was started: they agree, or the run is refused
"""
