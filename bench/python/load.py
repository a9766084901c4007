"""The load of row 8: a handler and a requester in Python, each a process of its own, of Ringpost's SDK or of nats-py.

Each is used as its guide shows it. A handler says `ready` on a line of its own and runs until its standard input ends;
a requester measures, and says what it found as one line of JSON. One that is to `grow` says how far it is, and goes on
when it is given a line: meanwhile somebody looks at its memory.
"""

import argparse
import asyncio
import json
import sys
import time

ACTION = "bench"
PATIENCE = 10
CONCURRENT = 1_000
MANY = 100_000


class Ringpost:
    """Ringpost's own SDK: bytes in, bytes out."""

    async def connect(self, port):
        import ringpost

        self.client = ringpost.Client(port=port)
        await self.client.start()

    async def handle(self, concurrency):
        async def echo(data: bytes):
            return data

        await self.client.handle(ACTION, echo, concurrency=concurrency)

    async def request(self, payload):
        return (await self.client.request(ACTION, payload)).bytes

    async def close(self):
        await self.client.close()


class RingpostJson(Ringpost):
    """The same with JSON on both sides, as most handlers have it."""

    async def handle(self, concurrency):
        async def echo(data):
            return data

        await self.client.handle(ACTION, echo, concurrency=concurrency)

    async def request(self, payload):
        text = payload[:-2].decode()
        assert (await self.client.request(ACTION, text)).data == text
        return payload


class Nats:
    """nats-py: bytes in, bytes out."""

    async def connect(self, port):
        import nats

        self.client = await nats.connect(f"nats://127.0.0.1:{port}")

    async def handle(self, concurrency):
        async def echo(message):
            await message.respond(message.data)

        await self.client.subscribe(ACTION, queue="handlers", cb=echo)
        await self.client.flush()

    async def request(self, payload):
        return (await self.client.request(ACTION, payload, timeout=PATIENCE)).data

    async def close(self):
        await self.client.close()


CLIENTS = {"ringpost": Ringpost, "ringpost-json": RingpostJson, "nats": Nats}


async def handle(client, arguments):
    await client.connect(arguments.port)
    await client.handle(arguments.in_flight)
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await client.close()


async def measure(client, arguments):
    await client.connect(arguments.port)
    payload = b"x" * arguments.size
    latencies = []
    over = False

    async def ask():
        while not over:
            began = time.perf_counter_ns()
            reply = await client.request(payload)
            latencies.append(time.perf_counter_ns() - began)
            assert reply == payload, "the reply is not the request"

    tasks = [asyncio.create_task(ask()) for _ in range(arguments.in_flight)]
    await asyncio.sleep(arguments.warm_up)
    latencies.clear()
    print("measuring", flush=True)
    began = time.perf_counter()
    await asyncio.sleep(arguments.seconds)
    elapsed = time.perf_counter() - began
    found = sorted(latencies)
    print("measured", flush=True)
    over = True
    await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)
    await client.close()
    result = {
        "requests": len(found),
        "elapsed_seconds": elapsed,
        "p50_ns": found[len(found) // 2],
        "p99_ns": found[len(found) * 99 // 100],
    }
    print(json.dumps(result), flush=True)


async def grow(client, arguments):
    await client.connect(arguments.port)
    payload = b"x" * arguments.size

    async def ask(times):
        for _ in range(times):
            assert await client.request(payload) == payload, "the reply is not the request"

    await ask(1)
    pause("connected")
    await asyncio.gather(*(ask(1) for _ in range(CONCURRENT)))
    pause("concurrent")
    await asyncio.gather(*(ask(MANY // arguments.in_flight) for _ in range(arguments.in_flight)))
    pause("many")
    await client.close()


WORK = {"handle": handle, "request": measure, "grow": grow}


def pause(word):
    print(word, flush=True)
    sys.stdin.readline()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=WORK)
    parser.add_argument("--client", choices=CLIENTS, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--warm-up", type=float, default=0.5)
    arguments = parser.parse_args()
    factory = None
    if arguments.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    client = CLIENTS[arguments.client]()
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(WORK[arguments.role](client, arguments))


if __name__ == "__main__":
    main()
