"""From a configuration's name to the processes that run: started as asked, or refused with what to do."""

import functools
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from places import HELPERS
from ranks import environment, reports
from torch.distributed.fsdp import StateDictType
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers import AutoModelForCausalLM

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.cli import main as cli
from a2tgpo_trl.launch.launched import check_launch, deepspeed_on_cpu
from a2tgpo_trl.launch.processes import (
    LAUNCHER,
    NOT_SET,
    SEVERAL,
    Start,
    choose_start,
    is_slurm_rank,
    one_gpu,
    rank_of_slurm,
    variables_of,
)
from a2tgpo_trl.recipe.recipe_file import find_launch_config, recipe_folder


SHIPPED = sorted((recipe_folder() / "accelerate").glob("*.yaml"))
# name -> its type, ZeRO stage, processes, and whether it stays on CPUs
KINDS = {
    "single_gpu": ("NO", None, 1, False),
    "multi_gpu": ("MULTI_GPU", None, 8, False),
    "zero2": ("DEEPSPEED", 2, 8, False),
    "zero3": ("DEEPSPEED", 3, 8, False),
    "fsdp2": ("FSDP", None, 8, False),
    "multi_node": ("DEEPSPEED", 3, 16, False),
    "cpu_ddp": ("MULTI_CPU", None, 2, True),
    "cpu_zero2": ("DEEPSPEED", 2, 2, True),
    "cpu_zero3": ("DEEPSPEED", 3, 2, True),
}


@pytest.fixture(autouse=True)
def nothing_launched(monkeypatch):
    """Start these tests as a user starts: not under a launcher."""
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "FSDP_", "SLURM_", "DS_")) or name in ("MASTER_ADDR", "WORLD_SIZE", "RANK"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


# ---- the files


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_accelerate_reads_of_a_configuration_what_its_name_says(file):
    kind, stage, processes, on_cpu = KINDS[file.stem]
    config = load_config_from_file(str(file))
    assert config.distributed_type.value == kind
    assert (config.num_processes, config.use_cpu) == (processes, on_cpu)
    assert config.deepspeed_config.get("zero_stage") == stage
    assert config.mixed_precision is None  # left to the recipe


def test_every_configuration_is_known_here():
    assert {file.stem for file in SHIPPED} == set(KINDS)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_configuration_header_states_purpose_and_launch_command(file):
    header = file.read_text().split("\ncompute_environment")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    for word in (
        "# For",
        "# Launch",
        "# More",
        f"accelerate/{file.stem}.yaml",
    ):
        assert word in header


@pytest.mark.parametrize("name", [name for name, (_, stage, *_) in KINDS.items() if stage])
def test_deepspeed_takes_accumulation_clipping_and_precision_from_the_recipe(name, monkeypatch, tmp_path):
    for variable, value in variables_of(find_launch_config(name)).items():
        monkeypatch.setenv(variable, value)
    plugin = DeepSpeedPlugin()
    config = plugin.deepspeed_config
    assert plugin.zero_stage == config["zero_optimization"]["stage"] == KINDS[name][1]
    assert config["gradient_accumulation_steps"] == config["gradient_clipping"] == "auto"
    saves_whole = config["zero_optimization"].get("stage3_gather_16bit_weights_on_model_save")
    assert (plugin.zero3_init_flag and saves_whole) == (plugin.zero_stage == 3)
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")  # otherwise the settings would look for the other processes
    args = A2TGPOConfig(str(tmp_path), bf16=True, use_cpu=True)
    assert args.mixed_precision == "bf16"  # although the configuration was read


def test_fsdp2_wraps_layers_and_saves_the_model_whole(monkeypatch):
    for variable, value in variables_of(find_launch_config("fsdp2")).items():
        monkeypatch.setenv(variable, value)
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy and plugin.transformer_cls_names_to_wrap is None
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT


def test_a_configuration_is_found_by_its_name_or_its_path(tmp_path):
    assert find_launch_config("zero2").name == "zero2.yaml"
    mine = tmp_path / "mine.yaml"
    mine.write_text("distributed_type: 'NO'\n")
    assert find_launch_config(str(mine)) == mine
    with pytest.raises(
        ValueError, match="configuration of Accelerate 'zero33'. Did you mean 'zero3'.*cpu_ddp, cpu_zero2"
    ):
        find_launch_config("zero33")


# ---- how processes are started


def words(name: str, *more: str) -> list[str]:
    return [*LAUNCHER, "--config_file", str(find_launch_config(name)), *more]


ON_CPUS, DEEPSPEED_ON_CPUS = {"ACCELERATE_USE_CPU": "true"}, {"DS_ACCELERATOR": "cpu"}


@pytest.mark.parametrize(
    ("name", "processes", "gpus", "more", "variables"),
    [
        ("single_gpu", None, 1, [], {}),
        ("single_gpu", None, 8, [], {"CUDA_VISIBLE_DEVICES": "0"}),
        ("multi_gpu", 2, 2, [], {}),
        ("zero2", None, 8, [], {}),
        ("fsdp2", 4, 8, [], {}),
        ("multi_node", None, 8, [], {}),  # 16 processes on two machines
        ("cpu_zero3", None, 0, [], DEEPSPEED_ON_CPUS),
        ("cpu_zero2", 3, 8, [], DEEPSPEED_ON_CPUS),
        ("cpu_ddp", 1, 0, [], ON_CPUS),
        # For these, Accelerate would start only one process.
        ("cpu_ddp", None, 0, SEVERAL, ON_CPUS),
        ("cpu_ddp", 3, 8, SEVERAL, ON_CPUS),
        ("single_gpu", 2, 0, SEVERAL, ON_CPUS),
    ],
)
def test_launch_command_has_the_options_and_variables_of_the_configuration(name, processes, gpus, more, variables):
    number = ["--num_processes", str(processes)] if processes else []
    assert choose_start(find_launch_config(name), processes, gpus) == Start([*words(name, *number), *more], variables)


def test_num_processes_without_a_configuration_uses_accelerate_unless_one():
    for gpus, seen in ((0, {}), (1, {}), (8, {"CUDA_VISIBLE_DEVICES": "0"})):
        assert choose_start(None, None, gpus) == choose_start(None, 1, gpus) == Start([], seen)
    assert choose_start(None, 4, 8) == Start([*LAUNCHER, "--num_processes", "4", *NOT_SET])
    assert choose_start(None, 2, 0) == Start([*LAUNCHER, "--num_processes", "2", *NOT_SET, *SEVERAL], ON_CPUS)


def test_one_process_takes_the_first_visible_gpu():
    assert one_gpu({"CUDA_VISIBLE_DEVICES": "6,7"}, 2) == {"CUDA_VISIBLE_DEVICES": "6"}
    assert one_gpu({}, 2) == {"CUDA_VISIBLE_DEVICES": "0"} and one_gpu({"CUDA_VISIBLE_DEVICES": "6"}, 1) == {}


@pytest.mark.parametrize(
    ("name", "processes", "gpus", "said"),
    [
        (None, 0, 0, "at least 1; got 0"),
        (None, 4, 2, "asks for 4 processes on this machine, which has 2 GPUs. Give --num_processes 2"),
        (
            "zero2",
            None,
            4,
            "zero2.yaml asks for 8 processes on this machine, which has 4 GPUs. Give --num_processes 4",
        ),
        ("zero3", None, 0, "has 0 GPUs. On CPUs, use the configuration cpu_ddp"),
        ("fsdp2", 1, 0, "has 0 GPUs. On CPUs, use the configuration cpu_ddp"),
        ("single_gpu", 2, 2, "distributed_type NO, with which Accelerate starts one process instead of several. Use"),
    ],
)
def test_impossible_launch_requests_are_refused_with_a_remedy(name, processes, gpus, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        choose_start(find_launch_config(name) if name else None, processes, gpus)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "distributed_type: FSDP\nuse_cpu: true\nnum_processes: 2",
            "on CPUs, Accelerate runs DDP instead of FSDP",
        ),
        ("distributed_type: MULTI_GPU\nnum_proceses: 2", "unknown keys"),  # Accelerate's own words
        ("num_processes: 2", "distributed_type"),
    ],
)
def test_invalid_configuration_is_one_line_and_exit_code_2(text, said, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text(text + "\n")
    assert cli(["train", "quickstart", "--config_file", str(file)]) == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1


# ---- runs that are not what was asked for


@pytest.fixture
def one_process(tmp_path):
    """Settings and accelerator of a process that no launcher has started."""
    args = A2TGPOConfig(str(tmp_path), bf16=False, use_cpu=True)
    return args, Accelerator(cpu=True)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"WORLD_SIZE": "2"}, "2 processes were started, but this one sees 1.*ACCELERATE_USE_CPU=true"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP was requested, but Accelerate runs one process.*cpu_zero3"),
        ({"ACCELERATE_USE_DEEPSPEED": "True"}, "DeepSpeed was requested, but Accelerate runs one process.*Unset it"),
        (
            {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"},
            "several processes but started one.*cpu_ddp",
        ),
    ],
    ids=str,
)
def test_run_differing_from_the_launch_variables_is_refused(told, said, one_process):
    with pytest.raises(ValueError, match=said):
        check_launch(*one_process, told)


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "ACCELERATE_MIXED_PRECISION": "no"},  # torchrun, one process
        {"MASTER_ADDR": "127.0.0.1"},  # from the user's shell
        {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_FSDP": "false", "ACCELERATE_USE_DEEPSPEED": "0"},
    ],
    ids=str,
)
def test_run_matching_the_launch_variables_is_accepted(told, one_process):
    check_launch(*one_process, told)


def test_deepspeed_on_cpu_is_detected_from_the_environment():
    assert deepspeed_on_cpu({"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu"})
    assert not deepspeed_on_cpu({"DS_ACCELERATOR": "cpu"}) and not deepspeed_on_cpu({})


SHORT = [
    *("--config", "quickstart", "--max_steps", "2", "--eval_rows", "0", "--per_device_train_batch_size", "8"),
    *("--gradient_accumulation_steps", "2", "--max_completion_length", "128", "--save_strategy", "steps"),
    *("--task_kwargs", '{"train_questions": 16, "test_questions": 12}', "--save_steps", "1"),
    *("--reward_funcs", f"{HELPERS / 'witness.py'}:witness", "exact_match"),
]


@pytest.mark.slow
def test_accelerate_launch_that_starts_one_process_of_two_does_not_train(tmp_path):
    launched = [*words("cpu_ddp"), "-m", "a2tgpo_trl.train", *SHORT, "--output_dir", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, *launched], env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "several processes but started one" in done.stderr
    assert not list((tmp_path / "out").rglob("*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("fsdp2", ["--use_cpu", "true"], "FSDP was requested, but Accelerate runs MULTI_CPU"),
        ("cpu_zero2", ["--use_cpu", "false"], "2 processes were started, but this one sees 1.*Set use_cpu to true"),
        ("multi_gpu", [], "2 processes were started, but this one sees 1.*ACCELERATE_USE_CPU=true"),
    ],
)
def test_launch_without_sharding_or_joining_does_not_train(name, options, said, tmp_path):
    config = ["--config_file", str(find_launch_config(name)), "--num_processes", "2"]
    launched = [
        *LAUNCHER,
        *config,
        "-m",
        "a2tgpo_trl.train",
        *SHORT,
        *options,
        "--output_dir",
        str(tmp_path / "out"),
    ]
    done = subprocess.run([sys.executable, *launched], env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and re.search(said, done.stderr), done.stderr
    assert not list((tmp_path / "out").rglob("*"))


# ---- two processes, for real

REAL = {
    "cpu_ddp": {"type": "MULTI_CPU", "wrapped": "DistributedDataParallel", "zero_stage": 0},
    "cpu_zero2": {"type": "DEEPSPEED", "wrapped": "DeepSpeedEngine", "zero_stage": 2},
    "cpu_zero3": {"type": "DEEPSPEED", "wrapped": "DeepSpeedEngine", "zero_stage": 3},
}


def check_trained(found: list[dict], expected: dict, folder: Path, steps: int) -> None:
    """Check that each rank saw what was asked for and that the saved model can be read like any other."""
    assert len(found) == 2
    for rank in found:
        assert (rank["processes"], rank["device"]) == (2, "cpu")
        assert {key: rank[key] for key in expected} == expected
        if expected["type"] == "DEEPSPEED":  # gradient_accumulation_steps and max_grad_norm of the recipe
            assert (rank["accumulation"], rank["clipping"]) == (2, 1.0)
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == steps and all(map(math.isfinite, losses))
    for saved in (folder, folder / "checkpoint-1"):
        assert sum(parameter.numel() for parameter in AutoModelForCausalLM.from_pretrained(saved).parameters()) > 10**6


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_train_command_runs_on_two_processes_and_resumes(name, tmp_path):
    folder = tmp_path / "run"
    command = ["-m", "a2tgpo_trl", "train", "quickstart", "--config_file", name, "--num_processes", "2", *SHORT[2:]]
    command += ["--output_dir", str(folder)]
    check_trained(reports(tmp_path, command, 1, 500, WITNESS=str(tmp_path)) + rank_1(tmp_path), REAL[name], folder, 2)
    again = [*command, "--max_steps", "3", "--resume_from_checkpoint", "true"]
    check_trained(reports(tmp_path, again, 1, 500, WITNESS=str(tmp_path)) + rank_1(tmp_path), REAL[name], folder, 3)


def rank_1(folder: Path) -> list[dict]:
    """The second rank's report, for a command that starts its processes itself."""
    return [json.loads((folder / "rank1.json").read_text())]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu_zero2", "cpu_zero3"])
def test_plain_accelerate_launch_needs_nothing_but_the_configuration(name, tmp_path):
    launched = [*words(name), "-m", "a2tgpo_trl.train", *SHORT, "--output_dir", str(tmp_path / "run")]
    found = reports(tmp_path, launched, 1, 500, WITNESS=str(tmp_path)) + rank_1(tmp_path)
    check_trained(found, REAL[name], tmp_path / "run", 2)


@pytest.mark.slow
def test_fsdp2_saves_the_whole_model_and_resumes(tmp_path):
    # Forced onto CPUs, as in `unequal_turns`.
    folder = tmp_path / "run"
    program = [str(HELPERS / "sharded_on_cpu.py"), *SHORT, "--use_cpu", "true", "--output_dir", str(folder)]
    told = {**variables_of(find_launch_config("fsdp2"), 2), "WITNESS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    expected = {"type": "FSDP", "wrapped": "FSDPQwen3ForCausalLM", "zero_stage": 0}
    check_trained(reports(tmp_path, program, 2, 500, **told), expected, folder, 2)
    again = [*program, "--max_steps", "3", "--resume_from_checkpoint", "true"]
    found = reports(tmp_path, again, 2, 500, **told)
    assert all("DTensor" in rank["parameters"] for rank in found)
    check_trained(found, expected, folder, 3)


# ---- SLURM

STEP = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
MEETING = {"MASTER_ADDR": "node0", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(("own", "found"), [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_gomp_spincount_is_limited_unless_the_user_sets_it(own, found, monkeypatch):
    started = []
    monkeypatch.setattr(os, "execve", lambda *call: started.append(call))
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    cli(["train", "quickstart"])
    ((_, words, variables),) = started
    assert words[1:3] == ["-m", "a2tgpo_trl.train"] and variables["GOMP_SPINCOUNT"] == found


def test_a_task_of_slurm_is_a_rank_where_there_are_several_on_a_machine():
    assert is_slurm_rank(STEP)
    assert not is_slurm_rank({})
    assert not is_slurm_rank({**STEP, "SLURM_STEP_NUM_TASKS": "2"})  # one per machine, which starts its ranks
    start = rank_of_slurm(find_launch_config("zero3"), None, {**STEP, **MEETING})
    assert start.words == []
    ranks = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    deepspeed = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    assert {**ranks, **deepspeed}.items() <= start.variables.items()


def test_slurm_tasks_without_address_or_of_wrong_number_are_refused():
    with pytest.raises(ValueError, match="Set MASTER_ADDR and MASTER_PORT, as in recipes/multi_node.slurm"):
        rank_of_slurm(find_launch_config("zero3"), None, STEP)
    with pytest.raises(ValueError, match="--num_processes 8: srun has already started 4 tasks"):
        rank_of_slurm(find_launch_config("zero3"), 8, {**STEP, **MEETING})


SRUN = """#!/usr/bin/env bash
# Stands for a cluster: starts two tasks on this machine, and ends with the highest of their exit codes.
printf '%s\\n' "$*" >> "$CLUSTER/started"
[ -n "${EXIT:-}" ] && exit "$EXIT"
while [[ "$1" == --* ]]; do shift; done
shift  # a2tgpo
for task in 0 1; do
    SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NUM_NODES=1 SLURM_PROCID=$task SLURM_LOCALID=$task \\
        "$PYTHON" -m a2tgpo_trl "$@" &
    tasks[$task]=$!
done
highest=0
for task in 0 1; do
    wait "${tasks[$task]}"; code=$?
    [ $code -gt $highest ] && highest=$code
done
exit $highest
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then echo 127.0.0.1; else printf '%s\\n' "$*" >> "$CLUSTER/asked"; fi
"""


def cluster(folder: Path, **more: str) -> dict[str, str]:
    """Variables with which the job's script finds stand-ins for SLURM's two commands."""
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    path = {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHON": sys.executable, "CLUSTER": str(folder)}
    return {**path, "SLURM_JOB_NODELIST": "node[0-3]", "SLURM_JOB_ID": "17", **more}


def sbatch(folder: Path, *options: str, **more: str) -> subprocess.CompletedProcess:
    script = ["bash", str(recipe_folder() / "multi_node.slurm"), "--output_dir", str(folder / "run"), *options]
    variables = environment(**cluster(folder, **more))
    return subprocess.run(script, env=variables, capture_output=True, text=True, timeout=500, cwd=folder)


@pytest.mark.parametrize(("code", "requeued"), [("75", True), ("0", False), ("1", False), ("143", False)])
def test_slurm_job_requeues_itself_after_exit_code_75_only(code, requeued, tmp_path):
    done = sbatch(tmp_path, EXIT=code)
    assert done.returncode == int(code), done.stderr
    assert (tmp_path / "asked").exists() == requeued
    if requeued:
        assert (tmp_path / "asked").read_text() == "requeue 17\n"
    assert "--resume_from_checkpoint" not in (tmp_path / "started").read_text()


def test_slurm_job_resumes_from_a_complete_checkpoint(tmp_path):
    (tmp_path / "run" / "checkpoint-80").mkdir(parents=True)
    sbatch(tmp_path, EXIT="0")
    assert "--resume_from_checkpoint" not in (tmp_path / "started").read_text()  # it was never finished
    (tmp_path / "run" / "checkpoint-80" / "manifest.json").touch()
    sbatch(tmp_path, "--credit", "grpo", EXIT="0")
    started = (tmp_path / "started").read_text()
    assert "a2tgpo train multi_node --config_file multi_node" in started and "--credit grpo" in started
    assert started.rstrip().endswith("--resume_from_checkpoint true")


@pytest.mark.slow
def test_tasks_that_slurm_starts_train_together(tmp_path):
    port = {"MASTER_PORT": "29611", "RECIPE": "quickstart", "LAUNCH": "cpu_zero2", "WITNESS": str(tmp_path)}
    done = sbatch(tmp_path, *SHORT[2:], **port)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    check_trained(found, REAL["cpu_zero2"], tmp_path / "run", 2)


# ---- recipes for many GPUs

# recipe -> processes that its header starts, and rollouts of a step and of a batch
GPUS = {
    "lora_24gb": (1, 64, 64),
    "colocate_80gb": (1, 256, 256),
    "paper_8gpu_colocate": (8, 128, 1024),
    "paper_8gpu_server": (4, 128, 1024),
    "multi_node": (32, 128, 1024),
}


@pytest.mark.parametrize("name", GPUS)
def test_batches_of_a_recipe_divide_over_its_processes_and_into_groups(name):
    recipe = yaml.safe_load((recipe_folder() / f"{name}.yaml").read_text())
    processes, of_step, of_batch = GPUS[name]
    together = recipe["per_device_train_batch_size"] * processes
    assert together * recipe["gradient_accumulation_steps"] == of_step
    assert recipe.get("generation_batch_size", of_step) == of_batch and of_batch % of_step == 0
    assert of_step % recipe["num_generations"] == 0
    # An evaluation's 300 questions are shared by all processes; prompts of the world fit before the completion.
    assert recipe["per_device_eval_batch_size"] * processes % recipe["num_generations_eval"] == 0
    if "vllm_max_model_length" in recipe:
        assert recipe["vllm_max_model_length"] >= recipe["max_completion_length"] + 1000
    header = (recipe_folder() / f"{name}.yaml").read_text().split("\nmodel_name_or_path")[0]
    if recipe.get("vllm_mode") == "server":  # it refuses a turn that might not fit: prompts, and a completion twice
        assert int(re.search(r"--max_model_len (\d+)", header)[1]) >= 2000 + 2 * recipe["max_completion_length"]
    assert "# Memory" in header and "# Time" in header and "not measured on a GPU" in header


SAVES = """
import sys, time
try:
    print("started", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)
    print("saved", flush=True)
    sys.exit(130)
"""


def test_the_launcher_of_one_process_waits_for_it_after_ctrl_c(tmp_path):
    (tmp_path / "saves.py").write_text(SAVES)
    words = [sys.executable, *LAUNCHER, "--num_processes", "1", "--cpu", str(tmp_path / "saves.py")]
    # Processes started in the background may have been told to ignore the interrupt, and pass that on.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    launcher = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen, start_new_session=True
    )
    try:
        assert launcher.stdout.readline() == "started\n"
        os.killpg(launcher.pid, signal.SIGINT)  # as a terminal does
        printed, errors = launcher.communicate(timeout=60)
    finally:
        launcher.kill()
    assert (launcher.returncode, printed) == (130, "saved\n"), errors
    assert "Traceback" not in errors
