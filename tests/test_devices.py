"""On an accelerator: training mixes no tensors of two devices and, in float32, logs a CPU's numbers up to rounding.

The accelerator is pretended (`pretended_device.py`), so this says nothing about the kernels of GPUs.
"""

import math
import subprocess
import sys

import pytest
from places import HELPERS
from ranks import reports
from training import without_times


REFUSED = """
import pretended_device, torch
on, off = torch.ones(3, device="pretended"), torch.ones(3)
refused = {
    "sum": lambda: on + off,
    "cat": lambda: torch.cat([on, off]),
    "written": lambda: on.add_(off),
    "summed": lambda: torch.tensor(0.0).add_(on.sum()),
    "indexed": lambda: off[torch.zeros(2, dtype=torch.long, device="pretended")],
    "drawn": lambda: torch.rand(3, device="pretended", generator=torch.Generator()),
    "numpy": lambda: on.numpy(),
}
for name, action in refused.items():
    try:
        action()
    except (RuntimeError, TypeError) as error:
        if any(words in str(error) for words in ("two devices", "another device", "numpy view")):
            print(name)
assert (on + torch.tensor(1.0)).tolist() == [2, 2, 2] and on[torch.tensor([0])].cpu().item() == 1
assert torch.rand(3, device="pretended", generator=torch.Generator("pretended")).device.type == "pretended"
"""


def test_the_pretended_device_refuses_what_a_gpu_refuses():
    ran = subprocess.run([sys.executable, "-c", REFUSED], cwd=HELPERS, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.split() == ["sum", "cat", "written", "summed", "indexed", "drawn", "numpy"]


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> dict[str, dict[str, list[dict]]]:
    """What each run logged, by device and run."""
    found = {}
    for device in ("cpu", "pretended"):
        folder = tmp_path_factory.mktemp(device)
        program = [str(HELPERS / "runs_on_a_device.py"), device, str(folder)]
        # A GPU would be preferred to the device that is pretended.
        (found[device],) = reports(folder, program, processes=1, timeout=550, CUDA_VISIBLE_DEVICES="")
    return found


@pytest.mark.parametrize("run", ["all weights", "adapter", "no gains"])
def test_training_logs_the_same_numbers_on_an_accelerator_as_on_a_cpu(run, logs):
    on_cpu, there = (without_times(logs[device][run]) for device in ("cpu", "pretended"))
    assert len(on_cpu) == len(there) >= 3
    for expected, found in zip(on_cpu, there, strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert on_cpu[0]["grad_norm"] > 0 and on_cpu[0]["tools/search/ok"] > 0


def test_training_in_16_bits_on_an_accelerator_measures_its_rounding(logs):
    steps = [entry for entry in logs["pretended"]["16 bits"] if "loss" in entry]
    assert len(steps) == 2 and all(math.isfinite(step["loss"]) and step["grad_norm"] > 0 for step in steps)
    assert all(0.001 < step["gain/floor"] < 1 for step in steps)
