"""Opens a WebSocket with a stock library as its documentation has it, says hello, and ends with 0 if it comes back.

Arguments: library, URL."""

import asyncio
import sys


async def with_websockets(url):
    from websockets.asyncio.client import connect

    async with connect(url, open_timeout=5) as socket:
        await socket.send("hello")
        return await asyncio.wait_for(socket.recv(), 5)


def with_websocket_client(url, **options):
    import websocket

    socket = websocket.create_connection(url, timeout=5, **options)
    socket.send("hello")
    answer = socket.recv()
    socket.close()
    return answer


async def with_aiohttp(url):
    import aiohttp

    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(url) as socket:
            await socket.send_str("hello")
            return await socket.receive_str(timeout=5)


library, url = sys.argv[1:]
if library == "websockets":
    answer = asyncio.run(with_websockets(url))
elif library == "websocket-client":
    answer = with_websocket_client(url)
elif library == "websocket-client-without-origin":
    answer = with_websocket_client(url, suppress_origin=True)
else:
    answer = asyncio.run(with_aiohttp(url))
sys.exit(0 if answer == "hello" else f"answered {answer!r}")
