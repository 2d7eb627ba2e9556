"""What the shell has set decides nothing in these tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HOSTILE = {
    **dict.fromkeys(("HF_HUB_OFFLINE", "WANDB_DISABLED", "NO_COLOR", "FORCE_COLOR", "OMP_WAIT_POLICY"), "1"),
    **dict.fromkeys(("HF_ENDPOINT", "http_proxy", "https_proxy", "ALL_PROXY"), "http://127.0.0.1:9"),
    **dict.fromkeys(("HF_HOME", "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "MPLBACKEND"), "/nowhere"),
    **dict.fromkeys(("DINOUNET_WEIGHTS", "DINOUNET_EPOCHS", "MLFLOW_TRACKING_URI", "MASTER_ADDR"), "/nowhere"),
    **dict.fromkeys(("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES", "WORLD_SIZE", "LOCAL_WORLD_SIZE"), "3"),
    **dict.fromkeys(("TORCHELASTIC_RUN_ID", "SLURM_PROCID", "RANK", "LOCAL_RANK", "MASTER_PORT"), "1"),
    **dict.fromkeys(("KMP_BLOCKTIME", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"), "7"),
    **{"HF_TOKEN": "hf_wrong", "PYTHONWARNINGS": "error", "COLUMNS": "20", "TERM": "dumb"},
    **{"LC_ALL": "C", "LANG": "tr_TR", "TZ": "Pacific/Kiritimati"},
}
SELECTION = (
    "cases/test_hub_names.py",
    "test_weights.py",
    "test_processes.py::test_ranks_are_those_of_torchrun_and_srun",
    "test_in_nnunet.py::test_volumes_and_variables_that_mean_nothing_are_refused_before_training",
)


@pytest.mark.slow
def test_tests_pass_whatever_the_shell_has_set() -> None:
    tests = [f"{Path(__file__).parents[1] / name}" for name in SELECTION]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    run = subprocess.run(command, env=os.environ | HOSTILE, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
