"""`a2tgpo plan RECIPE`: whether a run fits, computed before it; and what a step takes, measured where it is to run.

    a2tgpo plan colocate_80gb --gpu h100                                  # memory of one H100, nothing is run
    a2tgpo plan paper_8gpu_colocate --gpu h100 --config_file zero3        # of each of eight, under ZeRO-3
    a2tgpo plan quickstart --gpu this                                     # runs two batches here, and times them

    recipe, Accelerate's configuration -> sizes, types, sharding (setting.py, sharding.py) ---> memory.py --> report.py
    model's config, without weights    -> what its own code holds (policy.py, tracing.py) --->
    recipe, with --gpu this            -> two batches by the real trainer in a process of its own (measured.py) ------>

The memory is that of the longest rollouts that the recipe allows, all together. Nothing in it is fitted: weights,
gradients and the optimiser's state are counted, and the memory of the model's layers is found by running its own code
on tensors without values, with its adapters, autocast and gradient checkpointing. No weights are loaded: a folder with
a `config.json` is enough. On a CPU, peaks in training are within a quarter of measured ones
(`tests/plan/test_plan_measured.py`); on GPUs nothing was measured. Seconds are never computed, only measured.

The exit code is 0 if the run fits, 1 if it does not (the output says what to change), and 2 if it cannot be planned.
"""
