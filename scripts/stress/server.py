"""One server as its clients see it: requests, streams and metrics. Needs nothing but Python."""

import http.client
import json
import re

# No answer is this slow: whoever waits longer is stuck.
REQUEST_TIMEOUT_SECONDS = 300

SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$")


class Server:
    """Where it listens, and the clients' shared notes of what it did."""

    def __init__(self, port, report):
        self.port = port
        self.report = report

    def call(self, method, path, body=None):
        """Opens a connection and sends one request; the answer is read inside the `with`."""
        return Exchange(self.port, method, path, body)

    def post(self, path, body):
        return self.call("POST", path, body)

    def accepted(self, response):
        """Whether it is a 200. A 503 that says when to come back is an answer too; anything else is a fault."""
        if response.status == 200:
            return True
        if response.status == 503 and response.headers.get("Retry-After"):
            self.report.count("refused with Retry-After")
        else:
            self.report.fault(f"status {response.status}: {response.read(200)!r}")
        return False

    def expect(self, response, *statuses):
        """A wrong request earns one of `statuses`, or a full queue's 503, and an error object in the body."""
        if response.status == 503 and response.headers.get("Retry-After"):
            return
        body = response.read()
        if response.status not in statuses:
            self.report.fault(f"{response.status} instead of {statuses}: {body[:200]!r}")
        elif "error" not in json.loads(body):
            self.report.fault(f"an error without `error`: {body[:200]!r}")

    def metrics(self):
        """Every sample of `/metrics`, summed over its labels."""
        with self.call("GET", "/metrics") as response:
            lines = response.read().decode().splitlines()
        sums = {}
        for line in lines:
            if sample := SAMPLE.match(line):
                name, _labels, value = sample.groups()
                sums[name] = sums.get(name, 0.0) + float(value)
        return sums


class Exchange:
    """One request and its answer on a connection of their own."""

    def __init__(self, port, method, path, body):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_TIMEOUT_SECONDS)
        self.request = (method, path, body if body is None or isinstance(body, bytes) else json.dumps(body).encode())

    def __enter__(self):
        self.connection.request(*self.request, {"Content-Type": "application/json"})
        return self.connection.getresponse()

    def __exit__(self, *_exception):
        self.connection.close()


def events(response):
    """The `data` of each server-sent event, as text."""
    for line in response:
        if line.startswith(b"data: "):
            yield line[len(b"data: ") :].strip().decode()
