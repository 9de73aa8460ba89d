#!/usr/bin/env python3
"""A manager for vswitch in Python: the other end of manager.proto, in as few lines as that takes.

It says yes to UDP port 1, no to port 2, and leaves everything else to people.

    apt install python3-grpcio python3-protobuf protobuf-compiler
    vswitch manager protocol > manager.proto && protoc --python_out=. manager.proto
    examples/manager.py ADDRESS CA CERTIFICATE KEY      # with manager_pb2.py in the current directory, or in PYTHONPATH
"""
import sys
from concurrent import futures

import grpc
import manager_pb2 as pb


def verdict(ask):
    """What to say to a question: verdict and reason."""
    if ask.service.protocol == 17 and ask.service.number == 1:
        return pb.VERDICT_ALLOW, "port 1 is open to " + getattr(ask, "from").workload.name
    if ask.service.protocol == 17 and ask.service.number == 2:
        return pb.VERDICT_DENY, "port 2 is closed"
    return pb.VERDICT_UNSPECIFIED, "not for me to say"


def decide(messages, context):
    hello = next(messages).hello
    # The names in the switch's certificate.
    names = context.auth_context().get("x509_subject_alternative_name", [])
    if b"vswitch://switch/" + hello.switch.encode() not in names:
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "not the switch of this certificate")
    if 1 not in hello.versions:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this manager speaks version 1")
    yield pb.FromManager(welcome=pb.Welcome(version=1))
    for message in messages:
        if message.HasField("ask"):
            said, reason = verdict(message.ask)
            answer = pb.Answer(boot=hello.boot, id=message.ask.id, verdict=said, reason=reason)
            yield pb.FromManager(answer=answer)


def main(address, ca, certificate, key):
    read = lambda path: open(path, "rb").read()
    method = grpc.stream_stream_rpc_method_handler(
        decide,
        request_deserializer=pb.FromSwitch.FromString,
        response_serializer=pb.FromManager.SerializeToString,
    )
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=64))
    service = grpc.method_handlers_generic_handler("vswitch.manager.v1.Manager", {"Decide": method})
    server.add_generic_rpc_handlers((service,))
    credentials = grpc.ssl_server_credentials([(read(key), read(certificate))], read(ca), require_client_auth=True)
    if server.add_secure_port(address, credentials) == 0:
        sys.exit("cannot listen on " + address)
    server.start()
    print("listening on " + address, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
