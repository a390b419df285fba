"""credited batches -> files of their rollouts in the run's folder, written beside the training and never in its way.

    record_every: 5             the first batch, then the next one after each fifth step; 0, the default: none
    record_format: parquet      or jsonl, the default: one rollout per line, readable by any tool and by eye
    record_tokens: false        without the data of single tokens
    record_megabytes: 1000      the most that is written

    outputs/run/rollouts/step-000011-rank-0.jsonl       what step 11 trains on

Each rollout has its record (`rollout/records.py`) with these keys added:

    {..., "outcome": 1.1, "outcome_advantage": 0.4, "advantages": [0.9, 0.4], "scores": [1.7, null],
     "clip_scale": [1.2, 1], "updates": 2, "ratios": [1.003, 0.998], "clip_fractions": [1.0, 0.0],
     "prompt_ids": [151, ...], "tokens": {"ids": [88, 12, 7, ...], "sampled": [1, 1, 0, ...],
     "texts": ["<tool_call>", "\\n", null, ...], "logps": [-0.02, -1.31, null, ...],
     "ratios": [1.004, 1.002, null, ...], "clipped": [1, 1, null, ...]},
     "schema": 2, "step": 11, "rank": 0, "batch": 1, "round": 1, "group": 3}

`group` is the number of its prompt in the batch, and `round` is above 1 if the prompt was rolled out again
(`resample_limit`). `rank` is the rank that trains on it. `batch` counts the batches of a step that has several.
`outcome_advantage` is what the outcome adds to each turn, times `outcome_weight`; `scores` are the gains as they were
compared.

Updates. A batch is written when its last loss has been computed, and `updates` says for how many updates it was
computed: one or several, depending on `num_iterations`. The values below are as of the last of these updates, with the
policy as that update found it, not as it left it. If a batch is trained on in one optimizer step, that is the policy
that sampled it, and all ratios are 1 up to rounding; if in several, the first of them has such ratios.

    ratios            for each turn, the mean over its tokens of the importance ratio that the loss used: of the token,
                      the turn or the sequence, by `importance_sampling_level`
    clip_fractions    the share of the turn's tokens that the clip range stopped; absent if the loss has no such range
    tokens.logps      log-probabilities of the sampled tokens by the policy that sampled them, which ratios refer to,
                      as the trainer computes them: if vLLM samples, its own may differ
    tokens.ratios     of each token alone, exp(new - old), whatever the level
    tokens.clipped    1 if the clip range stopped a token, else 0

Token lists have an entry for each token of the completion: null if it was read and not sampled, or is in no loss. Six
decimals are kept. A token that ends within a character has no text: the token that completes the character has all of
it. A run that ends or is interrupted before the last update writes what it has: fewer `updates`, and with 0 none of
these values. A run that is killed loses the batch it was working on. A resumed run removes records of steps after the
one that it resumes from.

`record_tokens` is on by default, because tokens show what a policy does and the amount written is limited. In the
quickstart (64 rollouts of 98 tokens) they make JSONL 2.3 times as large, 401 kB a batch, and Parquet 1.2 times, 36 kB.
Studies leave them out.

Cost. In the quickstart, on two idle cores of an AMD EPYC (2026-11-30), recording took 34 and 44 ms of processor time
per batch as JSONL in two runs of 40 and 100 pairs of steps, on both threads together: 1.3 and 1.7 % of a recorded
step, 0.3 % with `record_every: 5`. A step that waits until its file is on the disk takes 6 and 8 % longer on the
clock, 1.1 and 1.7 % if every fifth does; training does not wait. `python tests/benches/recording_cost.py quickstart`
measures it.

With `datasets` and with DuckDB:

    load_dataset("json", data_files="outputs/run/rollouts/*.jsonl")
    load_dataset("parquet", data_files="outputs/run/rollouts/*.parquet")
    duckdb.sql("select step, avg(outcome) from 'outputs/run/rollouts/*.jsonl' group by step")
    duckdb.sql("select step, avg(outcome) from 'outputs/run/rollouts/*.parquet' group by step")

`datasets` takes the types of JSON from the first file, and refuses a later one with other types: another tool's
arguments, or a number where there was none. Parquet has the same types in all files of a version, whatever the data
set and its tools: values of any type are stored as JSON text (`rollout/record_files.py`).

Values of environment variables whose names suggest a key, a token, a secret or a password, and passwords in URLs, are
masked in texts, in tokens and in names of arguments; `secrets.py` says what is not masked. A full disk, or reaching
the limit (`record_megabytes`), ends the recording with a warning, not the run. On a slow disk, batches are left out,
each with a warning. A column of the data set that has the name of one of these keys is in `columns`. `a2tgpo show` and
`a2tgpo view` read versions 1 and 2; version 2 added tokens, ratios, `updates` and `batch`.

    recorder.py     the thread that writes, and everything that can go wrong there
    schedule.py     which batches
    contents.py     records of rounds -> those of the batch, with their credit
    updates.py      what updates did with a batch -> numbers for its turns and tokens
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
