"""Stand-in for tensorflow_model_server, for machines without it: python -m export.serve.stand_in served/NAME

It is not TF Serving, and its speed is not TF Serving's: use it to try things out and for tests, never in production.

Same as TF Serving, after its source and the responses of the real binary: the gRPC API; the graph, loaded from its
files alone and run in a Session; versions and labels; no open port before the first load, with its retries, has ended;
codes and messages of errors; batching; the flags for all this, while others are ignored. Different: no REST, no
warm-up, no metrics; one model, with the versions and labels in models.config, or every version below the base path.
"""

import argparse
import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from grpc import StatusCode
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow.python.client import pywrap_tf_session as tf_session
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

from export.serve.stand_in_batching import Batcher, Batching, CallError

CODES = {code.value[0]: code for code in StatusCode}
LISTED = {"string": "string_val", "int32": "int_val", "int64": "int64_val", "float": "float_val"}


class LoadedVersion:
    """Version of a model: its graph in a Session, and its signatures."""

    def __init__(self, folder: Path):
        with tf.Graph().as_default():
            self._session = tf.compat.v1.Session()
            self.signatures = tf.compat.v1.saved_model.load(self._session, ["serve"], str(folder)).signature_def
        parameters = folder / "batching_params.pbtxt"
        self.batching = Batching.read(parameters) if parameters.exists() else None

    def run(self, inputs: dict[str, Any], fetches: Sequence[str], timeout: float | None) -> list[Any]:
        """Run the graph. Like the server, does not check input ranks against the signature."""
        graph = self._session.graph
        feeds = {graph.get_tensor_by_name(name).ref(): array for name, array in inputs.items()}
        options = tf.compat.v1.RunOptions(timeout_in_ms=0 if timeout is None else max(1, int(timeout * 1000)))
        buffer = tf_session.TF_NewBufferFromString(options.SerializeToString())
        try:
            return self._session._do_run(
                None, [], [graph.get_tensor_by_name(name) for name in fetches], feeds, buffer, None
            )
        finally:
            tf_session.TF_DeleteBuffer(buffer)


def reports_errors(method: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a service method to report errors with the server's codes and messages."""

    def wrapper(self: "StandIn", request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(self, request, context)
        except CallError as error:
            code, message = error.code, str(error)
        except tf.errors.OpError as error:
            code, message = CODES[error.error_code], error.message.removeprefix("Graph execution error:\n\n")
        return context.abort(code, message if len(message) <= 1024 else message[:1024] + "...TRUNCATED")

    return wrapper


class StandIn(prediction_service_pb2_grpc.PredictionServiceServicer, model_service_pb2_grpc.ModelServiceServicer):
    """Server of the model at a base path.

    labels: default: from models.config. per_version: read batching parameters from each version's folder, and do not
    batch versions without them, like --enable_per_model_batching_parameters. load_retries: of a version that does not
    load, retry_seconds apart.
    """

    def __init__(
        self,
        base: Path,
        name: str = "",
        labels: dict[str, int] | None = None,
        batching: Batching | None = None,
        per_version: bool = False,
        load_retries: int = 0,
        retry_seconds: float = 0,
    ):
        self.base, self.name, self.fixed_labels, self.per_version = base, name or base.name, labels, per_version
        self.load_retries, self.retry_seconds = load_retries, retry_seconds
        self.batcher = Batcher(batching) if batching else None
        self.versions: dict[int, LoadedVersion] = {}
        self.failed: dict[int, Exception] = {}  # versions that did not load
        self.labels: dict[str, int] = {}
        self.poll()

    def poll(self) -> None:
        """Load new versions, unload removed ones and apply models.config, as the server does every second.

        A version that does not load after all retries is given up, and the others are served. Raises its error if there
        are none; raises CallError, and changes nothing, if the config moves a label to a version that is not loaded.
        """
        folders = {int(path.name): path for path in self.base.iterdir() if path.name.isdigit()}
        labels, listed = read_config(self.base / "models.config")
        if self.fixed_labels is not None:
            labels, listed = self.fixed_labels, []
        for label, version in labels.items():
            if self.labels.get(label, version) != version and version not in self.versions:
                raise CallError(
                    StatusCode.FAILED_PRECONDITION,
                    f"Request to assign label to version {version} of model {self.name}, which is not currently "
                    "available for inference",
                )
        if listed:
            folders = {version: path for version, path in folders.items() if version in listed}
        kept = {version: loaded for version, loaded in self.versions.items() if version in folders}
        self.failed = {version: error for version, error in self.failed.items() if version in folders}
        for version in sorted(folders.keys() - kept.keys() - self.failed.keys()):
            try:
                kept[version] = self._load(folders[version])
            except Exception as error:
                self.failed[version] = error
        if self.failed and not kept:
            raise self.failed[max(self.failed)]
        self.versions, self.labels = kept, labels

    def _load(self, folder: Path) -> LoadedVersion:
        for _ in range(self.load_retries):
            with contextlib.suppress(Exception):
                return LoadedVersion(folder)
            time.sleep(self.retry_seconds)
        return LoadedVersion(folder)

    def close(self) -> None:
        if self.batcher:
            self.batcher.close()

    def _find(self, spec: Any) -> tuple[int, LoadedVersion]:
        if not spec.name:
            raise CallError(StatusCode.INVALID_ARGUMENT, "ModelSpec has no name specified.")
        version = spec.version.value if spec.HasField("version") else None
        if spec.version_label:
            if spec.name != self.name or spec.version_label not in self.labels:
                unknown = f"Unrecognized servable version label: {spec.version_label}"
                raise CallError(StatusCode.INVALID_ARGUMENT, unknown)
            version = self.labels[spec.version_label]
        wanted = f"Latest({spec.name})" if version is None else f"Specific({spec.name}, {version})"
        version = max(self.versions, default=-1) if version is None else version
        if spec.name != self.name or version not in self.versions:
            raise CallError(StatusCode.NOT_FOUND, f"Servable not found for request: {wanted}")
        return version, self.versions[version]

    @reports_errors
    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:
        version, loaded = self._find(request.model_spec)
        name = request.model_spec.signature_name or "serving_default"
        if name not in loaded.signatures:
            raise CallError(StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
        signature = loaded.signatures[name]
        inputs = feeds(signature, request.inputs)
        output_filter = list(request.output_filter)
        for alias in output_filter:
            if alias not in signature.outputs:
                outputs_expected = f"Outputs expected to be in the set {braced(signature.outputs)}."
                message = f"output tensor alias not found in signature: {alias} {outputs_expected}"
                raise CallError(StatusCode.INVALID_ARGUMENT, message)
            if output_filter.count(alias) > 1:
                raise CallError(StatusCode.INVALID_ARGUMENT, f"duplicate output tensor alias: {alias}")
        aliases = output_filter or sorted(signature.outputs)
        fetches = [signature.outputs[alias].name for alias in aliases]

        def run(arrays: dict[str, Any], timeout: float | None) -> list[Any]:
            return loaded.run(arrays, fetches, timeout)

        timeout = context.time_remaining()
        if timeout is not None and timeout > 1e6:  # gRPC reports a huge remaining time for calls without a deadline
            timeout = None
        rules = loaded.batching if self.per_version else None
        if self.batcher is None or (self.per_version and rules is None):
            outputs = run(inputs, timeout)
        else:  # calls for the same outputs share a queue
            outputs = self.batcher((version, name, frozenset(aliases)), run, inputs, timeout, rules)
        response = predict_pb2.PredictResponse()
        response.model_spec.name, response.model_spec.signature_name = request.model_spec.name, name
        response.model_spec.version.value = version
        for alias, array in zip(aliases, outputs, strict=True):
            response.outputs[alias].CopyFrom(listed(array))
        return response

    @reports_errors
    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        if list(request.metadata_field) != ["signature_def"]:
            message = "GetModelMetadataRequest must specify at least one metadata_field"
            raise CallError(StatusCode.INVALID_ARGUMENT, message)
        version, loaded = self._find(request.model_spec)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name, response.model_spec.version.value = self.name, version
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=dict(loaded.signatures))
        response.metadata["signature_def"].Pack(signatures)
        return response

    @reports_errors
    def GetModelStatus(self, request: Any, context: grpc.ServicerContext) -> Any:
        if not request.HasField("model_spec"):
            raise CallError(StatusCode.INVALID_ARGUMENT, "Missing ModelSpec")
        spec = request.model_spec
        versions = sorted({*self.versions, *self.failed}, reverse=True) if spec.name == self.name else []
        if spec.HasField("version"):
            versions = [version for version in versions if version == spec.version.value]
            missing = f"Could not find version {spec.version.value} of model {spec.name}"
        else:
            missing = f"Could not find any versions of model {spec.name}"
        if not versions:
            raise CallError(StatusCode.NOT_FOUND, missing)
        response = get_model_status_pb2.GetModelStatusResponse()
        states = get_model_status_pb2.ModelVersionStatus
        for version in versions:
            state = states.AVAILABLE if version in self.versions else states.END
            status = response.model_version_status.add(version=version, state=state).status
            status.SetInParent()
            if version in self.failed:
                status.error_code, status.error_message = StatusCode.UNKNOWN.value[0], str(self.failed[version])
        return response


def read_config(path: Path) -> tuple[dict[str, int], list[int]]:
    """Read labels and versions from a model config file; both are empty if it is missing."""
    if not path.is_file():
        return {}, []
    config = text_format.Parse(path.read_text(encoding="utf-8"), model_server_config_pb2.ModelServerConfig())
    model = config.model_config_list.config[0]
    return dict(model.version_labels), list(model.model_version_policy.specific.versions)


def feeds(signature: Any, given: Any) -> dict[str, Any]:
    """Convert a request's inputs to arrays by tensor name. Raises CallError on a mismatch with the signature."""
    if len(given) != len(signature.inputs):
        extra, absent = set(given) - set(signature.inputs), set(signature.inputs) - set(given)
        sizes = f"{len(given)}!={len(signature.inputs)} len({braced(given)}) != len({braced(signature.inputs)})"
        message = f"{sizes}. Sent extra: {braced(extra)}. Missing but required: {braced(absent)}."
        raise CallError(StatusCode.INVALID_ARGUMENT, f"input size does not match signature: {message}")
    arrays = {}
    for alias, info in sorted(signature.inputs.items()):
        if alias not in given:
            missing = f"Signature input alias: {alias}(feed name: {info.name}) not found in request"
            inputs_expected = f"Inputs expected to be in the request {braced(given)}, or default input alias set: "
            raise CallError(StatusCode.INVALID_ARGUMENT, f"{missing} and no default value provided. {inputs_expected}")
        arrays[info.name] = to_array(alias, given[alias])
    for index, (alias, info) in enumerate(sorted(signature.inputs.items())):
        if given[alias].dtype != info.dtype:
            expected, got = type_name(info.dtype), type_name(given[alias].dtype)
            raise CallError(StatusCode.INVALID_ARGUMENT, f"Expects arg[{index}] to be {expected} but {got} is provided")
    return arrays


def to_array(alias: str, proto: Any) -> Any:
    """Convert a TensorProto to an array like Tensor::FromProto, which drops surplus values. Raises CallError."""
    error = CallError(StatusCode.INVALID_ARGUMENT, f"tensor parsing error: {alias}")
    sizes = [dim.size for dim in proto.tensor_shape.dim]
    if proto.dtype not in types_pb2.DataType.values() or not proto.dtype or proto.tensor_shape.unknown_rank:
        raise error
    if any(size < 0 for size in sizes):
        raise error
    dtype, count, trimmed = tf.as_dtype(proto.dtype), math.prod(sizes), tensor_pb2.TensorProto()
    trimmed.CopyFrom(proto)
    if count and proto.tensor_content and len(proto.tensor_content) != count * dtype.size:
        raise error
    if field := LISTED.get(type_name(proto.dtype)):
        del getattr(trimmed, field)[count:]
    return tf.make_ndarray(trimmed) if count else np.empty(sizes, dtype.as_numpy_dtype)


def braced(names: Any) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def type_name(number: int) -> str:
    return types_pb2.DataType.Name(number).removeprefix("DT_").lower()


def listed(array: Any) -> Any:
    """Convert an array to a TensorProto with *_val fields like the server's; tf.make_tensor_proto would pack bytes."""
    dtype = tf.as_dtype(array.dtype) if array.dtype != object else tf.string
    proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum, tensor_shape=tf.TensorShape(array.shape).as_proto())
    getattr(proto, LISTED[type_name(proto.dtype)]).extend(array.ravel().tolist())
    return proto


@contextlib.contextmanager
def serving(
    stand_in: StandIn,
    port: int = 0,
    credentials: grpc.ServerCredentials | None = None,
    interceptors: Sequence[grpc.ServerInterceptor] = (),
    socket: Path | None = None,
) -> Iterator[str]:
    """Serve on a local port, or on a Unix socket, within the block. Yields the address for clients."""
    unlimited = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.server(futures.ThreadPoolExecutor(128), interceptors=interceptors, options=unlimited)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(stand_in, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(stand_in, server)
    address = f"unix:{socket}" if socket else f"localhost:{port}"
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    server.start()
    try:
        yield address if socket else f"localhost:{port}"
    finally:
        stand_in.close()  # pending calls without rows would keep the process alive
        server.stop(grace=None).wait()


def follow(stand_in: StandIn) -> None:
    """Poll and, like the server, report a models.config that cannot be followed, and keep what is loaded."""
    try:
        stand_in.poll()
    except Exception as error:
        print(f"models.config is not followed: {error}", file=sys.stderr, flush=True)


def main() -> None:
    """Serve until Ctrl-C, and follow models.config."""
    about = "Stand-in for tensorflow_model_server, with its flags. Prints its port, or its socket."
    parser = argparse.ArgumentParser(description=about, allow_abbrev=False)
    parser.add_argument("base", type=Path, help="base path of the model, with one folder per version")
    parser.add_argument("--port", type=int, default=0, help="gRPC port; 0: any free port")
    parser.add_argument("--grpc_socket_path", type=Path, help="Unix socket, instead of a port")
    parser.add_argument("--model_name", default="", help="default: the base path's name")
    parser.add_argument("--max_num_load_retries", type=int, default=5)
    parser.add_argument("--load_retry_interval_micros", type=int, default=60_000_000)
    parser.add_argument("--enable_batching", type="true".__eq__)
    parser.add_argument("--batching_parameters_file", type=Path)
    parser.add_argument("--enable_per_model_batching_parameters", type="true".__eq__)
    flags, _ = parser.parse_known_args()
    tf.get_logger().setLevel("ERROR")  # hides the deprecation warning of the Session loader
    batching = Batching.read(flags.batching_parameters_file) if flags.batching_parameters_file else Batching()
    stand_in = StandIn(
        flags.base,
        flags.model_name,
        batching=batching if flags.enable_batching else None,
        per_version=bool(flags.enable_per_model_batching_parameters),
        load_retries=flags.max_num_load_retries,
        retry_seconds=flags.load_retry_interval_micros / 1e6,
    )
    with serving(stand_in, flags.port, socket=flags.grpc_socket_path) as target, contextlib.suppress(KeyboardInterrupt):
        print(target.rpartition(":")[2], flush=True)
        while True:
            time.sleep(1)
            follow(stand_in)


if __name__ == "__main__":
    main()
