#!/usr/bin/env python3
"""Registers an action in the binary dialect, sends it a request, answers that, and checks the reply.

Usage: binary_client.py HOST PORT
"""

import json
import os
import socket
import struct
import sys

# Bytes of the variable parts are counted in the fixed one, but for the payload.
PREFACE = struct.Struct("<4sBBHQ")  # magic, version, mode, reserved, capabilities
HEADER = struct.Struct("<IBBHQ")  # length, kind, flags, reserved, number
REGISTER = struct.Struct("<IB3x")  # credit; action
REQUEST = struct.Struct("<IIHHBB2x")  # ttl, timeout; options, headers, action; attempts
DELIVER = struct.Struct("<QQQIIHHH2x")  # request id, received at, time left, registration, attempt; options, headers
ANSWER = struct.Struct("<QIHHHB5x")  # sequence, retry after, code; options, headers, own code
REPLY = struct.Struct("<QQIIIIHHHHB7x")  # sequence, times, leg, expected, attempt, code; options, headers, own code
ERROR = struct.Struct("<BxH")  # scope, code

HELLO, REGISTER_KIND, REQUEST_KIND, ANSWER_KIND = 0x01, 0x02, 0x05, 0x06
WELCOME, REGISTERED, DELIVER_KIND, REPLY_KIND, ERROR_KIND = 0x11, 0x12, 0x13, 0x16, 0x19
PING, PONG = 0x23, 0x24


def main(host, port):
    action = f"example-{os.getpid()}".encode()
    answers = 0
    with socket.create_connection((host, port), timeout=10) as sock, sock.makefile("rb") as stream:

        def send(kind, number, body=b""):
            sock.sendall(HEADER.pack(len(body), kind, 0, 0, number) + body)

        sock.sendall(PREFACE.pack(b"\xb5RP1", 1, 0, 0, 0))
        send(HELLO, 0, bytes(16))  # no session to come back to
        magic, version, *_ = PREFACE.unpack(stream.read(PREFACE.size))
        assert (magic, version) == (b"\xb5RP1", 1), "the server speaks no version that is spoken here"
        while header := stream.read(HEADER.size):
            length, kind, _flags, _reserved, number = HEADER.unpack(header)
            body = stream.read(length)
            if kind == WELCOME:
                send(REGISTER_KIND, 1, REGISTER.pack(64, len(action)) + action)
            elif kind == REGISTERED:
                fixed = REQUEST.pack(0, 10_000, 0, 0, len(action), 0)
                send(REQUEST_KIND, 1, fixed + action + b'{"value":2}')
            elif kind == DELIVER_KIND:
                *_, options, headers = DELIVER.unpack_from(body)
                data = json.loads(body[DELIVER.size + options + headers :])
                answers += 1
                reply = json.dumps({"value": data["value"] + 1}).encode()
                send(ANSWER_KIND, number, ANSWER.pack(answers, 0, 0, 0, 0, 0) + reply)
            elif kind == REPLY_KIND:
                *_, code, options, headers, own_code = REPLY.unpack_from(body)
                payload = body[REPLY.size + own_code + options + headers :]
                assert (number, code, json.loads(payload)) == (1, 0, {"value": 3}), payload
                return print(f"request {number}: {payload.decode()}")
            elif kind == PING:
                send(PONG, number)
            elif kind == ERROR_KIND:
                sys.exit(f"error {ERROR.unpack_from(body)[1]}: {body[ERROR.size :].decode()}")
    sys.exit("the server closed the connection")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
