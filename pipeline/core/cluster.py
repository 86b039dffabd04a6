"""Ray as clipsan uses it: a private quiet instance on one machine, or a cluster that the user names."""

import json
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from clipsan.stages.registry import EXTENSIONS
from clipsan.stages.stage import config

from .config import ConfigError
from .cpus import cpus
from .stop import Terminated


@config
class PoolConfig:
    """The workers of a pass that needs machines of its own, as a cluster gives GPUs to the oracle and CPUs to decoding."""

    workers: Annotated[int, Field(ge=1)] | None = None
    """Worker processes; null: as many as the other passes have."""
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    """GPUs of a worker, fractions share one; null: as the other passes."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = field(default_factory=dict)
    """What a worker takes of the resources that nodes of a cluster were started with, as `oracle: 1`: it runs on those nodes only."""
    wait_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds that an autoscaler has to start the first node with these resources; 0: one must be there already."""


@config
class ClusterConfig:
    """What the job may use."""

    address: str | None = None
    """Ray cluster to join ("auto", "ray://host:10001"); null starts a private one on this machine."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Worker processes of a pass; null takes one a CPU."""
    threads_per_worker: Annotated[int, Field(ge=1)] = 1
    """Torch and OpenMP threads of a worker; workers times threads should not exceed the CPUs."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of a worker of the embed pass and of training; fractions share a GPU."""
    encoders: PoolConfig | None = None
    """Workers of the embed pass that hold the model, while all other CPUs read and decode; null: every worker does both, unless
    workers have GPUs."""
    object_store_mb: Annotated[int, Field(ge=80)] = 1024
    """Size of the private instance's object store; half of it is what decoded pairs may take on their way to the encoders."""
    alone_below_pairs: Annotated[int, Field(ge=0)] = 2000
    """A pass over a data set of fewer pairs is done by this process itself, and Ray is not started for it: workers take seconds
    to start. 0: always by workers, as on a cluster that is joined and wherever a pass has GPUs or nodes of its own."""

    @property
    def apart(self) -> PoolConfig | None:
        """The encoders of the embed pass; None where each worker does both."""
        return PoolConfig() if self.encoders is None and self.gpus_per_worker else self.encoders

    @property
    def device(self) -> str:
        """Where the model of the embed pass runs, by torch's name."""
        given = None if self.encoders is None else self.encoders.gpus_per_worker
        return "cuda" if (self.gpus_per_worker if given is None else given) else "cpu"

    def worker_count(self) -> int:
        """Return the number of workers, as given or one for each group of threads that this process may run at once."""
        return self.workers or max(1, cpus() // self.threads_per_worker)

    def describe(self) -> str:
        """Return the workers and where they run, for --dry-run."""
        where = "a private Ray on this machine" if self.address is None else f"Ray at {self.address}"
        return f"{self.worker_count()} x {self.threads_per_worker} threads, {self.gpus_per_worker:g} GPU each, {where}"


def check_private(pool: PoolConfig, cluster: ClusterConfig) -> None:
    """Refuse resources where no node can have any.

    Raises:
        ConfigError: the pool names resources, and Ray will be a private one.
    """
    if pool.resources and cluster.address is None:
        raise ConfigError(
            f"pool.resources={dict(pool.resources)}: a private Ray on this machine has none; set cluster.address, or leave them out"
        )


def check_pool(pool: PoolConfig) -> None:
    """Refuse a pool that would wait for ever, once Ray has been joined; `pool.wait_s` leaves an autoscaler time to start a node.

    Raises:
        ConfigError: no node of the cluster offers what a worker of the pool takes.
    """
    if not pool.resources:
        return
    join_ray()
    if _offered(pool.resources):
        return
    if pool.wait_s and _autoscaled(pool):
        return
    wanted = ", ".join(f"resources.{name}={amount:g}" for name, amount in pool.resources.items())
    start = json.dumps(dict(pool.resources))
    waited = f" and none came in {pool.wait_s:g} s" if pool.wait_s else ""
    raise ConfigError(
        f"{wanted}: no node of the cluster offers that much{waited}; start one with `ray start --resources '{start}'`"
    )


def _offered(resources: dict[str, float]) -> bool:
    """Whether one living node has all of them."""
    import ray

    return any(
        all(node["Resources"].get(name, 0) >= amount for name, amount in resources.items())
        for node in ray.nodes()
        if node["Alive"]
    )


def _autoscaled(pool: PoolConfig) -> bool:
    """Ask the autoscaler for a node, and return whether it came in time."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[dict(pool.resources)])
    try:
        stop = time.monotonic() + pool.wait_s
        while time.monotonic() < stop:
            time.sleep(min(2.0, pool.wait_s))
            if _offered(pool.resources):
                return True
        return False
    finally:
        # The request would hold the node for as long as the cluster lives; from here on the workers do.
        request_resources(bundles=[])


QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray warns about the constructor arguments of every actor pool; what fails comes back as an exception.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "0",
}

# A unit may take long on a slow machine (256 MiB of photos through a large model on one core), and only a finished unit counts as progress.
NO_PROGRESS_TIMEOUT_S = 4 * 3600


@dataclass(slots=True)
class _Session:
    """Ray for the length of a job, as soon as somebody needs it."""

    cluster: ClusterConfig
    until: ExitStack
    started: bool = False
    pools: dict[Any, Any] = field(default_factory=dict)
    """Workers of passes, by what they take of a machine; each has an `end()`."""


_SESSION: ContextVar[_Session | None] = ContextVar("_SESSION", default=None)


@contextmanager
def ray_session(cluster: ClusterConfig) -> Iterator[None]:
    """Have Ray for the length of a job: the first that needs it starts or joins it (`join_ray`), the end of the job ends it.

    Within another session that one's Ray serves, and an instance that runs in this process already stays as it is.
    """
    if _SESSION.get() is not None:
        yield
        return
    with ExitStack() as until:
        session = _Session(cluster, until)
        before = _SESSION.set(session)
        try:
            yield
        finally:
            _SESSION.reset(before)
            _end_pools(session.pools)


def join_ray() -> None:
    """Start or join the Ray of the session around this, if that has not been done; outside of a session one must be running."""
    session = _SESSION.get()
    if session is not None and not session.started:
        session.until.enter_context(_running(session.cluster))
        session.started = True


def start_ray() -> None:
    """Have Ray for something else than passes: their workers end, because they hold CPUs and GPUs that it will want."""
    join_ray()
    _end_pools(session_pools() or {})
    _settle_data_context()


def session_pools() -> dict[Any, Any] | None:
    """Return the workers of the session around this, which end with it; None outside of one."""
    session = _SESSION.get()
    return None if session is None else session.pools


def _end_pools(pools: dict[Any, Any]) -> None:
    while pools:
        pools.popitem()[1].end()


@contextmanager
def _running(cluster: ClusterConfig) -> Iterator[None]:
    """Start or join Ray.

    A private instance listens on the loopback interface alone (where the process had imported ray before, on all of them) and
    takes orders only from who knows a random token, which this process and its workers have in their environment.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    private = cluster.address is None
    if private:
        os.environ.setdefault(*LOOPBACK)
    import ray

    started = not ray.is_initialized()
    with _environment(_credentials() if started and private else {}):
        try:
            if started:
                with _silent_stderr(), _own_sigterm():
                    _init(ray, cluster)
            yield
        finally:
            if started:
                _shut_down(ray)


def _shut_down(ray: Any) -> None:
    """End or leave Ray, and with a private one all of its processes.

    Ray gives its raylet a second and then kills it, which on a busy machine, or while it starts, leaves what the raylet would have
    ended: its two agents look for the head of the cluster, which is gone, for a minute.
    """
    import psutil  # Ray brings it along

    of_ray = _raylets()
    ray.shutdown()
    _, alive = psutil.wait_procs([*{*of_ray, *_raylets()}], timeout=GRACE_S)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=GRACE_S)


GRACE_S = 2.0
"""Seconds that what Ray has left running has to end by itself, and then to be gone."""


def _raylets() -> list[Any]:
    """Return the raylets that this process has started, and all processes below them."""
    import psutil

    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if child.name() == "raylet":
                found += [child, *child.children(recursive=True)]
    return found


LOOPBACK = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
"""Ray's own switch, read at its import: its servers then have the address 127.0.0.1, as on those systems, and listen there."""


def _credentials() -> dict[str, str | None]:
    """Return the variables of a session with a token of its own; without RAY_AUTH_MODE Ray turns the tokens on itself."""
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    # a session before this one had another token, which Ray keeps
    AuthenticationTokenLoader.instance().reset_cache()
    return {"RAY_AUTH_MODE": None, "RAY_AUTH_TOKEN_PATH": None, "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables, or unset those whose value is None, for the length of a block."""
    before = {name: os.environ.get(name) for name in changes}
    try:
        _set(changes)
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep what this process does at SIGTERM: Ray puts its own answer in the place, which ends in an abort."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as stop:
        # Ray's own answer, while it starts
        if stop.code == signal.SIGTERM:
            raise Terminated from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _init(ray: Any, cluster: ClusterConfig) -> None:
    threads = str(cluster.threads_per_worker)
    pinned = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    extensions = {EXTENSIONS: os.environ[EXTENSIONS]} if EXTENSIONS in os.environ else {}
    common = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": {**QUIET, **pinned, **extensions}},
    }
    if cluster.address is not None:
        ray.init(address=cluster.address, **common)
        return
    # Decoders of a stream take every CPU that there is.
    taken = cluster.worker_count() * cluster.threads_per_worker
    taken = (
        max(taken, cpus())
        if cluster.workers is None or (cluster.apart is not None and cluster.gpus_per_worker)
        else taken
    )
    # One logical CPU more than the workers take: a pool that holds every CPU leaves none for Ray Data's own tasks, and the job hangs.
    ray.init(
        address="local",
        num_cpus=taken + 1,
        include_dashboard=False,
        object_store_memory=cluster.object_store_mb * 2**20,
        **common,
    )


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep what Ray's C++ side prints at start out of the terminal; what goes wrong comes as an exception."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _settle_data_context() -> None:
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
