"""What several tests use: waiting with a deadline, and handlers."""

import asyncio


async def wait_until(condition):
    """Waits for what must come, with a deadline."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


async def one(data):
    return [data]


async def two(data, options):
    return [data, options]
