"""A connection to a model on TF Serving, over gRPC: arrays in, arrays out.

Every call has a deadline. While the server is unreachable or its queue is full, gRPC retries within the deadline, with
exponential backoff. A call that fails because of another call in its batch is repeated once. Any other failure is
a ServingError: one line with the cause and the fix.
"""

import copy
import dataclasses
import json
import operator
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import grpc
from google.protobuf.message import DecodeError
from grpc import StatusCode
from pydantic import Field

from common.errors import StageError, UsageError
from common.printable import brief
from common.settings import make, settings
from common.types import Array
from export.client.protos import (
    dtype_name,
    enum_name,
    from_tensor,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    to_tensor,
)

RESOLVERS = ("dns", "ipv4", "ipv6", "unix", "xds")  # prefixes of gRPC's own, as in dns:///name:port
LOAD_SECONDS = 600.0
MAX_DETAILS = 300  # characters of a server's message; its C++ may append a trace of the graph


class ServingError(StageError):
    """Failure of a call. code: gRPC's status code."""

    def __init__(self, message: str, code: StatusCode):
        super().__init__(message)
        self.code = code


@settings
class Tls:
    """TLS settings of a client. All files are PEM.

    root_certificates: authorities trusted to sign the server's certificate. Default: the public ones.
    key, certificate: the client's, for servers that authenticate clients.
    server_name: the name in the server's certificate, if it is not the server's address.
    """

    root_certificates: Path | None = None
    key: Path | None = None
    certificate: Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.key is None) != (self.certificate is None):
            raise ValueError("a client's key and certificate go together: pass both or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """Load the files. Raises StageError for a file that cannot be read or is not PEM of its kind."""
        files = ((self.root_certificates, "CERTIFICATE"), (self.key, "PRIVATE KEY"), (self.certificate, "CERTIFICATE"))
        return grpc.ssl_channel_credentials(*(_pem(path, kind) if path else None for path, kind in files))


def _pem(path: Path, kind: str) -> bytes:
    """Read a PEM file. Raises StageError if it contains none of this kind: gRPC would silently do without."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StageError(f"the TLS file {path} cannot be read: {error.strerror}") from None
    if not re.search(f"-----BEGIN (?:[A-Z]+ )?{kind}-----".encode(), content):
        raise StageError(f"the TLS file {path} is not PEM: it must have a line -----BEGIN {kind}-----")
    return content


@settings
class ConnectionSettings:
    """Validated arguments of `Connection`."""

    target: str
    model: Annotated[str, Field(min_length=1)]
    version: Annotated[int, Field(ge=0)] | None
    label: Annotated[str, Field(min_length=1)] | None
    timeout: Annotated[float, Field(gt=0, le=1e6)]  # gRPC overflows beyond
    tls: Tls | None
    retries: Annotated[int, Field(ge=0, le=4)]  # gRPC limits a call to five attempts
    max_message_bytes: Annotated[int, Field(gt=0, lt=1 << 31)]

    def __post_init__(self) -> None:
        if (url := re.match(r"(\w+)://([^/?#\s]*)", self.target)) and url[1] not in RESOLVERS:
            secure = url[1] in ("https", "grpcs")
            address = url[2] if re.search(r":[0-9]+$", url[2]) else f"{url[2]}:{443 if secure else 8500}"
            tls = ", with TLS (--tls, or tls=Tls())" if secure else ""
            raise ValueError(f"a target has no scheme: pass {address}{tls}, got {self.target!r}")
        match = re.fullmatch(r"unix:.+|\S+:([0-9]{1,5})", self.target)
        if not match or not 1 <= int(match[1] or 1) <= 65535:  # gRPC would wrap the port around
            raise ValueError(
                f"a target is host:port, such as localhost:8500, with a port of 1 to 65535, got {self.target!r}"
            )
        if self.version is not None and self.label is not None:
            raise ValueError("pass a version or a label, not both")

    def channel(self) -> grpc.Channel:
        """Open a channel with these settings."""
        retry_policy = {
            "maxAttempts": self.retries + 1,
            "initialBackoff": "0.1s",
            "maxBackoff": "2s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
        if self.retries:
            config["methodConfig"] = [{"name": [{}], "retryPolicy": retry_policy}]
        options = [
            ("grpc.service_config", json.dumps(config)),
            ("grpc.per_rpc_retry_buffer_size", self.max_message_bytes),  # by default, large calls are not retried
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.max_reconnect_backoff_ms", 2000),  # the default, two minutes, would outlast a server's restart
        ]
        if self.tls is None:
            return grpc.insecure_channel(self.target, options)
        if self.tls.server_name:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return grpc.secure_channel(self.target, self.tls.credentials(), options)


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    """Status of a model version on a server. state: "AVAILABLE", "LOADING", ...; error: of its loading, if any."""

    version: int
    state: str
    error: str


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Type and shape of an input or output. A dimension of any size is None, as is a shape of unknown rank."""

    dtype: str
    shape: tuple[int | None, ...] | None


@dataclasses.dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a signature, by name."""

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]


class Connection:
    """Connection to one model on one server. A context manager; threads may share it.

    target: "host:port" of gRPC. If a name has several addresses ("dns:///name:port"), calls rotate over them.
    model: its name on the server. version, label: select a version (pass at most one). Default: the latest.
    timeout: seconds per call, retries and the pauses between them included.
    retries: attempts after the first while the server is unavailable, some 0.1, 0.2, 0.4 and 0.8 s apart. Unless 0, a
    call that failed because of a malformed call in its batch is repeated once.
    max_message_bytes: limit of a request and of an answer (those of `neurons` are large).
    Raises UsageError for invalid settings, StageError for a TLS file that cannot be read.
    """

    def __init__(
        self,
        target: str,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = 30.0,
        tls: Tls | None = None,
        retries: int = 4,
        max_message_bytes: int = 1 << 28,
    ):
        values = {"target": target, "model": model, "version": version, "label": label, "timeout": timeout, "tls": tls}
        values |= {"retries": retries, "max_message_bytes": max_message_bytes}
        self.settings = make(ConnectionSettings, values, "the client's settings")
        self._channel = self.settings.channel()
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def close(self) -> None:
        """Close the connection and cancel the calls in progress."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def predict(
        self, signature: str, inputs: Mapping[str, Array], version: int | None = None
    ) -> tuple[dict[str, Array], int]:
        """Run a signature. Returns its outputs and the version that answered.

        inputs: arrays [B], one entry per row. version: overrides the connection's. Raises UsageError for arrays of
        another rank, of different lengths or without rows: a batching server keeps a call without rows waiting, and
        one of another rank fails the calls that share its batch.
        """
        check_rows(inputs)
        # No output_filter: a batching server joins filtered calls only with those for the same outputs.
        request = predict_pb2.PredictRequest(model_spec=self._spec(version))
        request.model_spec.signature_name = signature
        for name, array in inputs.items():
            request.inputs[name].CopyFrom(to_tensor(array))
        answer = self._call(self._predictions.Predict, request)
        return {name: from_tensor(proto) for name, proto in answer.outputs.items()}, answer.model_spec.version.value

    def status(self) -> list[VersionStatus]:
        """Request the status of the model's versions on the server, oldest first."""
        answer = self.raw_status()
        states = get_model_status_pb2.ModelVersionStatus.State
        versions = [
            VersionStatus(
                entry.version,
                enum_name(states, entry.state),
                entry.status.error_message * bool(entry.status.error_code),
            )
            for entry in answer.model_version_status
        ]
        return sorted(versions, key=operator.attrgetter("version"))

    def wait_until_loaded(self, versions: Iterable[int], seconds: float = LOAD_SECONDS) -> None:
        """Wait until the server has loaded these versions.

        Raises StageError for a version that fails to load, or is not loaded after `seconds`.
        """
        until = time.monotonic() + seconds
        for version in versions:
            while True:
                status = next((status for status in self.status() if status.version == version), None)
                state = status.state if status else "not in its configuration yet"
                if state == "AVAILABLE":
                    break
                if status and status.error:
                    raise StageError(f"{self._where} cannot load version {version}: {status.error}")
                if time.monotonic() > until:
                    raise StageError(f"{self._where} has not loaded version {version} in {seconds:g} s: it is {state}")
                time.sleep(min(1, seconds))

    def metadata(self) -> dict[str, Signature]:
        """Request the signatures of the model, by name."""
        _, signatures = self.raw_metadata()
        return {
            name: Signature(_tensors(signature.inputs), _tensors(signature.outputs))
            for name, signature in sorted(signatures.signature_def.items())
            if not name.startswith("__saved_model_")  # internal to TensorFlow's loader
        }

    def raw_status(self) -> Any:
        """Request the server's GetModelStatusResponse, of all versions."""
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=model_pb2.ModelSpec(name=self.settings.model))
        return self._call(self._models.GetModelStatus, request)

    def raw_metadata(self) -> tuple[Any, Any]:
        """Request the ModelSpec that the server answers for, with its version, and the SignatureDefMap."""
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=self._spec(), metadata_field=["signature_def"]
        )
        answer = self._call(self._predictions.GetModelMetadata, request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        try:
            answer.metadata["signature_def"].Unpack(signatures)
        except DecodeError:
            raise StageError(f"{self._where} sent signatures that cannot be read") from None
        return answer.model_spec, signatures

    def at(self, **changes: Any) -> Self:
        """Share the connection with other settings: `version`, `label` or `timeout`. Raises UsageError."""
        other = copy.copy(self)
        other.settings = make(ConnectionSettings, {**vars(self.settings), **changes}, "the client's settings")
        return other

    def _spec(self, version: int | None = None) -> Any:
        spec = model_pb2.ModelSpec(name=self.settings.model)
        version = self.settings.version if version is None else version
        if version is not None:
            spec.version.value = version
        elif self.settings.label is not None:
            spec.version_label = self.settings.label
        return spec

    @property
    def _where(self) -> str:
        return f"the model '{self.settings.model}' at {self.settings.target}"

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        """Make a call, and repeat it once if a malformed call failed its batch.

        Raises ServingError, and UsageError after `close`.
        """
        until = time.monotonic() + self.settings.timeout
        try:
            try:
                return method(request, timeout=self.settings.timeout)
            except grpc.RpcError as error:
                if not self.settings.retries or not _failed_by_another(error.code(), error.details() or ""):
                    raise
                return method(request, timeout=max(until - time.monotonic(), 0))
        except grpc.RpcError as error:
            code, details = error.code(), " ".join((error.details() or "").split())
            message = f"{self._explain(code, details, request.model_spec)} ({brief(details, MAX_DETAILS)})"
            raise ServingError(message, code) from None
        except ValueError:  # gRPC's, of a closed channel
            raise UsageError(f"the client of {self._where} is closed: create another") from None

    def _explain(self, code: StatusCode, details: str, spec: Any) -> str:
        """Explain a failure and its fix. The phrases matched in `details` are TF Serving's and gRPC's."""
        target = self.settings.target
        match code:
            case StatusCode.UNAVAILABLE:
                return self._explain_unavailable(details)
            case StatusCode.DEADLINE_EXCEEDED:
                limit = self.settings.timeout
                fix = "request fewer characters, raise the timeout, or check that the address can be reached"
                return f"no answer from {target} within {limit:g} s: {fix}"
            case StatusCode.NOT_FOUND:
                return self._explain_not_found(details, spec)
            case StatusCode.INVALID_ARGUMENT if "version label" in details:
                return f"{self._where} has no label '{spec.version_label}': the server's model config file sets them"
            case StatusCode.FAILED_PRECONDITION | StatusCode.INVALID_ARGUMENT if "signature key" in details:
                signatures = ", ".join(self.metadata())
                return f"{self._where} has no signature '{spec.signature_name}'; choose from: {signatures}"
            case StatusCode.FAILED_PRECONDITION if _failed_by_another(code, details):
                return f"a malformed call of another caller failed its batch at {target}, this call included: try again"
            case StatusCode.INVALID_ARGUMENT if "Task size" in details:
                return f"{self._where} takes fewer rows per call: send several"
            case StatusCode.INVALID_ARGUMENT:
                return f"{self._where} rejects the request"
            case StatusCode.RESOURCE_EXHAUSTED if "larger than max" in details:
                fix = "request fewer rows or characters, or raise max_message_bytes"
                return f"a message between the client and {target} is too large: {fix}"
            case StatusCode.RESOURCE_EXHAUSTED if "batching queue" in details:
                return (
                    f"{target} is busy, the call spent its timeout in the queue: try again later, or raise the timeout"
                )
            case StatusCode.RESOURCE_EXHAUSTED:
                return f"{target} is at its limits: try again later"
            case StatusCode.UNIMPLEMENTED:
                return f"{target} speaks gRPC, but is not TF Serving"
            case _:
                return f"{self._where} failed: {code.name}"

    def _explain_unavailable(self, details: str) -> str:
        target = self.settings.target
        if "batch scheduling queue" in details:
            fix = "try again later, or raise max_enqueued_batches in the server's batching parameters"
            return f"{target} is busy, its batch queue is full: {fix}"
        if "HTTP/2" in details or "http1" in details:
            return f"{target} does not speak gRPC: TF Serving's default gRPC port is 8500; 8501 is REST"
        if "header with status" in details:
            return f"an HTTP proxy at {target} rejects the call: check its route to the server's gRPC port"
        if "DNS" in details or "name resolution" in details:
            return f"the host name of {target} cannot be resolved: check its spelling, and this machine's DNS"
        if self.settings.tls and any(word in details for word in ("andshake", "Verification", "Socket closed")):
            return (
                f"TLS with {target} failed: check the root certificates, the name in the server's certificate, "
                "whether it requires a client certificate, and whether it speaks TLS at all"
            )
        if "Socket closed" in details:
            return f"{target} closed the connection: it may require TLS, or has just stopped"
        if any(word in details for word in ("timed out", "imeout", "unreachable", "No route")):
            return f"{target} cannot be reached from here: check the address, the network and firewalls"
        if "refused" in details or "failed to connect" in details:
            fix = "check that it is up and has loaded its models, and that this is its gRPC port (8500, not 8501)"
            return f"no server answers at {target}: {fix}"
        return f"{target} is unavailable for now: try again later"

    def _explain_not_found(self, details: str, spec: Any) -> str:
        unknown = f"{self.settings.target} serves no model '{spec.name}': use the name that it was started with"
        if not details.startswith("Servable not found"):
            return unknown
        try:
            versions = ", ".join(f"{status.version} ({status.state})" for status in self.status())
        except ServingError as error:
            return unknown if error.code == StatusCode.NOT_FOUND else f"{self._where} was not found"
        missing = f"no version {spec.version.value}" if spec.HasField("version") else "no version that is ready"
        return f"{self._where} has {missing}; its versions: {versions}"


def check_rows(inputs: Mapping[str, Array]) -> None:
    """Check that inputs are arrays of one dimension and of equal lengths, with rows. Raises UsageError."""
    for name, array in inputs.items():
        if array.ndim != 1:
            raise UsageError(f"'{name}' must have one dimension, one entry per row, got shape {array.shape}")
    if len({len(array) for array in inputs.values()}) > 1:
        counts = [f"{name} has {len(array)} row{'s' * (len(array) != 1)}" for name, array in inputs.items()]
        raise UsageError(f"every input must have one entry per row: {', '.join(counts)}")
    if any(len(array) == 0 for array in inputs.values()):
        raise UsageError("a call must have at least one row, got none")


def _failed_by_another(code: StatusCode, details: str) -> bool:
    """Check whether a batch failed because its calls had tensors of different shapes, one of them malformed."""
    return code == StatusCode.FAILED_PRECONDITION and "different shapes" in details


def _tensors(infos: Mapping[str, Any]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(dtype_name(infos[name].dtype), _shape(infos[name].tensor_shape)) for name in sorted(infos)}


def _shape(shape: Any) -> tuple[int | None, ...] | None:
    return None if shape.unknown_rank else tuple(None if dim.size < 0 else dim.size for dim in shape.dim)
