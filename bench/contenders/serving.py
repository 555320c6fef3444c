"""Engines that serve dense networks: what a pruned network competes with where nothing is trained."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from bench.contenders.base import Answer, Reasons, Runnable, contender, worth_serving
from bench.problems import NetworkProblem
from bench.workloads import FORWARDS

REQUIREMENTS = "onnx, onnxscript, onnxruntime and openvino"


def _missing(error: ImportError) -> Reasons:
    return [f"not installed ({error}); pip install {REQUIREMENTS}"]


def _onnx_file(model: nn.Module, x: Tensor) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert program is not None
    file: bytes = program.model_proto.SerializeToString()
    return file


def _answer(logits: Any) -> Answer:
    return {"y": torch.from_numpy(logits)}


@contender(
    "dense-float32-onnxruntime",
    FORWARDS,
    "dense",
    dtype="float32",
    only=worth_serving,
    note="its CPU provider",
)
def onnxruntime(problem: NetworkProblem) -> Runnable | Reasons:
    try:
        engine = importlib.import_module("onnxruntime")
        file = _onnx_file(problem.model.eval(), problem.x)
    except ImportError as error:
        return _missing(error)
    options = engine.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = engine.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: problem.x.numpy()}
    return Runnable(lambda: session.run(None, inputs)[0], _answer)


@contender(
    "dense-float32-openvino",
    FORWARDS,
    "dense",
    dtype="float32",
    only=worth_serving,
    note="float32, latency mode",
)
def openvino(problem: NetworkProblem) -> Runnable | Reasons:
    try:
        engine = importlib.import_module("openvino")
    except ImportError as error:
        return _missing(error)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # For this shape alone, which is faster than for any.
        converted = engine.convert_model(
            problem.model.eval(), example_input=problem.x, input=[list(problem.x.shape)]
        )
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = engine.compile_model(converted, "CPU", settings).create_infer_request()
    inputs = [problem.x.numpy()]
    return Runnable(lambda: request.infer(inputs)[0], _answer)
