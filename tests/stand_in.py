"""A process of the exchange that only belongs to it: it holds its role, beats, is ready and stops on a signal.

`python tests/stand_in.py NAME --config FILE --data DIR` takes the place of a real one under supervisord where a test is
about starting, watching and stopping. A gateway answers every POST with an empty result. Files in the data directory
change how it behaves: `fail-NAME` makes it end at once, `hang-NAME` keeps it from ever being ready.
"""
import argparse
import os
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from shm import configuration
from shm.process import Process, die_with_parent

BEAT_SECONDS = 0.2


class Answer(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")


class Server(ThreadingHTTPServer):
    def server_bind(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--config")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--index")
    die_with_parent()
    options = parser.parse_args()
    settings = configuration.load(options.config)
    name = f"{options.name}-{options.index}" if options.index else options.name
    print(f"{name} starts", flush=True)
    if (options.data / f"fail-{name}").exists():
        sys.exit(f"{name} was told to fail")
    process = Process(name, settings.role_of(name), options.data, settings.rings)
    if options.name == "gateway":
        address = (settings.http.host, settings.http.port)
        threading.Thread(target=Server(address, Answer).serve_forever, daemon=True).start()
    while not process.stopping:
        process.beat()
        if not (options.data / f"hang-{name}").exists():
            process.ready()
        time.sleep(BEAT_SECONDS)
    with open(options.data / "stopped", "a", encoding="ascii") as file:
        file.write(f"{name}\n")
    os._exit(0)


if __name__ == "__main__":
    main()
