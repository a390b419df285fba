"""recipe, configuration of Accelerate, machine -> the processes that run it."""
