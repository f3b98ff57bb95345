"""benchmarks/gpu.py without a GPU: its checks run, its arms say so; and the sums of its profile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
NAMES = {
    "nvjet_sm90_tst_192x192_64x3_1x2_h_bz_coopB_splitK_NTN": "products",
    "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd, cutlass::bfloat16_t>": "attention",
    "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26": "attention",
    "void at::native::multi_tensor_apply_kernel<at::native::FusedOptimizerTensorListMetadata<4>": "optimiser",
    "triton_per_fused_add_native_dropout_native_layer_norm_view_0": "compiled",
    "norm_backward": "fused",
    "gelu_forward": "fused",
    "void at::native::vectorized_layer_norm_kernel<c10::BFloat16, float, false>": "norms",
    "void at::native::fused_dropout_kernel_vec<c10::BFloat16, float, unsigned int, 1, 8, bool>": "dropout",
    "void at::native::reduce_kernel<128, 4, at::native::ReduceOp<c10::BFloat16>": "sums",
    "Memcpy DtoD (Device -> Device)": "copies",
    "void at::native::vectorized_elementwise_kernel<8, at::native::GeluBackwardCUDAKernelImpl>": "element-wise",
    "something new": "other",
}


@pytest.fixture
def profile(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_profile

    return gpu_profile


@pytest.mark.parametrize(("name", "kind"), NAMES.items(), ids=NAMES.values())
def test_kernels_are_counted_by_kind(profile, name, kind):
    assert profile._kind(name) == kind


def test_kernels_that_run_beside_each_other_count_once(profile):
    assert profile._covered([(5, 6), (0, 2), (1, 3), (1, 1.5)]) == 4


def test_without_a_gpu_checks_and_arms_run(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--arms", "amp_bf16", "hf_trainer"]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "rows.json")],
        capture_output=True, text=True, timeout=300, check=False, env={"CUDA_VISIBLE_DEVICES": "", "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "rows.json").read_text())
    assert {row["arm"] for row in found["rows"]} == {"hf_trainer", "amp_bf16"}
    assert not found["faults"]
    assert all("reason" not in row and row["mfu"] is None for row in found["rows"])
    assert "no GPU: toy size on the processor, no figures" in done.stdout
