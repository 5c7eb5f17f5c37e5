"""The decisions on versions: promoted or not, taken back. Each goes into the ledger, and moves the aliases."""

from __future__ import annotations

from flows.errors import AskedWrongly, Overtaken
from flows.mlflow_connection import asking
from flows.records import ModelVersion, Verdict
from flows.registry import telling
from flows.registry.bookkeeping import Bookkeeping
from flows.registry.catalog import is_withdrawn
from flows.registry.ledger import Entry
from flows.registry.registering import Registering

# As the champion that a verdict compared with: whoever it is.
ANY = ""


class Registry(Bookkeeping, Registering):
    """The registry, to read and to change.

    Every call may be repeated after a crash, and then finishes what is left. Raises as Catalog does.
    """

    @asking
    def record(self, name: str, version: str, verdict: Verdict, over: str | None = ANY) -> Entry:
        """Write a verdict not to promote a version into the ledger, as the version's tags and as a line of the file, once.

        `over` as in `promote`; raises Overtaken as there.
        """
        state, judged = self._state(name), self.find(name, version)
        if over not in (ANY, state.champion):
            raise Overtaken(name, judged.version, over, state.champion)
        entry = self._entry("verdict", judged, verdict, state.champion, state.champion, state.history)
        self._keep(entry)
        self._client.set_model_version_tag(name, judged.version, telling.VERDICT, telling.verdict_tag(verdict))
        return entry

    @asking
    def promote(self, name: str, version: str, verdict: Verdict, over: str | None = ANY) -> ModelVersion:
        """Make the version the champion, and the champion before it `previous`; the verdict goes to the ledger first.

        `over` is the champion that the verdict compared it with, None for none. Raises AskedWrongly if the verdict is not to
        promote, Overtaken if another version is champion by now, HeadstartError if another process moved the aliases while
        this one did, which only one without our lock can.
        """
        if not verdict.promoted:
            raise AskedWrongly(f"version {version} of {name} can not become champion: its verdict is not to promote it")
        judged = self.find(name, version)
        with self.alone(name):
            self._settle(self._state(name), besides=judged.tags.get("headstart.work_key", ""))
            state = self._state(name)
            champion = state.champion
            if champion == judged.version:
                return self.find(name, version)
            if over not in (ANY, champion):
                raise Overtaken(name, judged.version, over, champion)
            entry = self._entry("verdict", judged, verdict, champion, judged.version, state.history)
            self._client.set_model_version_tag(name, judged.version, telling.VERDICT, telling.verdict_tag(verdict))
            self._decide(entry)
        return self.find(name, judged.version)

    @asking
    def set_challenger(self, name: str, version: str) -> ModelVersion:
        """Make the version the challenger: registered and judged, not promoted."""
        self._move(name, {"challenger": self.find(name, version).version})
        return self.find(name, version)

    @asking
    def rollback(self, name: str, to: str | None = None, reason: str = "") -> ModelVersion:
        """Make the previous champion, or the earlier champion `to`, the champion again; the ledger keeps the `reason`.

        The version taken back is tagged withdrawn, and never promoted again. Raises AskedWrongly if there is no previous
        champion, or `to` is none that may come back.
        """
        with self.alone(name):
            self.find(name, "champion")
            settled = self._settle(self._state(name))
            if settled and settled.kind == "rollback" and to in (None, settled.champion_after):
                return self.find(name, "champion")  # it was cut short, and is finished now
            champion, previous = self.find(name, "champion"), self.current(name).get("previous")
            if to is not None:
                previous = self._former_champion(name, to, champion.version)
            if previous is None or previous == champion:
                raise AskedWrongly(f"{name} has no previous champion to go back to; version {champion.version} stays champion")
            why = f": {reason}" if reason else ""
            reasons = (f"version {champion.version} was taken back by hand{why}; version {previous.version} is champion again",)
            before, after, history = champion.version, previous.version, self._state(name).history
            self._decide(self._entry("rollback", champion, Verdict(False, reasons), before, after, history))
        return self.find(name, "champion")

    def _former_champion(self, name: str, version: str, champion: str) -> ModelVersion:
        """The version, if it was champion before and was not taken back. Raises AskedWrongly, with those that may come back."""
        once = {entry.champion_after for entry in self.history(name)} - {champion}
        allowed = [v for v in self.versions(name) if v.version in once and not is_withdrawn(v)]
        for former in allowed:
            if former.version == version:
                return former
        names = ", ".join(v.version for v in allowed) or "none"
        raise AskedWrongly(
            f"version {version} of {name} is no earlier champion that may come back (one taken back may not); allowed: {names}"
        )
