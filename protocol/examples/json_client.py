#!/usr/bin/env python3
"""Registers an action in the JSON dialect, sends it a request, answers that, and checks the reply.

Usage: json_client.py HOST PORT
"""

import json
import os
import socket
import sys


def main(host, port):
    action = f"example-{os.getpid()}"
    with socket.create_connection((host, port), timeout=10) as sock, sock.makefile(encoding="utf-8") as lines:

        def send(message):
            sock.sendall(json.dumps(message).encode() + b"\n")

        send({"id": action, "action": "init"})
        send({"id": action, "data": {"value": 2}, "clientId": "r-1", "options": {"timeout": 10_000}})
        for line in lines:
            said = json.loads(line)
            message = said.get("message", {})
            if said["action"] == "request":
                data = {"value": message["data"]["value"] + 1}
                send({"action": "response", "message": {"serverId": message["serverId"], "data": data}})
            elif said["action"] == "response":
                assert (message["clientId"], message["data"]) == ("r-1", {"value": 3}), line
                return print(f"request {message['clientId']}: {json.dumps(message['data'])}")
            elif said["action"] == "error":
                sys.exit(f"error: {message['info']}")
    sys.exit("the server closed the connection")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
