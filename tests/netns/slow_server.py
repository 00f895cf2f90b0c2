"""A web server as slow as it is told to be: each request waits before it is answered.

    slow_server.py NAME PORT FILE

FILE holds the seconds to wait, read anew for each request. Answers every GET with the line that the
laboratory's other servers give: NAME CLIENT CLIENTPORT PORT. Connections are kept alive.
"""

import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Slow(BaseHTTPRequestHandler):
    """One connection's requests."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body go out together

    def do_GET(self) -> None:
        time.sleep(float(Path(sys.argv[3]).read_text()))
        host, port = self.client_address[:2]
        body = f"{sys.argv[1]} {host} {port} {sys.argv[2]}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words: object) -> None:
        """Nothing to say."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("", int(sys.argv[2])), Slow)
    print("listening", flush=True)
    server.serve_forever()
