"""Records in files of either format: what goes in comes out, and types are the same whatever a column holds."""

import json
from typing import Any, get_type_hints

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from recorded import record

from a2tgpo_trl.rollout.record_files import FORMATS, TEXTS, encoded, read_records, schema
from a2tgpo_trl.rollout.records import CallRecord, Record, TokensRecord, TurnRecord, make_records


NOTHING = {"outcome": None, "outcome_advantage": None}  # unscored


def written(folder, records: list[dict], format: str = "parquet", name: str = "file") -> list[dict]:
    file = folder / f"{name}.{format}"
    file.write_bytes(encoded(records, format))
    return read_records(file)


def full() -> dict:
    """A record with everything that it may have."""
    tokens = {"ids": [7, None, 9], "sampled": [1, 0, 1], "texts": ["a", None, "é"]}
    tokens |= {"logps": [-0.5, None, -1.25], "ratios": [1.0, None, 0.5], "clipped": [0, None, 1]}
    more: dict[str, Any] = {"tokens": tokens, "prompt_ids": [1, 2], "updates": 2, "states": [0, 3]}
    more |= {"ratios": [1.0, None], "clip_fractions": [0.5, 0.0], "turn_rewards": {"failed": [0.0, -1.0]}}
    return {**record(3, status="timeout"), **more, "schema": 2, "step": 5, "rank": 1, "batch": 1, "hops": 4}


@pytest.mark.parametrize("format", FORMATS)
def test_records_round_trip_in_each_format(format, tmp_path):
    of_function = {"status": "ok", "calls": None, "tokens_out": 2, "tokens_in": 0, "seconds": 0.0, "cut": False}
    of_function |= {"reward": None, "text": "a", "read": ""}
    without = {"prompt": "Who?", "completion": "a", "rewards": {"f1": None}, "tool_turns": 0, **NOTHING}
    records = [full(), {**record(0), "turns": [of_function], "ended": None, "outcome_advantage": None}, without]
    assert written(tmp_path, records, format) == records


def test_types_of_columns_are_the_same_in_all_files(tmp_path):
    def mixed(answer: Any, arguments: Any, column: Any) -> dict:
        one = record(0)
        one["turns"][0]["calls"][0]["arguments"] = arguments
        return {**one, "answer": answer, "own": column}

    answers = [
        mixed("Bo", {"query": "a"}, 1),
        mixed(["Bo", "Al"], "no object", {"deep": [None]}),
        mixed(None, None, None),
    ]
    for number, one in enumerate(answers):
        assert written(tmp_path, [one], name=f"file-{number}") == [
            {name: value for name, value in one.items() if value is not None or name == "own"}
        ]
    schemas = [parquet.read_schema(file) for file in sorted(tmp_path.glob("*.parquet"))]
    assert all(one.equals(schema()) for one in schemas) and len(schemas) == 3


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "columns",
    [
        {"values": "high", "turns": [{"calls": None, "mine": 1}]},
        {"tokens": {"mine": 1}, "columns": [1], "group": 2**80, "hops": 3},
        {"rewards": None, "completion": "theirs", "step": [], "row": 4},
    ],
)
def test_a_column_of_the_row_may_have_the_name_of_a_key(columns, format, tmp_path):
    prompt = [{"role": "user", "content": "Who?"}]
    (one,) = make_records([columns], [prompt], ["a"], torch.tensor([[1.0]]), ["f1"], None)
    assert one["completion"] == "a" and one["rewards"] == {"f1": 1.0}
    kept = one["columns"] | {name: value for name, value in one.items() if name == "hops"}
    assert kept == columns and not {"values", "turns", "tokens", "step", "row"} & one.keys()
    assert written(tmp_path, [{**one, **NOTHING}], format) == [{**one, **NOTHING}]


def test_each_key_of_a_record_has_a_column():
    columns = {field.name: field.type for field in schema()}
    assert get_type_hints(Record).keys() - {"row"} <= columns.keys()  # only evaluations have `row`
    assert set(TEXTS) <= columns.keys()
    turn, tokens = columns["turns"].value_type, columns["tokens"]
    call = next(field.type for field in turn if field.name == "calls").value_type
    for kind, structure in ((TurnRecord, turn), (CallRecord, call), (TokensRecord, tokens)):
        assert get_type_hints(kind).keys() == {field.name for field in structure}


def test_file_that_is_not_parquet_is_an_error(tmp_path):
    file = tmp_path / "file.parquet"
    for content in (b"", b"no Parquet", encoded([full()], "parquet")[:-9]):
        file.write_bytes(content)
        with pytest.raises(ValueError):
            read_records(file)


def test_values_that_json_does_not_know_are_text_in_both(tmp_path):
    one = {"prompt": "Who?", "completion": "a", "rewards": {}, **NOTHING, "when": pa.scalar(3)}
    for format in FORMATS:
        assert written(tmp_path, [one], format)[0]["when"] == str(pa.scalar(3))
    assert json.loads(encoded([one], "jsonl"))["when"] == "3"


def test_parquet_file_without_record_columns_is_refused(tmp_path):
    other = tmp_path / "other.parquet"
    parquet.write_table(pa.table({"turns": [3]}), other)
    with pytest.raises(ValueError, match="it lacks the columns advantages, answer"):
        read_records(other)
