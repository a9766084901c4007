"""A service in Python: asks the other service for its part, and adds its own.

Run: python service_2.py HOST:PORT NAME
"""

import asyncio
import sys

from ringpost import Client, ConnectionLostError, HandlerLostError, NoHandlerError, OverloadedError, UnavailableError

PATIENCE = 4.0
# After the first three it has not run: its handlers were on their way to another server. After the others it may have,
# and this runs twice.
AGAIN = (NoHandlerError, OverloadedError, UnavailableError, HandlerLostError, ConnectionLostError)


async def main(address: str, name: str) -> None:
    host, port = address.rsplit(":", 1)

    async def handler(data: dict[str, int]) -> dict[str, object]:
        # `client_1` may be behind the same server, or behind the one that it is linked to.
        until = asyncio.get_running_loop().time() + PATIENCE
        while True:
            try:
                reply = await client.request("client_1", data, max_attempts=5, timeout=8)
                return {"value": reply.data["value"] + 1, "by": name}
            except AGAIN:
                if asyncio.get_running_loop().time() >= until:
                    raise
                await asyncio.sleep(0.05)

    client = Client(host=host, port=int(port), action="client_2", request_handler=handler, reconnect_interval=0.2)
    async with client:
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1], sys.argv[2]))
    except KeyboardInterrupt:
        sys.exit(130)
