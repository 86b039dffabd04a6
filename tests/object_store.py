"""An S3 server on this machine, for tests of what lies on object stores."""

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from moto.server import ThreadedMotoServer

KEYS = {"AWS_ACCESS_KEY_ID": "CANARY-ID", "AWS_SECRET_ACCESS_KEY": "CANARY-SECRET"}
"""Credentials that no file may hold."""


@contextmanager
def object_store(bucket: str) -> Iterator[str]:
    """Start a server with an empty bucket, with its keys in the environment; give the query that leads there."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        server.start()
        try:
            host, port = server.get_host_and_port()
            urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/{bucket}", method="PUT"))
            yield f"scheme=http&endpoint_override={host}:{port}&region=us-east-1"
        finally:
            server.stop()
