"""YAML and command line -> settings, task, trainer."""
