"""The peer of the HTTP benchmarks: a stock Tornado hello-world POST handler. `python -m tools.hello_server PORT`"""
import asyncio
import sys

import tornado.web


class Hello(tornado.web.RequestHandler):
    def post(self):
        self.finish('{"hello": "world"}')


async def main(port):
    tornado.web.Application([(r".*", Hello)]).listen(port, "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
