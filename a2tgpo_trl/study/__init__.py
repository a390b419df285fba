"""a study's file -> its runs, one by one -> their results in a Parquet file -> a report.

    a2tgpo study recipes/study/main.yaml [--jobs 2] [--minutes 60]

A study trains one recipe in several cells (methods, or settings of one method) with several seeds, and reports the
results:

    recipe: ../atlas_hard.yaml            beside the study's file
    settings: {max_steps: 100}            for all cells, over those of the recipe
    every: 10                             steps from one evaluation to the next
    seeds: [0, 1, 2, 3, 4, 5, 6, 7]
    against: grpo                         the cell that the others are compared with; or, for each, one or more:
                                          {igpo: grpo, a2tgpo: [grpo, igpo]}
    post_hoc: [a2tgpo_wide]               cells that were added after results of others had been seen
    reward: exact_match                   the held-out score that is compared
    target: 0.7                           cells are timed until they reach this held-out score
    learning_rates: {values: [2.5e-4, 5.0e-4], seeds: [1000]}       each cell tries these, on other seeds
    cells:
      grpo: {credit: grpo}
      a2tgpo: {credit: a2tgpo}

Files that the settings name (`credit: my_credit.py:own`, turn rewards, tools, data) are looked up beside the study's
file, then beside its recipe, then in the working directory.

Beside the study's file, `main.parquet` grows with each run; `main.md` and its pictures are made from it. Runs that are
already in it are not repeated unless their settings have changed, so a study can go on for days, on one machine or on
several in succession. Runs that another study in the same folder has made with the same settings are not repeated
either. A run has one thread, and its rollouts wait for the tools of all (`stream_turns: false`), so it is the same run
bit for bit, whatever runs beside it.

    a2tgpo compare quickstart --credit grpo a2tgpo --seeds 0 1 2 3 4 --every 5

is a study in one line: it writes the file (`outputs/comparison/quickstart.yaml`) and makes the runs, whose folders you
can give to `a2tgpo plot` and `a2tgpo view`. Fewer than five seeds decide nothing.

    study.py        a study's file -> what is compared in it, by which runs
    runs.py         words of a training -> the training, and what tells it from any other
    results.py      a finished run's folder -> its measurements; those of all runs, in one file
    mechanism.py    records -> how well gains and credit identify the useful searches
    spreads.py      records -> how gains, credit and clip ranges are spread, by turn and overall
    comparison.py   results -> the result of each cell, and its differences from another cell, judged together
    claims.py       results -> whether the paper's claims held here
    averages.py     results -> numbers of a cell: over a run's course, by turn, and over its seeds
    tables.py       results -> the tables of the report on what gains and credit are worth
    calls.py        results -> the table of the report on whether to call at all
    courses.py      results -> the tables of the report on how cells differ from step to step
    figures.py      results -> the paper's figures, made from them, and its numbers beside ours
    report.py       results -> the report and its picture
"""
