"""A page of runs: what is in it, what hostile text does to it (nothing), and what is not a run."""

import base64
import gzip
import hashlib
import json
import random
import re
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path

import pytest
from places import ROOT
from recorded import HOSTILE, drawn, record, with_tokens, write_log, write_records, write_run

from a2tgpo_trl.cli import main
from a2tgpo_trl.rollout.reading import plain
from a2tgpo_trl.view.curves import by_turn, of_records
from a2tgpo_trl.view.groups import MOST_CHARACTERS
from a2tgpo_trl.view.html import LIVE_SCRIPTS, PAGE, SCRIPTS, STYLES, make_page
from a2tgpo_trl.view.run import read_runs


class Reader(HTMLParser):
    """Reads a page: its elements in order, and what is in scripts and styles."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[tuple[str, dict[str, str | None], str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        tag, attrs = self.elements[-1] if self.elements else ("", {})
        if tag in ("script", "style") and data.strip():
            self.inside.append((tag, attrs, data))
        else:
            self.text += data


def data_of(page: str) -> dict[str, object]:
    """What is packed in a page, by the names of its pieces."""
    packed = re.findall(r'<script type="text/plain" id="([\w-]+)">([A-Za-z0-9+/=]*)</script>', page)
    return {name: json.loads(gzip.decompress(base64.b64decode(text))) for name, text in packed}


def page_of(*folders: Path) -> str:
    return make_page(read_runs(folders))


def opened(page: str, run: int = 0, group: int = 0) -> dict:
    """A group as the page opens it."""
    data = data_of(page)
    line = data["index"]["runs"][run]["groups"][group]
    return data[f"piece-{line['piece']}"][line["place"]]


# ---- what is in a page


def test_record_metrics_exclude_rollouts_left_out_of_the_loss():
    scored = {"advantages": [0.1, 0.2, 0.3], "outcome": 1.0, "rewards": {"exact_match": 1.0}}
    excluded = {"advantages": [], "outcome": None, "rewards": {"exact_match": None}}
    expected = {"turns/mean": 3.0, "reward": 1.0, "rewards/exact_match/mean": 1.0}
    assert of_records([scored, excluded]) == expected
    assert of_records([excluded]) == {}


def test_curves_are_the_log_with_scores_before_and_after(tmp_path):
    (run,) = data_of(page_of(write_run(tmp_path / "run", steps=3)))["index"]["runs"]
    assert run["name"] == "run" and run["notes"] == []
    assert run["curves"]["reward"] == [[1, 2, 3, 4, 5, 6], pytest.approx([step / 6 for step in range(1, 7)])]
    assert "loss" not in run["curves"]  # it was NaN
    assert run["scores"]["exact_match"] == [[0, 0.3, pytest.approx(0.2), 0.4], [6, 0.8, pytest.approx(0.7), 0.9]]


def test_evaluations_while_training_are_scores_too(tmp_path):
    folder = write_run(tmp_path / "run", steps=1)
    state = json.loads((folder / "trainer_state.json").read_text())
    state["log_history"].insert(1, {"step": 1, "eval_rewards/exact_match/mean": 0.5})
    (folder / "trainer_state.json").write_text(json.dumps(state))
    (run,) = data_of(page_of(folder))["index"]["runs"]
    assert [point[:2] for point in run["scores"]["exact_match"]] == [[0, 0.3], [1, 0.5], [2, 0.8]]


def test_turn_metrics_are_summed_and_counted_per_step(tmp_path):
    # First turns gain 1 and 3, and one rollout has a second turn, which gains 5 and times out.
    rollouts = [record(0, gains=[1.0]), record(0, gains=[3.0, 5.0], credit=[0.25, -0.5], status="timeout")]
    write_records(tmp_path, {7: rollouts, 9: [record(0, gains=[2.0])]})
    (run,) = read_runs([tmp_path])
    found = by_turn(run)
    assert found["gain"]["steps"] == [7, 9]
    assert [sums[:3] for sums in found["gain"]["sums"]] == [[4.0, 5.0, 0.0], [2.0, 0.0, 0.0]]
    assert [numbers[:3] for numbers in found["gain"]["numbers"]] == [[2, 1, 0], [1, 0, 0]]
    # Advantages are 0.5 plus credit; the answer turn's is 0.5 alone.
    assert found["advantage"]["sums"][0][:3] == pytest.approx([0.75 + 0.75, 0.5 + 0.0, 0.5])
    assert found["credit"]["sums"][0][:3] == pytest.approx([0.5, -0.5, 0.0]) and found["credit"]["numbers"][0][2] == 0
    assert found["survivors"]["sums"][0][:4] == [2, 2, 1, 0] and found["survivors"]["numbers"][0][:4] == [2] * 4
    assert found["failed"]["sums"] == found["status/timeout"]["sums"] and found["failed"]["sums"][0][:2] == [0, 1]
    # A step without the failure still counts its turns.
    assert found["status/timeout"]["numbers"][1][:2] == [1, 1] and "status/tool_error" not in found
    assert "turn_ratio" not in found  # there is no log


def test_the_log_of_ratios_and_clipped_tokens_is_there_by_turn(tmp_path):
    (run,) = data_of(page_of(write_run(tmp_path / "run", steps=1)))["index"]["runs"]
    assert run["turns"]["turn_ratio"]["steps"] == [1, 2]
    assert run["turns"]["turn_ratio"]["sums"][0][:4] == [0.5, 0.5, 0.5, 0.0]
    assert run["turns"]["clip_fraction"]["numbers"][0][:4] == [1, 1, 1, 0]


def test_the_smallest_mean_and_largest_advantage_of_each_step_are_there(tmp_path):
    write_records(tmp_path, {3: [record(0, credit=[0.25]), record(0, outcome_advantage=-1.0, credit=[0.0])]})
    (run,) = data_of(page_of(tmp_path))["index"]["runs"]
    # 0.75, 0.5, -1, -1
    assert run["envelopes"] == {"smallest": [[3], [-1.0]], "mean": [[3], [-0.1875]], "largest": [[3], [0.75]]}


def test_a_group_has_a_line_in_the_table(tmp_path):
    mixed = [record(0, gains=[1.0, 4.0], credit=[0, 0], status="timeout"), record(0, gains=[-2.0], reward=0.0)]
    write_records(tmp_path, {1: [*mixed, record(1)], 5: [record(0, round=2)]})
    (run,) = data_of(page_of(tmp_path))["index"]["runs"]
    first = run["groups"][0]
    assert first == {
        **{"step": 1, "group": 0, "round": 1, "batch": 1, "question": "Who is mayor of Rome?", "rollouts": 2},
        **{"reward": 0.5, "solved": 1, "failed": 1, "spread": 6.0, "failures": 1, "piece": 0, "place": 0},
        "asked": run["groups"][1]["asked"],  # the same prompt
    }
    assert [(one["step"], one["group"], one["round"]) for one in run["groups"]] == [(1, 0, 1), (1, 1, 1), (5, 0, 2)]


def test_batches_of_a_step_are_not_mixed_up(tmp_path):
    write_records(tmp_path, {1: [record(0)]})
    first = tmp_path / "rollouts" / "step-000001-rank-0.jsonl"
    first.with_name("step-000001-rank-0-batch-2.jsonl").write_bytes(first.read_bytes())
    first.with_name("step-000001-rank-1.jsonl").write_bytes(first.read_bytes())
    (run,) = data_of(page_of(tmp_path))["index"]["runs"]
    # Both ranks' rollouts of a group are together.
    assert [(one["batch"], one["rollouts"]) for one in run["groups"]] == [(1, 2), (2, 1)]


def test_an_open_group_has_the_numbers_of_the_records(tmp_path):
    more = {"status": "tool_error", "turn_rewards": {"failed": [0, -1, 0]}}
    one = record(0, gains=[4.5, -1.25], credit=[0.25, -1 / 3], **more)
    write_records(tmp_path, {1: [one, record(0, reward=0.0)]})
    group = opened(page_of(tmp_path))
    assert group["prompt"] == ["Search.", "Who is mayor of Rome?"] and group["answer"] == "Bo"
    first, second = group["rollouts"]
    assert (first["solved"], second["solved"], first["outcome"]) == (True, False, 1.0)
    assert first["values"] == [-9.0, -4.5, -5.75]
    turns = first["turns"]
    assert [turn["advantage"] for turn in turns] == pytest.approx([0.75, 0.5 - 1 / 3, 0.5], abs=1e-6)
    assert [turn["credit"] for turn in turns] == pytest.approx([0.25, -1 / 3, 0.0], abs=1e-6)
    assert [turn["gain"] for turn in turns] == [4.5, -1.25, None] and turns[0]["score"] == 0.5
    assert [turn["status"] for turn in turns] == ["ok", "tool_error", "ok"] and turns[1]["rewards"] == {"failed": -1}
    assert turns[0]["calls"] == [{"text": "search('0: Who is mayor of Rome?')", "status": "ok", "seconds": 0.2}]
    assert turns[0]["said"] == "Let me see." and turns[0]["read"] == ["The mayor of Rome is Bo."]
    assert turns[2]["said"] == "<answer>Bo</answer>" and turns[2]["calls"] == turns[2]["read"] == []


def test_an_open_group_has_the_tokens_of_each_turn_where_they_were_recorded(tmp_path):
    one = with_tokens(record(0), [1.0, 1.5, 0.75], [0, 1, 0])
    write_records(tmp_path, {1: [one, record(0)]})
    first, second = opened(page_of(tmp_path))["rollouts"]
    numbers = {"ratio": [1.0, 1.5, 0.75], "clipped": [0, 1, 0], "logp": [-0.5] * 3}
    assert first["turns"][0]["pieces"] == {"texts": ["Let", " me", " see."], "left": 0, **numbers}
    assert first["turns"][1]["pieces"]["texts"] == ["<answer>Bo</answer>"]  # the tool's answer lies between them
    assert first["turns"][1]["pieces"]["ratio"] == [1.0] and first["turns"][0]["ratio"] == 1.25
    assert [turn["pieces"] for turn in second["turns"]] == [None, None]


def test_only_the_first_tokens_of_a_long_turn_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr("a2tgpo_trl.view.groups.MOST_TOKENS", 2)
    write_records(tmp_path, {1: [with_tokens(record(0), [1.0, 2.0])]})
    pieces = opened(page_of(tmp_path))["rollouts"][0]["turns"][0]["pieces"]
    assert (pieces["texts"], pieces["ratio"], pieces["left"]) == (["Let", " me"], [1.0, 2.0], 1)


def test_schema_1_records_with_a_tokens_column_are_shown(tmp_path):
    file = tmp_path / "rollouts" / "step-000003-rank-0.jsonl"
    file.parent.mkdir()
    old = {**record(0), "schema": 1, "step": 3, "rank": 0, "tokens": 17}
    file.write_text(json.dumps(old) + "\n")
    group = opened(page_of(tmp_path))
    assert group["rollouts"][0]["turns"][0]["pieces"] is None and group["rollouts"][0]["turns"][0]["ratio"] is None


def test_parquet_and_jsonl_records_give_the_same_page(tmp_path):
    records = {1: [with_tokens(record(0), [1.0, 1.5]), record(0, reward=0.0)]}
    for format in ("jsonl", "parquet"):
        write_records(tmp_path / format, records, format)
    jsonl, parquet = (data_of(page_of(tmp_path / format)) for format in ("jsonl", "parquet"))
    assert jsonl["piece-0"] == parquet["piece-0"]
    assert jsonl["index"]["runs"][0]["groups"] == parquet["index"]["runs"][0]["groups"]


def test_credit_beyond_the_outcome_is_left_out_where_the_method_does_not_add_it(tmp_path):
    one = record(0)
    write_records(tmp_path, {1: [{**one, "advantages": [0.1, 0.9]}]})
    page = page_of(tmp_path)
    assert [turn["credit"] for turn in opened(page)["rollouts"][0]["turns"]] == [None, None]
    assert "credit" not in data_of(page)["index"]["runs"][0]["turns"]


def test_credit_is_shown_only_if_it_adds_up_for_the_whole_step(tmp_path):
    # If a method adds no credit, a rollout may still look as if it had some: its last advantage is its outcome's.
    other = {**record(1), "advantages": [0.1, 0.9]}
    write_records(tmp_path, {1: [record(0), other], 2: [record(0)]})
    page = page_of(tmp_path)
    credits = [[turn["credit"] for turn in opened(page, group=one)["rollouts"][0]["turns"]] for one in (0, 1, 2)]
    assert credits == [[None, None], [None, None], [0.25, 0.0]]
    assert data_of(page)["index"]["runs"][0]["turns"]["credit"]["steps"] == [2]


def test_advantages_that_are_no_numbers_leave_the_rest_readable(tmp_path):
    write_records(tmp_path, {1: [{**record(0), "advantages": [None, None], "outcome": None}, record(0)]})
    page = page_of(tmp_path)
    assert opened(page)["rollouts"][0]["turns"][0]["advantage"] is None
    assert data_of(page)["index"]["runs"][0]["envelopes"]["largest"] == [[1], [0.75]]


def test_rollouts_of_a_function_are_shown_by_their_texts(tmp_path):
    turn = {"status": "ok", "calls": None, "text": "find Bo", "read": "Bo is here", "tokens_in": 3, "tokens_out": 2}
    one = {**record(0), "prompt": "Who?", "completion": "find Bo Bo is here", "turns": [turn]}
    write_records(tmp_path, {1: [one]})
    group = opened(page_of(tmp_path))
    (shown,) = group["rollouts"][0]["turns"]
    assert (group["prompt"], shown["said"], shown["read"], shown["calls"]) == (["Who?"], "find Bo", ["Bo is here"], [])


def test_two_runs_have_a_page_with_one_command_and_a_page_of_ours_is_replaced(tmp_path, capsys):
    runs = [str(write_run(tmp_path / name, seed)) for seed, name in enumerate(("one", "two"))]
    file = tmp_path / "new" / "page.html"
    assert main(["view", *runs, "-o", str(file)]) == 0
    assert f"{file}: 96 rollouts" in capsys.readouterr().out
    page = file.read_text()
    assert [run["name"] for run in data_of(page)["index"]["runs"]] == ["one", "two"]
    assert "<title>one and two</title>" in page
    assert main(["view", runs[0], "-o", str(file)]) == 0 and "<title>one</title>" in file.read_text()
    assert [one.name for one in file.parent.iterdir()] == ["page.html"]


def test_large_runs_are_packed_in_pieces_that_hold_each_group_once(tmp_path):
    folder = write_run(tmp_path / "run", steps=4, groups=8, rollouts=8, words=600)
    data = data_of(page_of(folder))
    lines = data["index"]["runs"][0]["groups"]
    pieces = {name: groups for name, groups in data.items() if name != "index"}
    assert len(pieces) > 3 and sum(map(len, pieces.values())) == len(lines) == 32
    for line in lines:
        assert pieces[f"piece-{line['piece']}"][line["place"]]["prompt"][-1].startswith(line["question"][:60])


# ---- the page itself


def test_content_security_policy_allows_only_the_scripts_of_the_page(tmp_path):
    page = page_of(write_run(tmp_path / "run"))
    found = Reader(page)
    (policy,) = [attrs["content"] for tag, attrs in found.elements if attrs.get("http-equiv")]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert set(rules) == {"default-src", "script-src", "style-src", "base-uri", "form-action"}
    for kind, names in (("script", SCRIPTS), ("style", STYLES)):
        texts = [text for tag, attrs, text in found.inside if tag == kind and "type" not in attrs]
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        assert len(texts) == len(names) and rules[f"{kind}-src"] == " ".join(f"'sha256-{one}'" for one in digests)
    assert not any(attrs.get("src") or tag in ("link", "img", "iframe") for tag, attrs in found.elements)
    assert not any("href" in attrs and not attrs["href"].startswith("#") for _, attrs in found.elements)
    assert "sourceMappingURL" not in page


def test_vendored_files_are_packaged_with_their_licence():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = setup["options.package_data"]["a2tgpo_trl.view"].split(", ")
    packaged = {file for pattern in patterns for file in PAGE.parent.glob(pattern) if file.is_file()}
    assert packaged == {file for file in PAGE.rglob("*") if file.is_file()}
    vendored = [folder for folder in (PAGE / "vendor").iterdir()]
    assert len(vendored) == 2 and all("MIT" in (folder / "LICENSE").read_text() for folder in vendored)


def test_our_own_scripts_write_no_html():
    for name in LIVE_SCRIPTS:
        text = (PAGE / name).read_text()
        assert "</script" not in text and "<!--" not in text, name  # the script would end too early
        if not name.startswith("vendor/"):
            assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text), name
            assert ("fetch(" in text) == (name == "live.js"), name
    assert set(LIVE_SCRIPTS) - set(SCRIPTS) == {"live.js"}


# ---- hostile text


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_in_the_data_and_never_in_the_page(text, tmp_path):
    assert len(HOSTILE) >= 30
    clean, folder = tmp_path / "clean", tmp_path / "run"
    for place, words in ((clean, "words"), (folder, text)):
        one = record(0, question=words, said=words, result=words, answer=words, note=words)
        write_records(place, {1: [with_tokens(one, [1.0])]})
        write_log(place, random.Random(0), 2)
    page, other = page_of(folder), page_of(clean)
    # The text changes only the packed data: the page has the same elements, the same scripts, no more.
    pieces = re.compile(r'(<script type="text/plain" id="[\w-]+">)[A-Za-z0-9+/=]*(</script>)')
    assert pieces.sub(r"\1\2", page) == pieces.sub(r"\1\2", other).replace("<title>clean", "<title>run").replace(
        "<h1>clean", "<h1>run"
    )
    group = opened(page)
    turn = group["rollouts"][0]["turns"][0]
    for shown in (group["prompt"][-1], group["answer"], turn["said"], turn["read"][0]):
        assert shown == plain(text) or re.search(r"^(.*) \.\.\. \([\d,]+ characters more\)$", shown, re.DOTALL)
        assert len(shown) < MOST_CHARACTERS + 50 and shown[:1000] == plain(text)[:1000]
        shown.encode("utf-8")


@pytest.mark.parametrize("name", ["<script>alert(1)", '" onload="x', "\u202eevil", "a&b", "-->"])
def test_hostile_run_name_is_escaped(name, tmp_path):
    page = page_of(write_run(tmp_path / name, steps=1))
    found = Reader(page)
    assert plain(name) in found.text and "\u202e" not in page
    assert len([tag for tag, attrs in found.elements if tag == "script" and "type" not in attrs]) == len(SCRIPTS)


# ---- what is missing or broken


def refused(capsys, *words: object) -> str:
    assert main(["view", *map(str, words)]) == 2
    return capsys.readouterr().err


def test_folders_that_are_no_recorded_run_are_refused(tmp_path, capsys):
    assert "There is no folder" in refused(capsys, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "is not a run" in refused(capsys, tmp_path / "empty")
    write_log(tmp_path / "plain", random.Random(0), 2)
    assert "train with --record_every N" in refused(capsys, tmp_path / "plain")
    run = write_run(tmp_path / "run", steps=1)
    assert "is named twice" in refused(capsys, run, run)
    assert not list(Path.cwd().glob("view.html"))


def test_records_of_something_else_are_refused(tmp_path, capsys):
    file = tmp_path / "run" / "rollouts" / "step-000001-rank-0.jsonl"
    file.parent.mkdir(parents=True)
    others = (json.dumps({**record(0), "schema": 99}), json.dumps(record(0)))
    for text in ('{"a": 1}', "no json", *others):
        file.write_text(text + "\n")
        assert "is not a file of" in refused(capsys, tmp_path / "run", "-o", tmp_path / "page.html")
    file.write_bytes(b'{"completion": "\xff"}\n')
    assert "is not a file of rollouts" in refused(capsys, tmp_path / "run", "-o", tmp_path / "page.html")


def test_truncated_last_line_is_left_out_with_a_note(tmp_path, capsys):
    folder = write_run(tmp_path / "run", steps=1)
    file = folder / "rollouts" / "step-000001-rank-0.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    assert main(["view", str(folder), "-o", str(tmp_path / "page.html")]) == 0
    out = capsys.readouterr().out
    assert "its last line was cut off" in out and "11 rollouts" in out
    (run,) = data_of((tmp_path / "page.html").read_text())["index"]["runs"]
    assert "left out" in run["notes"][0]
    file.write_text("{")
    assert "holds no whole record" in refused(capsys, folder, "-o", tmp_path / "page.html")


def test_interrupted_run_is_shown_up_to_its_last_record_or_checkpoint(tmp_path):
    rng = random.Random(0)
    write_records(tmp_path, {3: drawn(rng, 2, 4)})
    (run,) = data_of(page_of(tmp_path))["index"]["runs"]
    assert "no log yet" in run["notes"][0] and run["curves"]["reward"][0] == [3]
    rewards = [one["outcome"] for one in read_runs([tmp_path])[0].records]
    assert run["curves"]["rewards/exact_match/mean"][1] == pytest.approx([sum(rewards) / 8])
    write_log(tmp_path / "checkpoint-4", rng, 4)
    (run,) = data_of(page_of(tmp_path))["index"]["runs"]
    assert "ends with checkpoint-4" in run["notes"][0] and run["curves"]["reward"][0] == [1, 2, 3, 4]


def test_unreadable_log_or_scores_are_an_error(tmp_path, capsys):
    folder = write_run(tmp_path / "run", steps=1)
    for text in ("{", "[]", '{"log_history": [{}]}'):
        (folder / "trainer_state.json").write_text(text)
        assert "is not the log of a run" in refused(capsys, folder, "-o", tmp_path / "page.html")
    (folder / "trainer_state.json").unlink()
    (folder / "evaluation" / "after.json").write_text("{}")
    assert "holds no scores" in refused(capsys, folder, "-o", tmp_path / "page.html")


def test_foreign_output_file_is_replaced_only_with_overwrite(tmp_path, capsys):
    folder, file = write_run(tmp_path / "run", steps=1), tmp_path / "page.html"
    file.write_text("<html>mine</html>")
    assert "--overwrite" in refused(capsys, folder, "-o", file) and file.read_text() == "<html>mine</html>"
    assert main(["view", str(folder), "-o", str(file), "--overwrite"]) == 0 and "a2tgpo view" in file.read_text()
    assert "is a folder" in refused(capsys, folder, "-o", tmp_path)
