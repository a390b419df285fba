"""a run that may be interrupted at any moment -> the same run, gone on with."""
