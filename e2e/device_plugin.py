"""A device plugin of the kubelet (API v1beta1) for devices that do not exist, as a process on the node.

`python -m e2e.device_plugin DIRECTORY RESOURCE COUNT` registers with the kubelet that has its sockets in a directory,
again whenever that kubelet starts anew, and serves until it is ended. It prints an event when it has registered.
"""

import json
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

_PACKAGE: Final = "v1beta1"
_STRING: Final = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
_MESSAGE: Final = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
_FIELDS: Final[dict[str, list[tuple[str, int, str]]]] = {
    "Empty": [],
    "RegisterRequest": [("version", 1, ""), ("endpoint", 2, ""), ("resource_name", 3, "")],
    "DevicePluginOptions": [],
    "Device": [("ID", 1, ""), ("health", 2, "")],
    "ListAndWatchResponse": [("devices", 1, "*Device")],
    "ContainerAllocateRequest": [("devices_ids", 1, "*")],
    "AllocateRequest": [("container_requests", 1, "*ContainerAllocateRequest")],
    "ContainerAllocateResponse": [],
    "AllocateResponse": [("container_responses", 1, "*ContainerAllocateResponse")],
}
"""The part of the API that this plugin uses: of each message its fields, with number and type; `*` is repeated."""
_WATCH_S: Final = 0.5


def _messages() -> dict[str, type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(name="deviceplugin.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            added = message.field.add(name=field, number=number, type=_MESSAGE if kind.strip("*") else _STRING)
            added.label = added.LABEL_REPEATED if kind.startswith("*") else added.LABEL_OPTIONAL
            if kind.strip("*"):
                added.type_name = f".{_PACKAGE}.{kind.strip('*')}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _FIELDS}


_OF: Final = _messages()


class Plugin:
    """The plugin.

    Args:
        directory: holds the sockets of the kubelet and its plugins.
        resource: the name of the extended resource.
        count: how many devices the node has.
    """

    def __init__(self, directory: Path, resource: str, count: int) -> None:
        self._kubelet, self._resource = directory / "kubelet.sock", resource
        self._socket = directory / f"{resource.replace('/', '-')}.sock"
        devices = [{"ID": f"device-{number}", "health": "Healthy"} for number in range(count)]
        self._devices = _OF["ListAndWatchResponse"](devices=devices)
        self._stopped = threading.Event()

    def run(self) -> None:
        """Serve, and register whenever the kubelet has a new socket. A kubelet that starts removes all others."""
        registered: tuple[int, int] | None = None
        server: grpc.Server | None = None
        while not self._stopped.wait(_WATCH_S):
            current = self._kubelet_started()
            if current is None or (current == registered and self._socket.exists()):
                continue
            if server:
                server.stop(None)
            server = self._serve()
            try:
                self._register()
            except grpc.RpcError:  # the kubelet does not listen yet
                continue
            registered = current
            print(json.dumps({"event": "registered", "resource": self._resource}), flush=True)
        if server:
            server.stop(None)
        self._socket.unlink(missing_ok=True)

    def stop(self) -> None:
        """End `run`."""
        self._stopped.set()

    def _kubelet_started(self) -> tuple[int, int] | None:
        try:
            status = self._kubelet.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_ctime_ns

    def _serve(self) -> grpc.Server:
        self._socket.unlink(missing_ok=True)
        handlers = {
            "GetDevicePluginOptions": _unary("Empty", lambda _, __: _OF["DevicePluginOptions"]()),
            "Allocate": _unary("AllocateRequest", self._allocate),
            "ListAndWatch": grpc.unary_stream_rpc_method_handler(
                self._list_and_watch, _OF["Empty"].FromString, _serialize
            ),
        }
        server = grpc.server(futures.ThreadPoolExecutor(4))
        service = grpc.method_handlers_generic_handler(f"{_PACKAGE}.DevicePlugin", handlers)
        server.add_generic_rpc_handlers((service,))
        server.add_insecure_port(f"unix://{self._socket}")
        server.start()
        return server

    def _register(self) -> None:
        request = _OF["RegisterRequest"](version=_PACKAGE, endpoint=self._socket.name, resource_name=self._resource)
        with grpc.insecure_channel(f"unix://{self._kubelet}") as channel:
            register = channel.unary_unary(f"/{_PACKAGE}.Registration/Register", _serialize, _OF["Empty"].FromString)
            register(request, timeout=5)

    def _list_and_watch(self, _: Message, context: Any) -> Iterator[Message]:
        yield self._devices
        while context.is_active() and not self._stopped.wait(_WATCH_S):
            pass

    def _allocate(self, request: Any, _: Any) -> Message:
        return _OF["AllocateResponse"](container_responses=[{} for _ in request.container_requests])


def _unary(request: str, function: Any) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(function, _OF[request].FromString, _serialize)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


if __name__ == "__main__":
    plugin = Plugin(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: plugin.stop())
    plugin.run()
