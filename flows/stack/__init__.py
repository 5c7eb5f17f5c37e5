"""The local stack: Prefect and MLflow servers and a Ray head on loopback, held and watched while the plans are served."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack

from flows import cluster, prefect_database, processes, temporary_folders
from flows.cron import check_cron, local_timezone
from flows.errors import AskedWrongly, HeadstartError
from flows.files import write_json
from flows.plan import Plan
from flows.settings import Settings, child_environment, stack_words
from flows.stack import serving
from flows.stack.logs import Log
from flows.stack.orphans import end_orphans
from flows.stack.servers import Program, Server, mlflow, prefect
from flows.stack.watch import StackServer, watch
from flows.stages.preflight import preflight_check
from flows.words import Say


def run(settings: Settings, plans: Sequence[Plan], *, cron: str, source: str | None, say: Say) -> None:
    """Start the servers that have no address in the settings, serve the plans until interrupted, and stop what was started.

    A part that dies is started again, a few times. Raises AskedWrongly if a stack of this storage root runs already, on a
    wrong cron or a time zone without a name, and as `preflight_check` does; HeadstartError if a part dies too often.
    """
    if running := stack_words(settings):
        raise AskedWrongly(
            f"a stack of {settings.storage} runs already (pid {running['pid']}); end it with Ctrl-C, or name another --workspace"
        )
    check_cron(cron)
    local_timezone()
    for plan in plans:
        preflight_check(settings, plan, prefect=settings.prefect_address)
    settings.storage.mkdir(parents=True, exist_ok=True)
    end_orphans(settings, say)
    temporary_folders.sweep()
    for sign in (signal.SIGINT, signal.SIGTERM):  # a shell starts what runs in its background deaf to Ctrl-C
        signal.signal(sign, signal.default_int_handler)
    with ExitStack() as held:
        try:
            _Stack(settings, plans, say, held).hold(cron, source)
        finally:
            for sign in (signal.SIGINT, signal.SIGTERM):
                signal.signal(sign, lambda *_: say("The stack is ending already; this takes a minute at most"))


class _Stack:
    """The parts of a stack, each ended by `held` in the reverse order of their starts."""

    def __init__(self, settings: Settings, plans: Sequence[Plan], say: Say, held: ExitStack) -> None:
        self._settings, self._plans, self._say, self._held = settings, plans, say, held
        self._servers: list[Server] = []
        self._ray: cluster.Cluster

    def hold(self, cron: str, source: str | None) -> None:
        """Start all parts, and watch them until interrupted."""
        say, held = self._say, self._held
        groups = [plan.workers.group() for plan in self._plans]
        num_cpus = max((group.fewest * group.cpus_per_worker for group in groups), default=0)
        self._servers = [mlflow(self._settings)] if not self._settings.tracking_address else []
        self._servers += [prefect(self._settings)] if not self._settings.prefect_address else []
        own = self._settings.storage / "prefect" if not self._settings.prefect_address else None
        with prefect_database.from_template(own):
            logs = self._start(num_cpus)
        # Ray's address is not among them: retrainings find the Ray of their storage, and its token, by themselves.
        self._settings = self._settings.model_copy(update={server.setting: server.address for server in self._servers})
        os.environ.update(child_environment(self._settings))
        held.callback(self._settings.stack_file.unlink, missing_ok=True)
        self._write()
        self._tell_addresses(cron)
        self._tidy(all_of_them=True)
        served = serving.program(self._settings, self._plans, cron, source)
        held.callback(self._end, served)
        served.start()
        parts = [*map(_part_of, self._servers), self._ray_part(num_cpus), self._serving_part(served)]
        try:
            watch(parts, logs, say, changed=self._write, tidy=self._tidy)
        except KeyboardInterrupt:  # the normal end of a stack
            say("Ending the stack")

    def _start(self, num_cpus: float) -> list[Log]:
        """Start the servers and Ray, and wait until all of them answer."""
        logs = []
        for server in self._servers:
            self._say(f"Starting {server.name} (log: {server.log})")
            logs.append(_log(server, self._say))
            self._held.callback(server.stop)
            server.start()
        self._ray = self._held.enter_context(
            cluster.open_cluster(self._settings.ray_address, self._settings.storage, num_cpus=num_cpus, say=self._say)
        )
        for server in self._servers:
            server.wait_healthy()
        return logs

    def _tell_addresses(self, cron: str) -> None:
        prefect_address = str(self._settings.prefect_address).removesuffix("/api")
        self._say(f"Prefect  {prefect_address}\nMLflow   {self._settings.tracking}\nRay      {self._ray.address}")
        self._say(f"Nights   {cron} in {local_timezone()}")

    def _write(self) -> None:
        """Write the stack file: this process, the servers' addresses, and the marks of their processes."""
        addresses = {server.setting: server.address for server in self._servers}
        parts = [processes.mark(server.pid) for server in self._servers]
        content = {"pid": str(os.getpid()), "owner": processes.mark(), "parts": " ".join(parts), **addresses}
        write_json(self._settings.stack_file, content)

    def _tidy(self, all_of_them: bool = False) -> None:
        """End in Prefect, Ray and MLflow what killed processes left behind, and say so."""
        from flows import cleanup

        # Our own Prefect server has no runs of others.
        alone = all_of_them and any(server.setting == "prefect_address" for server in self._servers)
        try:
            for line in cleanup.end_what_nobody_runs(self._settings, all_of_them=alone):
                self._say(line)
        except Exception as error:  # the stack goes on serving, whatever fails here
            self._say(f"Warning: what killed runs left behind is not ended now: {error}")

    def _end(self, served: Program) -> None:
        from flows import deployments

        answers = all(server.answers() for server in self._servers if server.setting == "prefect_address")
        if answers:
            deployments.pause(self._plans)
        serving.stop(served, self._say)
        if answers:
            self._tidy(all_of_them=True)

    def _ray_part(self, num_cpus: float) -> StackServer:
        def death() -> str | None:
            return cluster.death(self._ray)

        def revive() -> None:
            self._ray = cluster.reopen(self._settings.storage, num_cpus=num_cpus)

        return StackServer("Ray", death, revive)

    def _serving_part(self, served: Program) -> StackServer:
        started = time.monotonic()

        def death() -> str | None:
            if (status := served.status()) is None:
                return None
            if status == serving.ASKED_WRONGLY:
                raise AskedWrongly("the plans can not be served; what Prefect says of it stands above")
            if time.monotonic() - started < 10:
                raise HeadstartError(f"the plans can not be served (status {status}); what Prefect says of it stands above")
            return _describe_end(status)

        def revive() -> None:
            served.stop(0)
            self._tidy(all_of_them=True)
            served.start()

        return StackServer("What serves the plans", death, revive)


def _part_of(server: Server) -> StackServer:
    def death() -> str | None:
        status = server.status()
        return None if status is None else f"{_describe_end(status)}; its log: {server.log}"

    def revive() -> None:
        server.stop(0)
        server.start()
        server.wait_healthy()

    return StackServer(server.name, death, revive)


def _describe_end(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"


def _log(server: Server, say: Say) -> Log:
    assert server.log is not None, "a server of ours has one"
    server.log.parent.mkdir(parents=True, exist_ok=True)
    return Log(server.name, server.log, say)
