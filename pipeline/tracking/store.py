"""A client of an MLflow server or store. Imported late, as MLflow takes seconds to import."""

import logging
import sqlite3
from pathlib import Path
from urllib.parse import unquote

from mlflow import MlflowClient

SQLITE = "sqlite:///"
LOCKED_S = 10.0
"""Seconds that another process may hold the lock of an SQLite file."""

# The import of mlflow sets these levels itself.
for _name in ("mlflow", "mlflow.store.db.utils", "alembic"):
    logging.getLogger(_name).setLevel(logging.ERROR)


def client_of(uri: str) -> MlflowClient:
    """Return a client of a server or a store.

    Raises:
        sqlite3.Error: see check_store.
    """
    check_store(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def check_store(uri: str) -> None:
    """Ask whether an SQLite store takes a write: MLflow itself would try for minutes.

    Raises:
        sqlite3.Error: it is locked, full, read-only, no database, or in a folder that is not there.
    """
    file = file_of(uri)
    if file is None:
        return
    connection = sqlite3.connect(file, timeout=LOCKED_S, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    finally:
        connection.close()


def file_of(uri: str) -> Path | None:
    """Return the file of an SQLite store; None of any other."""
    return Path(unquote(uri.removeprefix(SQLITE).partition("?")[0])) if uri.startswith(SQLITE) else None
