"""An HTTP front: `POST /test` with a JSON body becomes a request for `client_2`, the reply's data the answer's body.

Run: python front.py HOST:PORT HTTP-PORT

What has not run is asked again for a while: nobody had the action, or room, at that moment. So is what went down with
its handler when there was no other, which may have run: this request may run twice. Without a reason like that, leave
`HandlerLostError` and `ConnectionLostError` out, or send the request `durable` with an `idempotency_key`.
"""

import json
import sys
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import ringpost

PATIENCE = 5.0
HAS_NOT_RUN = (ringpost.NoHandlerError, ringpost.OverloadedError, ringpost.UnavailableError, ringpost.ConnectError)
MAY_RUN_TWICE = (ringpost.HandlerLostError, ringpost.ConnectionLostError)
STATUSES = {
    ringpost.NoHandlerError: HTTPStatus.NOT_FOUND,
    ringpost.OverloadedError: HTTPStatus.SERVICE_UNAVAILABLE,
    ringpost.UnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    ringpost.RequestTimeoutError: HTTPStatus.GATEWAY_TIMEOUT,
    ringpost.PayloadTooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
}


def ask(client: ringpost.SyncClient, data: object) -> object:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return client.request("client_2", data, max_attempts=5, timeout=8).data
        except HAS_NOT_RUN + MAY_RUN_TWICE:
            if time.monotonic() >= until:
                raise
            time.sleep(0.05)


class Front(BaseHTTPRequestHandler):
    client: ringpost.SyncClient

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path != "/test":
            return self.answer(HTTPStatus.NOT_FOUND, {"error": "only POST /test is here"})
        try:
            data = json.loads(body)
        except ValueError as error:
            return self.answer(HTTPStatus.BAD_REQUEST, {"error": f"the body is no JSON: {error}"})
        try:
            self.answer(HTTPStatus.OK, ask(self.client, data))
        except ringpost.RingpostError as error:
            status = next(
                (status for kind, status in STATUSES.items() if isinstance(error, kind)), HTTPStatus.BAD_GATEWAY
            )
            self.answer(status, {"error": str(error)})

    def answer(self, status: HTTPStatus, data: object) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """A line for each request would say nothing that run.py does not count."""


def main(address: str, http_port: str) -> None:
    host, port = address.rsplit(":", 1)
    with ringpost.SyncClient(host=host, port=int(port), reconnect_interval=0.2) as client:
        Front.client = client
        with ThreadingHTTPServer(("127.0.0.1", int(http_port)), Front) as server:
            print("ready", flush=True)
            server.serve_forever()


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2])
    except KeyboardInterrupt:
        sys.exit(130)
