"""A model on a TF Serving server, over gRPC: arrays in, arrays out, and what it means where nothing comes out.

Every call has a deadline. Where the server is out of reach, or its queue is full, gRPC makes the call again within it,
after pauses that double. What remains is a ServingError, one line that says what to do.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import grpc
from grpc import StatusCode
from pydantic import Field

from common.errors import StageError, UsageError
from common.settings import make, settings
from export.client.protos import (
    Array,
    dtype_name,
    from_tensor,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    to_tensor,
)

LONGEST_DETAILS = 300  # characters of what a server says; its C++ may go on with a trace of the graph


class ServingError(StageError):
    """A server that does not answer, or refuses. `code` is gRPC's."""

    def __init__(self, message: str, code: StatusCode):
        super().__init__(message)
        self.code = code


@settings
class Tls:
    """How a client and a server come to trust each other. The files are PEM.

    root_certificates: the authorities whose word the client takes for the server; None: the public ones.
    key, certificate: the client's own, where the server wants to know it too.
    server_name: the name that the server's certificate bears, where that is not its address.
    """

    root_certificates: Path | None = None
    key: Path | None = None
    certificate: Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.key is None) != (self.certificate is None):
            raise ValueError("a client's key and certificate go together: give both or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """What gRPC opens a channel with. Raises StageError for a file that cannot be read, or is no such PEM."""
        files = ((self.root_certificates, "CERTIFICATE"), (self.key, "PRIVATE KEY"), (self.certificate, "CERTIFICATE"))
        return grpc.ssl_channel_credentials(*(_pem(path, kind) if path else None for path, kind in files))


def _pem(path: Path, kind: str) -> bytes:
    """A file of PEM. Raises StageError where it holds nothing of the kind: gRPC would go on without."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StageError(f"the TLS file {path} cannot be read: {error.strerror}") from None
    if not re.search(f"-----BEGIN (?:[A-Z]+ )?{kind}-----".encode(), content):
        raise StageError(f"the TLS file {path} is no PEM: it must hold a line -----BEGIN {kind}-----")
    return content


@settings
class ConnectionSettings:
    """Which model, where, and how long to try."""

    target: str
    model: Annotated[str, Field(min_length=1)]
    version: Annotated[int, Field(ge=0)] | None
    label: Annotated[str, Field(min_length=1)] | None
    timeout: Annotated[float, Field(gt=0)]
    tls: Tls | None
    retries: Annotated[int, Field(ge=0, le=4)]  # gRPC makes no more than five attempts
    max_message_bytes: Annotated[int, Field(gt=0, lt=1 << 31)]

    def __post_init__(self) -> None:
        found = re.fullmatch(r"unix:.+|\S+:([0-9]{1,5})", self.target)
        if not found or not 1 <= int(found[1] or 1) <= 65535:  # gRPC would try another port
            raise ValueError(
                f"a target is host:port, such as localhost:8500, with a port of 1 to 65535, got {self.target!r}"
            )
        if self.version is not None and self.label is not None:
            raise ValueError("give a version or a label, not both")

    def channel(self, further: Sequence[tuple[str, Any]]) -> grpc.Channel:
        """A channel with these settings, and further options of gRPC's."""
        again = {
            "maxAttempts": self.retries + 1,
            "initialBackoff": "0.1s",
            "maxBackoff": "2s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
        if self.retries:
            config["methodConfig"] = [{"name": [{}], "retryPolicy": again}]
        options = [
            ("grpc.service_config", json.dumps(config)),
            ("grpc.per_rpc_retry_buffer_size", self.max_message_bytes),  # else a large call is made once only
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", self.max_message_bytes),
            *further,
        ]
        if self.tls is None:
            return grpc.insecure_channel(self.target, options)
        if self.tls.server_name:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return grpc.secure_channel(self.target, self.tls.credentials(), options)


@dataclasses.dataclass(frozen=True)
class Version:
    """A version of a model that a server knows. state: "AVAILABLE", "LOADING", ...; error: why it did not load."""

    version: int
    state: str
    error: str


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """An input or an output: its type, and its shape, None where that is open."""

    dtype: str
    shape: tuple[int | None, ...] | None


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a signature takes and gives, by name."""

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]


class Connection:
    """One model on one server. A context manager; threads may share it.

    target: "host:port" of gRPC; where a name stands for several addresses ("dns:///name:port"), calls go round them.
    model: the server's name for it. version or label: which one; else the latest.
    timeout: seconds that a call may take, attempts and the pauses between them together.
    retries: how often a call is made again while the server is unavailable, about 0.1, 0.2, 0.4 and 0.8 s later.
    max_message_bytes: of an answer (those of `neurons` are large), and of a request.
    channel_options: further ones of gRPC's, as (name, value).
    Raises UsageError for settings that cannot be, StageError for a TLS file that cannot be read.
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
        channel_options: Sequence[tuple[str, Any]] = (),
    ):
        values = {"target": target, "model": model, "version": version, "label": label, "timeout": timeout, "tls": tls}
        values |= {"retries": retries, "max_message_bytes": max_message_bytes}
        self.settings = make(ConnectionSettings, values, "the client's settings")
        self._channel = self.settings.channel(channel_options)
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def close(self) -> None:
        """Ends the connection, and with it a call that is under way."""
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
        """A signature's outputs, and the version that gave them. version: instead of the connection's own."""
        # No output_filter: a server that batches runs a call for a part of the outputs by itself, outside its batches.
        request = predict_pb2.PredictRequest(model_spec=self._spec(version))
        request.model_spec.signature_name = signature
        for name, array in inputs.items():
            request.inputs[name].CopyFrom(to_tensor(array))
        answer = self._ask(self._predictions.Predict, request)
        return {name: from_tensor(proto) for name, proto in answer.outputs.items()}, answer.model_spec.version.value

    def status(self) -> list[Version]:
        """The versions of the model that the server knows, the oldest first, and how each is."""
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=model_pb2.ModelSpec(name=self.settings.model))
        answer = self._ask(self._models.GetModelStatus, request)
        state = get_model_status_pb2.ModelVersionStatus.State.Name
        versions = [
            Version(one.version, state(one.state), one.status.error_message if one.status.error_code else "")
            for one in answer.model_version_status
        ]
        return sorted(versions, key=lambda one: one.version)

    def metadata(self) -> dict[str, Signature]:
        """The model's signatures, by name."""
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=self._spec(), metadata_field=["signature_def"]
        )
        answer = self._ask(self._predictions.GetModelMetadata, request)
        found = get_model_metadata_pb2.SignatureDefMap()
        answer.metadata["signature_def"].Unpack(found)
        return {
            name: Signature(_tensors(signature.inputs), _tensors(signature.outputs))
            for name, signature in sorted(found.signature_def.items())
            if not name.startswith("__saved_model_")  # TensorFlow's own, for its loader
        }

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

    def _ask(self, call: Callable[..., Any], request: Any) -> Any:
        """Makes a call. Raises ServingError, and UsageError after `close`."""
        try:
            return call(request, timeout=self.settings.timeout)
        except grpc.RpcError as error:
            code, details = error.code(), " ".join((error.details() or "").split())
            said = details if len(details) <= LONGEST_DETAILS else details[:LONGEST_DETAILS] + "..."
            raise ServingError(f"{self._meaning(code, details, request.model_spec)} ({said})", code) from None
        except ValueError:  # gRPC's, of a channel that is closed
            raise UsageError(f"the client of {self._where} is closed: make another") from None

    def _meaning(self, code: StatusCode, details: str, spec: Any) -> str:
        """What a failure means to who asked, and the way out. The wordings are TF Serving's and gRPC's."""
        target = self.settings.target
        match code:
            case StatusCode.UNAVAILABLE:
                return self._unavailable(details)
            case StatusCode.DEADLINE_EXCEEDED:
                limit = self.settings.timeout
                return f"no answer from {target} within {limit:g} s: ask for fewer characters, or raise the timeout"
            case StatusCode.NOT_FOUND:
                return self._not_found(details, spec)
            case StatusCode.INVALID_ARGUMENT if "version label" in details:
                return f"{self._where} has no label '{spec.version_label}': the server's model config file sets them"
            case StatusCode.FAILED_PRECONDITION | StatusCode.INVALID_ARGUMENT if "signature key" in details:
                return (
                    f"{self._where} has no signature '{spec.signature_name}'; there are: {', '.join(self.metadata())}"
                )
            case StatusCode.INVALID_ARGUMENT if "Task size" in details:
                return f"{self._where} takes fewer rows in one call: send several"
            case StatusCode.INVALID_ARGUMENT:
                return f"{self._where} refuses the request"
            case StatusCode.RESOURCE_EXHAUSTED if "larger than max" in details:
                return (
                    f"a message between the client and {target} is too large: ask for fewer rows or characters, or "
                    "raise max_message_bytes"
                )
            case StatusCode.RESOURCE_EXHAUSTED:
                return f"{target} is at its limits: ask again later"
            case StatusCode.UNIMPLEMENTED:
                return f"{target} speaks gRPC, but is no TF Serving"
            case _:
                return f"{self._where} failed: {code.name}"

    def _unavailable(self, details: str) -> str:
        target = self.settings.target
        if "batch scheduling queue" in details:
            return (
                f"{target} is busy, its queue of batches is full: ask again later, or raise max_enqueued_batches in "
                "the server's batching parameters"
            )
        if "HTTP/2" in details:
            return f"{target} does not speak gRPC: that is port 8500 of TF Serving, unless set otherwise; 8501 is REST"
        if self.settings.tls and any(word in details for word in ("andshake", "Verification", "Socket closed")):
            return (
                f"TLS with {target} failed: check the root certificates, the name that the server's certificate bears, "
                "whether it asks for the client's, and whether it speaks TLS at all"
            )
        if "Socket closed" in details:
            return f"{target} closes the connection: it may want TLS"
        return f"no server answers at {target}: see that it is up, and that this is its port for gRPC (8500, not 8501)"

    def _not_found(self, details: str, spec: Any) -> str:
        missing = f"{self.settings.target} serves no model '{spec.name}': give the name that it was started with"
        if not details.startswith("Servable not found"):
            return missing
        try:
            known = [f"{one.version} ({one.state})" for one in self.status()]
        except ServingError as error:
            return missing if error.code == StatusCode.NOT_FOUND else f"{self._where} is not there"
        which = f"no version {spec.version.value}" if spec.HasField("version") else "no version that is ready"
        return f"{self._where} has {which}; there are: {', '.join(known)}"


def _tensors(infos: Mapping[str, Any]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(dtype_name(infos[name].dtype), _shape(infos[name].tensor_shape)) for name in sorted(infos)}


def _shape(shape: Any) -> tuple[int | None, ...] | None:
    return None if shape.unknown_rank else tuple(None if dim.size < 0 else dim.size for dim in shape.dim)
