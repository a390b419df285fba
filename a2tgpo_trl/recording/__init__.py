"""credited batches -> files of their rollouts in the run's folder, written beside the training and never in its way.

    record_every: 5             every fifth batch, from the first on; 0, the default: none
    record_format: parquet      or jsonl, the default: a rollout a line, which any tool and any eye can read
    record_tokens: false        without what is recorded of single tokens
    record_megabytes: 1000      the most that is written

    outputs/run/rollouts/step-000011-rank-0.jsonl       what step 11 trains on

It is the record of a rollout (`rollout/records.py`), with what became of it:

    {..., "outcome": 1.1, "outcome_advantage": 0.4, "advantages": [0.9, 0.4], "scores": [1.7, null],
     "clip_scale": [1.2, 1], "updates": 2, "ratios": [1.003, 0.998], "clip_fractions": [1.0, 0.0],
     "prompt_ids": [151, ...], "tokens": {"ids": [88, 12, 7, ...], "sampled": [1, 1, 0, ...],
     "texts": ["<tool_call>", "\\n", null, ...], "logps": [-0.02, -1.31, null, ...],
     "ratios": [1.004, 1.002, null, ...], "clipped": [1, 1, null, ...]},
     "schema": 2, "step": 11, "rank": 0, "batch": 1, "round": 1, "group": 3}

`group` is the number of its prompt in the batch, and `round` above 1 where that was rolled out again
(`resample_limit`). `rank` trains on it. `batch` counts those of a step that has several. `outcome_advantage` is what
the outcome adds to each turn, times `outcome_weight`; `scores` are the gains as they were compared.

Updates. A batch is written when its last loss was computed, and `updates` says for how many updates it was: by
`num_iterations`, one or several. What follows is as of the last of these, by the policy as that update found it and
not as it left it. Where a batch is trained on in one optimizer step, that is the policy that sampled it, and all
ratios are 1 but for rounding; where it is in several, the first of them has such ratios.

    ratios            of each turn, the mean over its tokens of the importance ratio that the loss took: of the token,
                      the turn or the sequence, by `importance_sampling_level`
    clip_fractions    the share of its tokens that the clip range stopped; not there where the loss has no such range
    tokens.logps      log-probabilities of the sampled tokens by the policy that sampled them, which ratios refer to,
                      as the trainer computes them: where vLLM samples, its own may differ
    tokens.ratios     of each token alone, exp(new - old), whatever the level
    tokens.clipped    1 where the clip range stopped a token, else 0

Lists of tokens have an entry for each of the completion, null where it was read and not sampled, or is in no loss; six
decimals are kept. Half a character has no text: the token that completes it has all of it. A run that ends, or is
interrupted, before the last update writes what it has: fewer `updates`, and with 0 none of these. One that is killed
loses the batch that it was at. One that goes on removes what was recorded of later steps than those that it goes on
from.

`record_tokens` is on: what a policy does is told by its tokens, and how much is written has a limit. In the quickstart
(64 rollouts of 98 tokens) they make JSONL 2.3 times as large, 401 kB a batch, and Parquet 1.2 times, 36 kB. Studies
leave them out.

What it costs. In the quickstart, on two idle cores of an AMD EPYC (2026-11-30), recording took 34 and 44 ms of
processors a batch as JSONL in two runs of 40 and 100 pairs of steps, on both threads together: 1.3 and 1.7 % of a step
that is recorded, 0.3 % where every fifth is. A step that waits until its file is on the disk takes 6 and 8 % longer on
the clock, 1.1 and 1.7 % where every fifth is; training does not wait. `python tests/benches/recording_cost.py
quickstart` measures it.

With `datasets` and with DuckDB:

    load_dataset("json", data_files="outputs/run/rollouts/*.jsonl")
    load_dataset("parquet", data_files="outputs/run/rollouts/*.parquet")
    duckdb.sql("select step, avg(outcome) from 'outputs/run/rollouts/*.jsonl' group by step")
    duckdb.sql("select step, avg(outcome) from 'outputs/run/rollouts/*.parquet' group by step")

`datasets` takes the types of JSON from the first file, and refuses a later one that has others: another tool's
arguments, a number where there was none. Parquet has the same types in all files of a version, whatever the data set
and its tools: what may be anything stands there as JSON text (`rollout/record_files.py`).

Values of environment variables whose names speak of a key, a token, a secret or a password, and passwords in URLs, are
masked, in texts, in tokens and in names of arguments; `secrets.py` says what is not. A disk that is full, or the most
that may be written (`record_megabytes`), ends the recording with a warning, not the run; of a slow disk, batches are
left out with a warning each. A column of the data set that has the name of one of these keys is in `columns`. Versions
1 and 2 are read by `a2tgpo show` and `a2tgpo view`; 2 has come with tokens, ratios, `updates` and `batch`.

    recorder.py     the thread that writes, and all that can go wrong there
    schedule.py     which batches
    contents.py     records of rounds -> those of the batch, with their credit
    updates.py      what updates made of a batch -> numbers of its turns and tokens
    tokens.py       tokens -> the text of each
    secrets.py      what must not be written
"""

from .contents import credited, trained_on, with_tokens
from .recorder import FOLDER, SCHEMA, SCHEMAS, Recorder, WithRun
from .schedule import Schedule
from .secrets import Masks
from .tokens import TokenTexts
from .updates import Update


__all__ = [
    "FOLDER",
    "SCHEMA",
    "SCHEMAS",
    "Masks",
    "Recorder",
    "Schedule",
    "TokenTexts",
    "Update",
    "WithRun",
    "credited",
    "trained_on",
    "with_tokens",
]
