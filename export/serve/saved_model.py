"""Export a SavedModel that a stock TF Serving binary runs: plain graph ops, no XLA, no custom op, no Python.

served/NAME/1/                                  a version below TF Serving's base path
    saved_model.pb, variables/                  the graph and the weights
    assets.extra/tf_serving_warmup_requests     requests of each signature and batch size, replayed at load
    assets.extra/export.json                    its origin: the run, step, config and vocabulary
    SHA256SUMS                                  the checksums of the files above (export.checksums)

export.serve.signatures describes the signatures.
"""

import dataclasses
import importlib.metadata
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from common import console
from common.errors import StageError
from common.files import check_replaceable, load_json, read_json, whole_folder, write_json
from common.processes import last_line
from export import checksums
from export.origin import is_current, known, origin_of
from export.serve.facts import facts_of
from export.serve.labels import ORIGIN
from export.serve.package import batch_sizes, check_own, model_name, read_facts, write_package
from export.serve.session import WARM_UP, decode_output
from export.serve.signatures import DTYPES, INPUTS, Served
from trainers import checkpoint
from trainers.checkpoint import Checkpoint
from trainers.config import ModelConfig
from trainers.model.cells import CELLS
from trainers.run import Run, read_run
from trainers.sampling.rows import Limits
from trainers.sampling.sampler import Sampler

TOLERANCE = 1e-5  # absolute for numbers up to 1, relative above

# Ops of the signatures, all with CPU kernels that a stock server links in. Check that a server has an op (XLA, cuDNN,
# Python and other runtimes are missing there) before you add it.
OPS = """
Abs Add AddN AddV2 All Any ArgMax AsString AssignVariableOp BiasAdd Bitcast Cast ConcatV2 Const Cumsum DecodePaddedRaw
DecodeRaw DisableCopyOnRead DivNoNan EnsureShape Equal Exp ExpandDims Fill FloorDiv FloorMod GatherV2 Greater
GreaterEqual Identity IsFinite Less LessEqual LogicalAnd LogicalNot LogicalOr LowerBound MatMul MatrixBandPart Max
Maximum Mean MergeV2Checkpoints Minimum Mul Neg NoOp NotEqual OneHot Pack Pad PadV2 PartitionedCall Placeholder
RaggedTensorToTensor Range ReadVariableOp RealDiv ReduceJoin Reshape RestoreV2 SaveV2 Select SelectV2 SerializeTensor
Shape ShardedFilename Slice Softmax SparseSoftmaxCrossEntropyWithLogits Split SplitV Sqrt SquaredDifference
StatefulPartitionedCall StatelessIf StatelessRandomUniformV2 StatelessWhile StaticRegexFullMatch StopGradient
StridedSlice StringJoin StringLength Sub Substr Sum Tanh TensorListFromTensor TensorListGather TensorListGetItem
TensorListReserve TensorListSetItem TensorListStack Tile TopKV2 Transpose UnicodeDecode UnicodeEncode UnicodeTranscode
Unpack UpperBound VarHandleOp ZerosLike
"""

# Numbers in the largest answer of `neurons`. Over REST, a server needs some 87 bytes for each while it writes the JSON:
# 730 MB, under a fifth of the container's memory.
NEURON_VALUES = 1 << 23

Request = tuple[str, dict[str, list[Any]]]  # the signature, and its inputs


def requests(served: Served) -> Iterator[Request]:
    """Yield the requests that verify an export and warm a server up: each signature at each batch size.

    A batch mixes prompts of different lengths, one of them empty, temperatures, and rows with and without options.
    """
    vocab, limits = served.sampler.vocab, served.sampler.limits
    prompts = [known(text, vocab) for text in (b"def ", b"", b"import os\nclass ")]
    carries = list(served.answer("start", {"prompt": prompts})["carry_bytes"])
    values: dict[str, list[Any]] = {
        "prompt": prompts,
        "length": [min(count, limits.length) for count in (20, 16, 3)],
        "temperature": [0.8, 1.0, 0.0],
        "seed": [1, 2, 3],
        "top_k": [0, 5, 0],
        "top_p": [1.0, 0.9, 1.0],
        "repetition_penalty": [1.0, 1.0, 1.2],
        "stop": [b"", known(b"e", vocab), b""],
        "carry_bytes": [carries[0], b"", carries[2]],
        "text": prompts,
        "layer": [0, served.sampler.model.config.layers - 1, 0],
        "ignored": [b"", b"", b""],
    }
    for rows in batch_sizes(limits.rows):
        for signature, names in INPUTS.items():
            yield signature, {name: [values[name][row % 3] for row in range(rows)] for name in names}


def info(run: Run, chosen: Checkpoint, limits: Limits) -> dict[str, Any]:
    """Return the content of export.json, which the signature `info` returns."""
    origin = origin_of(run, chosen)
    return {
        **origin,
        "unit": run.vocab.unit,
        "bits_per_char": origin["val_nats"] / np.log(2),
        "limits": dataclasses.asdict(limits),
        "versions": {name: importlib.metadata.version(name) for name in ("tensorflow", "keras")},
    }


def bounded(limits: Limits, config: ModelConfig) -> Limits:
    """Lower `pictured` so that the largest call of `neurons` returns at most NEURON_VALUES numbers.

    The limit is one of characters per row, so that a row's answer does not depend on the other rows of its batch.
    """
    values = limits.rows * config.units * CELLS[config.cell].states
    return dataclasses.replace(limits, pictured=min(limits.pictured, max(NEURON_VALUES // values, 1)))


def export_saved_model(folder: Path, out: Path, version: int | None, force: bool, limits: Limits | None = None) -> int:
    """Export a run's best checkpoint to out/VERSION, and verify it in a fresh process before moving it into place.

    Returns the version.

    version: default: the latest if it already holds this model, otherwise the next. limits: default: `Limits()`; see
    `bounded`.
    Raises StageError if the version exists with another origin (unless `force`), or if the exported model answers
    differently from the checkpoint.
    """
    run = read_run(folder)
    chosen = checkpoint.best(run)
    limits = bounded(limits or Limits(), run.config.model)
    about = info(run, chosen, limits)
    latest = latest_version(out)
    if version is None:
        rewrite = force or read_json(out / str(latest) / ORIGIN) == about
        version = max(latest, 1) if rewrite else latest + 1
    target = out / str(version)
    check_replaceable(target, "saved_model.pb", "a SavedModel")
    check_own(out)
    current = not force and is_current(target, ORIGIN, about, f"--version {latest + 1}")
    if current and "warm_up_seconds" in read_facts(out, version):  # missing after a kill: write the version again
        write_package(out, version, facts_of(run, chosen))  # an evaluation may be new
        return version
    sampler = Sampler(checkpoint.load_model(run, chosen), run.vocab, limits, frozen=True)
    served = Served(sampler, json.dumps(about, ensure_ascii=False))
    with console.err.status(f"writing {target}"), whole_folder(target, replace=force or target.exists()) as partial:
        write_version(partial, model_name(out), served)
        start = time.monotonic()
        prove(served, partial)
    warm_up = {"warm_up_seconds": math.ceil(time.monotonic() - start)}
    write_package(out, version, facts_of(run, chosen) | warm_up)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    console.out.print(
        f"{target}: step {chosen.step} of {folder}, {size / 1e6:.1f} MB; a fresh process returns the checkpoint's "
        f"answers in all {len(INPUTS)} signatures",
    )
    return version


def write_version(folder: Path, model: str, served: Served) -> None:
    """Write all files of a version. model: its name on the server.

    Raises StageError for a graph that a stock server does not run.
    """
    served.save(folder)
    check_ops(folder)
    write_warmup(folder / WARM_UP, model, served)
    write_json(folder / ORIGIN, json.loads(served.info))
    checksums.write(folder)


def latest_version(out: Path) -> int:
    """Highest version number below a base path; 0 if there is none."""
    return max((int(path.name) for path in out.glob("*") if path.name.isdigit()), default=0)


def check_ops(folder: Path) -> None:
    """Raise StageError if a written graph contains an op that is not in OPS, or is placed on a GPU."""
    saved_model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    graph = saved_model.meta_graphs[0].graph_def
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    own = {function.signature.name for function in graph.library.function}
    foreign = {node.op for node in nodes} - own - {*OPS.split()}
    attributes = [node.attr for node in nodes] + [function.attr for function in graph.library.function]
    foreign |= {"a function for XLA" for attribute in attributes if attribute["_XlaMustCompile"].b}
    foreign |= {f"a device, {node.device}" for node in nodes if "GPU" in node.device}
    if foreign:
        raise StageError(f"the graph has ops that a stock server is not known to run: {', '.join(sorted(foreign))}")


def write_warmup(path: Path, model: str, served: Served) -> None:
    """Write the requests that TF Serving replays when it loads the model, so that the first caller does not wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests(served):
            request = predict_pb2.PredictRequest()
            request.model_spec.name, request.model_spec.signature_name = model, signature
            for name, values in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(values, DTYPES[name]))
            log = prediction_log_pb2.PredictLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())


def prove(served: Served, folder: Path) -> None:
    """Answer the warm-up requests in a fresh process from the files alone, and compare with the checkpoint's answers.

    Raises StageError if a text differs at all, or a number by more than TOLERANCE.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "answers.json"
        command = [sys.executable, "-m", "export.serve.session", str(folder.absolute()), str(path)]
        home = Path(__file__).parents[2]
        process = subprocess.Popen(command, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        expected = [(signature, served.answer(signature, inputs)) for signature, inputs in requests(served)]
        stderr = process.communicate()[1]
        if process.returncode:
            raise StageError(f"the exported SavedModel does not load in a fresh process: {last_line(stderr)}")
        answers = load_json(path)
    check_answers(answers, expected)


def check_answers(answers: list[dict[str, Any]], expected: list[tuple[str, dict[str, np.ndarray]]]) -> None:
    """Compare the answers of `export.serve.session` with the checkpoint's. Raises StageError if they differ."""
    if len(answers) != len(expected):
        raise StageError(f"the exported SavedModel has {len(answers)} warm-up requests, expected {len(expected)}")
    for answer, (signature, outputs) in zip(answers, expected, strict=True):
        if answer.keys() != outputs.keys():
            names = f"{', '.join(answer)}, expected {', '.join(outputs)}"
            raise StageError(f"the exported SavedModel's {signature} returns {names}")
        for name, value in outputs.items():
            compare(f"{signature}.{name}", decode_output(answer[name]), value)


def compare(name: str, got: np.ndarray, expected: np.ndarray) -> None:
    """Compare an output of the exported model with the checkpoint's. Raises StageError if they differ.

    name: "signature.output".
    """
    if name.endswith("carry_bytes"):  # mostly float32
        got, expected = (np.array([np.frombuffer(row, np.float32) for row in rows]) for rows in (got, expected))
    if got.shape != expected.shape:
        raise StageError(f"the exported SavedModel's {name} is {got.shape}, the checkpoint's {expected.shape}")
    if expected.dtype.kind != "f":
        same = np.array_equal(got, expected)
        difference = "" if same else f": {got.tolist()[:3]} instead of {expected.tolist()[:3]}"
    else:
        off = np.abs(got - expected) / np.maximum(1, np.abs(expected))
        near = (off <= TOLERANCE) & (np.abs(expected) >= np.finfo(np.float32).tiny)  # denormals are a carry's integers
        same = bool(np.all(near | (got.view(np.int32) == expected.view(np.int32))))
        difference = "" if same else f" by {np.max(off):.1g}; at most {TOLERANCE:g} is allowed"
    if not same:
        raise StageError(f"the exported SavedModel's {name} differs{difference}")
