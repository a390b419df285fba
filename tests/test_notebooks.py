"""The notebooks: what their files hold, and what they output when they are run from top to bottom."""

import base64
import re
import time

import pytest
from run_notebooks import LIMIT, NAMES, executed, first_code, outputs_of, read, texts_of

from a2tgpo_trl.credit import METHODS, find_method


PICTURE = 60_000  # the most bytes
# Paths of a particular machine, for example those that begin at its root and have at least two parts.
OF_A_MACHINE = re.compile(r"(?<![\w.:/<)\]}*])(/[\w.-]+){2,}|\b[A-Z]:\\\w|~/\w|\w@\w[\w.-]*:")


def codes(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def strings_of(value) -> list[str]:
    """All texts in a notebook except its pictures."""
    if isinstance(value, dict):
        return [text for key, inside in value.items() if key != "image/png" for text in strings_of(inside)]
    if isinstance(value, list):
        return [text for inside in value for text in strings_of(inside)]
    return [str(value)]


# ---- what is kept


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_keeps_the_outputs_of_a_run_from_top_to_bottom(name):
    notebook = read(name)
    cells = codes(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = outputs_of(notebook)
    assert any("image/png" in output.get("data", {}) for output in outputs) or name == "own_task_lora"
    for output in outputs:
        assert output.output_type != "error" and output.get("name") != "stderr", output
        picture = output.get("data", {}).get("image/png")
        assert picture is None or len(base64.b64decode(picture)) < PICTURE


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_contain_no_machine_specific_paths(name):
    for text in strings_of(read(name)):
        found = OF_A_MACHINE.search(text)
        assert found is None, f"{found[0]!r} in {text[max(0, found.start() - 60) : found.end() + 60]!r}"


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("File /root/.venv/lib/x.py", True),
        ("saved to '/tmp/tmpab12/lora'", True),
        (r"C:\Users\me", True),
        ("~/outputs", True),
        ("me@host:", True),
        ("outputs/lora", False),
        ("<answer>Rome</answer>", False),
        ("step  1/25  reward", False),
        ("1 / 2", False),
        ("Qwen/Qwen3-0.6B", False),
        (r"\frac{a}/{b}", False),
    ],
)
def test_machine_specific_paths_are_distinguished_from_other_slashes(text, is_one):
    assert bool(OF_A_MACHINE.search(text)) is is_one


@pytest.mark.parametrize("name", NAMES)
def test_only_the_first_cell_imports_and_sets_the_hardware(name):
    first, *others = codes(read(name))
    assert "# On a hosted GPU, change this cell alone" in first.source and "quiet_libraries()" in first.source
    for cell in others:
        assert "import " not in cell.source
        assert not re.search(r"\bPOLICY\b|\"(cpu|cuda)\"|bf16=(True|False)", cell.source), cell.source


# ---- run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that runs a notebook; what other libraries print during the imports is dropped."""

    def run(name: str):
        start = time.monotonic()
        notebook = executed(name, tmp_path_factory.mktemp(name))
        assert time.monotonic() - start < LIMIT  # 3 minutes on a quiet machine
        first_code(notebook).outputs = []
        assert not [output for output in outputs_of(notebook) if output.get("name") == "stderr"]
        return notebook

    return run


def before_and_after(lines: list[str], row: str) -> list[float]:
    """The two scores in the table row with this name."""
    line = next(line for line in lines if row in line and "(" in line)
    return [float(score) for score in re.findall(r"(\d\.\d+) \(", line)]


@pytest.mark.slow
def test_quickstart_lora_notebook_raises_exact_match(run):
    lines = texts_of(run("quickstart_lora"))
    assert sum(line.startswith("step ") for line in lines) == 25
    before, after = before_and_after(lines, "exact match")
    assert after > before + 0.2


@pytest.mark.slow
def test_own_task_lora_notebook_raises_accuracy_and_saves_the_adapter(run):
    lines = texts_of(run("own_task_lora"))
    assert sum(line.startswith("step ") for line in lines) == 20
    before, after = before_and_after(lines, "right ")
    assert after > before + 0.2
    assert any("adapter_model.safetensors" in line for line in lines)


NUMBER = re.compile(r"-?\d+\.\d+")


@pytest.mark.slow
def test_one_rollout_notebook_reproduces_its_outputs_and_the_methods_page(run):
    lines, kept = texts_of(run("one_rollout_by_hand")), texts_of(read("one_rollout_by_hand"))
    assert [NUMBER.sub("", line).split() for line in lines] == [NUMBER.sub("", line).split() for line in kept]
    numbers, of_file = ([float(number) for number in NUMBER.findall("\n".join(part))] for part in (lines, kept))
    assert numbers == pytest.approx(of_file, abs=2e-3)
    page = find_method("a2tgpo").__doc__
    for number in ("0.9424", "1.1545", "-0.2773", "-0.5773", "-0.7071"):
        assert number.lstrip("-") in page and any(number in line for line in lines)


@pytest.mark.slow
def test_one_batch_is_credited_by_every_method(run):
    lines = texts_of(run("one_batch_every_method"))
    assert any(re.fullmatch(r"64 rollouts, \d+ turns", line) for line in lines)
    rows = {
        line.split()[0]: [float(number) for number in line.split()[1:]]
        for line in lines
        if line.split()[:1] and line.split()[0] in METHODS
    }
    assert list(rows) == list(METHODS) and all(len(row) == 5 for row in rows.values())
    assert rows["grpo"][2:] == [0.0, 0.0, 0.5] and rows["gspo"] == rows["grpo"]
    assert rows["a2tgpo"][2] > 0 and rows["igpo"][2] > rows["a2tgpo"][2]


def test_every_notebook_has_a_test():
    assert NAMES == ["one_batch_every_method", "one_rollout_by_hand", "own_task_lora", "quickstart_lora"]
