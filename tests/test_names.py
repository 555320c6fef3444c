"""The names that users write, and what importing them costs."""

import subprocess
import sys

import sparseprune as sp


def test_public_names() -> None:
    for name in (
        "prune",
        "sparsify",
        "densify",
        "apply_masks",
        "rescale_weights",
        "summary",
        "topk_masks",
        "controls",
        "lottery_ticket",
        "group_rows",
        "overlap",
        "save",
        "load",
        "convert_state_dict",
        "masks_from_zeros",
        "sparsify_like",
    ):
        assert callable(getattr(sp, name))
    for name in ("SparseLinear", "SparseConv1d", "SparseConv2d"):
        assert isinstance(getattr(sp, name), type)
    for name in sp.scores.METHODS:
        assert callable(getattr(sp.scores, name))
    for name in ("spmm", "spmm_t", "sddmm", "spmm_backward", "linear", "plans", "info", "has_kernels"):
        assert callable(getattr(sp.ops, name))
    for name in ("conv2d", "conv2d_act", "conv2d_t", "conv2d_sddmm", "conv2d_backward"):
        assert getattr(sp.ops, name) is getattr(sp.ops.convolution, name)
    assert callable(sp.jit.load)
    assert sp.ops.batch_norm.batch_norm_act is sp.ops.batch_norm_act
    assert set(sp.__all__) <= set(dir(sp))


def test_importing_needs_no_package_of_the_command_line_or_of_frameworks() -> None:
    others = (
        "typer",
        "rich",
        "safetensors",
        "matplotlib",
        "pandas",
        "jinja2",
        "tabulate",
        "sparseprune.experiments",
        "sparseprune.integrations",
        "transformers",
        "lightning",
    )
    code = f"import sys, sparseprune; print([name for name in {others} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
