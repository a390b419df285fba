"""records and logs of runs -> progress lines, scores, pictures and comparisons."""
