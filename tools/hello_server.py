"""The peer of the HTTP benchmarks: a stock Tornado hello-world POST handler. `python -m tools.hello_server PORT`

One process, and nothing is logged: Tornado would write a line a request where its logger is set up.
"""
import asyncio
import sys

import tornado.web


class Hello(tornado.web.RequestHandler):
    def post(self):
        self.finish('{"hello": "world"}')


def application():
    return tornado.web.Application([(r".*", Hello)], log_function=lambda _handler: None)


async def main(port):
    application().listen(port, "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
