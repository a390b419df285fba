"""records <-> the content of a file, as JSONL or as Parquet.

JSONL has one record per line, unchanged. In Parquet the columns and their types are the same in all files of a
version, so that files of different runs can be read together:

    whole numbers     schema, step, rank, batch, round, group, tool_turns, updates; a list of them: states, prompt_ids
    numbers           outcome, outcome_advantage; one or none for each turn: values, gains, advantages, scores, ...
    turns, tokens     lists of structures, and a structure of lists; arguments of calls as JSON text
    JSON text         prompt, completion, answer, rewards, turn_rewards; and all columns of the row, in `columns`

    duckdb.sql("select rewards->>'exact_match', columns->>'hops' from 'outputs/run/rollouts/*.parquet'")

`read_records` returns the same records for both, except that Parquet keeps values per token in 32 bits.
"""

import json
from collections.abc import Callable, Sequence, Set
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .records import Record, read_jsonl, with_columns


if TYPE_CHECKING:
    import pyarrow

FORMATS = ("jsonl", "parquet")
TEXTS = ("prompt", "completion", "answer", "rewards", "turn_rewards")  # as JSON
COLUMNS = "columns"  # of the row
# These may be None in a record. Others that have no value are absent.
NONE_IS_KNOWN = {"outcome", "outcome_advantage", "ended"}
OF_FUNCTIONS = ("text", "read")  # of turns that a rollout function made


def encoded(records: Sequence[Record], format: str) -> bytes:
    """The content of a file with these records."""
    return _parquet(records) if format == "parquet" else b"".join(f"{_json(record)}\n".encode() for record in records)


def read_records(path: Path) -> list[Record]:
    """The records of a file, whose name tells its format. Raises a ValueError if it is not a file of records."""
    return _read_parquet(path) if path.suffix == ".parquet" else read_jsonl(path)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


# ---- Parquet


@cache
def schema() -> "pyarrow.Schema":
    """The schema of a file of version 2."""
    import pyarrow as pa

    numbers, whole_numbers = pa.list_(pa.float64()), pa.list_(pa.int32())
    call = {
        **{"name": pa.string(), "arguments": pa.string(), "status": pa.string(), "result": pa.string()},
        **{"seconds": pa.float64(), "attempts": pa.int32(), "made": pa.bool_(), "changes_state": pa.bool_()},
    }
    turn = {
        **{"status": pa.string(), "calls": pa.list_(pa.struct(call)), "tokens_out": pa.int32()},
        **{"tokens_in": pa.int32(), "seconds": pa.float64(), "cut": pa.bool_(), "reward": pa.float64()},
        **{"text": pa.string(), "read": pa.string()},
    }
    tokens = {
        **{"ids": whole_numbers, "sampled": pa.list_(pa.int8()), "texts": pa.list_(pa.string())},
        **{"logps": pa.list_(pa.float32()), "ratios": pa.list_(pa.float32()), "clipped": pa.list_(pa.int8())},
    }
    of_turns = ("values", "gains", "advantages", "scores", "clip_scale", "ratios", "clip_fractions")
    columns = {
        **dict.fromkeys(("schema", "step", "rank", "batch", "round", "group"), pa.int64()),
        **dict.fromkeys(TEXTS, pa.string()),
        **{"tool_turns": pa.int32(), "turns": pa.list_(pa.struct(turn)), "ended": pa.string(), "excluded": pa.bool_()},
        **{"outcome": pa.float64(), "outcome_advantage": pa.float64(), "updates": pa.int32()},
        **dict.fromkeys(of_turns, numbers),
        **{"states": whole_numbers, "prompt_ids": whole_numbers, "tokens": pa.struct(tokens), COLUMNS: pa.string()},
    }
    return pa.schema(columns)


def _parquet(records: Sequence[Record]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    names = {*schema().names} - {COLUMNS}  # once, because Arrow makes them at each access
    rows = [_row(record, names) for record in records]
    file = BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema()), file, compression="zstd")
    return file.getvalue()


def _row(record: Record, names: Set[str]) -> dict[str, Any]:
    """A record as a row of a file with columns of these names and one for all columns of the data set."""
    others: dict[str, Any] = {**record}
    columns = others.pop(COLUMNS, {})
    row = {name: others.pop(name) for name in names & others.keys()}
    row[COLUMNS] = _json({**others, **columns})
    row |= {name: _json(row[name]) for name in TEXTS if row.get(name) is not None}
    if "turns" in row:
        row["turns"] = [{**turn, "calls": _with_arguments(turn["calls"], _json)} for turn in row["turns"]]
    return row


def _with_arguments(calls: Any, changed: Callable[[Any], Any]) -> Any:
    return None if calls is None else [{**call, "arguments": changed(call["arguments"])} for call in calls]


def _read_parquet(path: Path) -> list[Record]:
    from pyarrow import parquet

    if lacking := sorted({*schema().names} - {*parquet.read_schema(path).names}):
        raise ValueError(f"it lacks the columns {', '.join(lacking)}")
    try:
        return list(map(_record, parquet.read_table(path).to_pylist()))
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"a column has an unexpected type: {error!r}") from error


def _record(row: dict[str, Any]) -> Record:
    """The record that a row of a file was made from."""
    found = with_columns(json.loads(row.pop(COLUMNS)))
    for name, value in row.items():
        known_none = name in NONE_IS_KNOWN and (name != "ended" or row["turns"] is not None)
        if value is None and not known_none:
            continue
        found[name] = json.loads(value) if name in TEXTS else value
    if row["turns"] is not None:
        found["turns"] = list(map(_turn, row["turns"]))
    if row["tokens"] is not None:
        found["tokens"] = {name: values for name, values in row["tokens"].items() if values is not None}
    return cast(Record, found)


def _turn(turn: dict[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in turn.items() if name not in OF_FUNCTIONS or value is not None}
    return {**known, "calls": _with_arguments(turn["calls"], json.loads)}
