"""records and logs of runs -> progress lines, scores and pictures.

What is logged, and how to read it: `a2tgpo help metrics`.

    metrics.py            the metrics that a run logs: names, good and bad curves, what to do
    alarms.py             a log -> alarms for a policy that collapses or is stuck, and a hint
    provenance.py         working directory, packages -> commit and versions of a run
    progress.py           steps of a run -> lines on a terminal
    scores.py             records -> scores with intervals
    paired.py             two evaluations of the same questions -> how they differ, and whether by chance
    paper_table.py        scores of evaluations -> a row of a table, beside a paper's
    gains.py              records with gains -> gains of turns that found the answer, and of the others
    series.py             runs that differ only in their seed -> one series of each metric
    seeds.py              a number for each seed -> mean and interval
    plots.py              series -> learning curves, numbers by turn, bars
    looks.py              how lines and bars look, in grey as well; PNG and SVG
    nothing_to_learn.py   a run that learnt nothing -> a warning at its end, and what to check
"""
