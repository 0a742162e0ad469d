"""A SavedModel that a stock TF Serving binary runs: plain graph ops, no XLA, no custom op, no Python.

served/NAME/1/                                              a version, as TF Serving's base path wants it
    saved_model.pb, variables/                              the graph and the weights
    assets.extra/tf_serving_warmup_requests                 requests of each signature and batch size, which a server
                                                            replays before its first caller waits for them
    assets.extra/export.json                                what it was made from

The signatures are told in export.serve.signatures.
"""

import dataclasses
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from common import console
from common.errors import StageError
from common.files import check_replaceable, read_json, whole_folder, write_json
from common.processes import last_line
from export.made import already_made, known, made_from
from export.serve.facts import facts_of
from export.serve.package import MADE_FROM, batch_sizes, model_name, write_package
from export.serve.session import WARM_UP, unpacked
from export.serve.signatures import DTYPES, INPUTS, Served
from trainers import checkpoint
from trainers.checkpoint import Checkpoint
from trainers.run import Run, read_run
from trainers.sampling.rows import Limits
from trainers.sampling.sampler import Sampler

TOLERANCE = 1e-5  # of a number, or of its size where that is above 1

# The ops that the signatures are made of: TensorFlow's own kernels for a CPU, which a stock server has linked in. What
# is not among them (of XLA, cuDNN, Python, another runtime) is to be looked at before it may be exported.
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

Request = tuple[str, dict[str, list[Any]]]  # a signature, and its inputs


def requests(served: Served) -> Iterator[Request]:
    """What a written model is asked, and a server is warmed up with: each signature with each size of a batch.

    Prompts of different lengths, one of them empty, share a batch; hot and cold rows too, with options and without.
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
    """What the signature `info` tells, as JSON."""
    origin = made_from(run, chosen)
    return {
        **origin,
        "unit": run.vocab.unit,
        "bits_per_char": origin["val_nats"] / np.log(2),
        "limits": dataclasses.asdict(limits),
        "versions": {name: importlib.metadata.version(name) for name in ("tensorflow", "keras")},
    }


def export_saved_model(folder: Path, out: Path, version: int | None, force: bool, limits: Limits | None = None) -> None:
    """Writes out/VERSION from a run's best checkpoint, proves it in a fresh process, and only then puts it in place.

    version: None: the latest where the same model lies there, else the next. limits: None: the usual ones.
    Raises StageError where that version is there already and was made from something else (unless `force`), or where
    what the written model answers differs from the checkpoint.
    """
    run = read_run(folder)
    chosen = checkpoint.best(run)
    limits = limits or Limits()
    about = info(run, chosen, limits)
    latest = latest_version(out)
    if version is None:
        again = force or read_json(out / str(latest) / MADE_FROM) == about
        version = max(latest, 1) if again else latest + 1
    target = out / str(version)
    check_replaceable(target, "saved_model.pb", "a SavedModel")
    if not force and already_made(target, MADE_FROM, about, f"--version {latest + 1}"):
        write_package(out, version, facts_of(run, chosen))  # what a card tells may have come since
        return
    sampler = Sampler(checkpoint.load_model(run, chosen), run.vocab, limits, frozen=True)
    served = Served(sampler, json.dumps(about, ensure_ascii=False))
    with console.err.status(f"writing {target}"), whole_folder(target, replace=force) as partial:
        write_version(partial, model_name(out), served)
        prove(served, partial)
    write_package(out, version, facts_of(run, chosen))
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    console.out.print(
        f"{target}: step {chosen.step} of {folder}, {size / 1e6:.1f} MB; a fresh process answers as the checkpoint "
        f"does, in all {len(INPUTS)} signatures",
    )


def write_version(folder: Path, model: str, served: Served) -> None:
    """Writes all that a server reads of a version. model: the name that it is asked by.

    Raises StageError for a graph that a stock server does not run.
    """
    tf.saved_model.save(served, str(folder), signatures=served.functions)
    check_ops(folder)
    write_warmup(folder / WARM_UP, model, served)
    write_json(folder / MADE_FROM, json.loads(served.info))


def latest_version(out: Path) -> int:
    """The highest version that is there; 0 where there is none."""
    return max((int(path.name) for path in out.glob("*") if path.name.isdigit()), default=0)


def check_ops(folder: Path) -> None:
    """Raises StageError where a written graph holds an op that is not among OPS, or is bound to a device."""
    read = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    graph = read.meta_graphs[0].graph_def
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    own = {function.signature.name for function in graph.library.function}
    foreign = {node.op for node in nodes} - own - {*OPS.split()}
    attributes = [node.attr for node in nodes] + [function.attr for function in graph.library.function]
    foreign |= {"a function for XLA" for attribute in attributes if attribute["_XlaMustCompile"].b}
    foreign |= {f"a device, {node.device}" for node in nodes if "GPU" in node.device}
    if foreign:
        raise StageError(f"the graph holds what a stock server is not known to run: {', '.join(sorted(foreign))}")


def write_warmup(path: Path, model: str, served: Served) -> None:
    """Writes the requests that TF Serving replays when it loads the model, before the first caller waits for them."""
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
    """Lets a fresh process answer the warm-up requests from the files alone, and compares with the checkpoint.

    Raises StageError where a text differs at all, or a number by more than TOLERANCE.
    """
    with tempfile.TemporaryDirectory() as scratch:
        answers = Path(scratch) / "answers.json"
        command = [sys.executable, "-m", "export.serve.session", str(folder), str(answers)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        model, limits = served.sampler.model, served.sampler.limits
        reference = Served(Sampler(model, served.sampler.vocab, limits), served.info)
        asked = [(signature, reference.answer(signature, inputs)) for signature, inputs in requests(reference)]
        said = process.communicate()[1]
        if process.returncode:
            raise StageError(f"the written SavedModel does not load in a fresh process: {last_line(said)}")
        found = json.loads(answers.read_text(encoding="utf-8"))
    if len(found) != len(asked):
        raise StageError(f"the written SavedModel has {len(found)} warm-up requests, not {len(asked)}")
    for (signature, expected), got in zip(asked, found, strict=True):
        if got.keys() != expected.keys():
            raise StageError(f"the written SavedModel's {signature} gives {', '.join(got)}, not {', '.join(expected)}")
        for name, value in expected.items():
            compare(f"{signature}.{name}", unpacked(got[name]), value)


def compare(what: str, got: np.ndarray, expected: np.ndarray) -> None:
    """Raises StageError where an output of the written model is not the checkpoint's."""
    if what.endswith("carry_bytes"):  # numbers, most of them
        got, expected = (np.array([np.frombuffer(row, np.float32) for row in rows]) for rows in (got, expected))
    if got.shape != expected.shape:
        raise StageError(f"the written SavedModel's {what} is {got.shape}, the checkpoint's {expected.shape}")
    if expected.dtype.kind != "f":
        same = np.array_equal(got, expected)
        difference = "" if same else f": {got.tolist()[:3]} instead of {expected.tolist()[:3]}"
    else:
        off = np.abs(got - expected) / np.maximum(1, np.abs(expected))
        near = (off <= TOLERANCE) & (np.abs(expected) >= np.finfo(np.float32).tiny)  # below it: a carry's whole numbers
        same = bool(np.all(near | (got.view(np.int32) == expected.view(np.int32))))
        difference = "" if same else f" by {np.max(off):.1g}; at most {TOLERANCE:g} is allowed"
    if not same:
        raise StageError(f"the written SavedModel's {what} differs{difference}")
