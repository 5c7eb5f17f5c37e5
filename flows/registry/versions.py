"""The decisions on versions: promoted or not, taken back. Each goes into the ledger, and moves the aliases."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from flows import mlflow_tags
from flows.errors import AskedWrongly, Overtaken
from flows.mlflow_connection import asking
from flows.model_version import ModelVersion
from flows.records import Verdict
from flows.registry import telling
from flows.registry.bookkeeping import ROLLBACK, UNDONE, Bookkeeping, State
from flows.registry.catalog import card_file
from flows.registry.ledger import LedgerEntry
from flows.registry.registering import Registering

# As the champion that a verdict compared with: whoever it is.
ANY = ""


class Registry(Bookkeeping, Registering):
    """The registry, to read and to change.

    Every call may be repeated after a crash, and then finishes what is left. Raises as Catalog does.
    """

    @asking
    def record(self, name: str, version: str, verdict: Verdict, over: str | None = ANY) -> LedgerEntry:
        """Write a verdict not to promote a version into the ledger, as the version's tags and as a line of the file, once.

        `over` as in `promote`; raises Overtaken as there.
        """
        with self.alone(name):
            state, judged = self._state(name), self.find(name, version)
            if over not in (ANY, state.champion):
                raise Overtaken(name, judged.version, over, state.champion)
            entry = self._entry("verdict", judged, verdict, state.champion, state.champion, state.history)
            self._keep(entry)
            self._client.set_model_version_tag(name, judged.version, mlflow_tags.VERDICT, telling.verdict_tag(verdict))
            if verdict.waits:
                self._client.set_model_version_tag(name, judged.version, mlflow_tags.WAITS, entry.id)
        return entry

    @asking
    def record_unregistered(
        self, name: str, verdict: Verdict, over: str | None, *, work_key: str, variant_id: str, data_version: str, git_commit: str
    ) -> LedgerEntry:
        """Write a verdict on a work that could not be registered into the ledger, once: what its look spent stays spent.

        `over` is the champion that it was compared with, None for none.
        """
        tags = {
            mlflow_tags.WORK_KEY: work_key,
            mlflow_tags.VARIANT_ID: variant_id,
            mlflow_tags.DATA_VERSION: data_version,
            mlflow_tags.GIT_COMMIT: git_commit,
        }
        judged = ModelVersion(name, "", (), tags, 0.0)
        with self.alone(name):
            entry = self._entry("verdict", judged, verdict, over, over, self._state(name).history)
            self._keep(entry)
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
            self._settle(self._state(name), besides=judged.work_key)
            state = self._state(name)
            champion = state.champion
            if champion == judged.version:
                self._settle(state)  # of a decision that was cut short, what came after the alias
                return self.find(name, version)
            if over not in (ANY, champion):
                raise Overtaken(name, judged.version, over, champion)
            entry = self._entry("verdict", judged, verdict, champion, judged.version, state.history)
            self._client.set_model_version_tag(name, judged.version, mlflow_tags.VERDICT, telling.verdict_tag(verdict))
            self._decide(entry)
        return self.find(name, judged.version)

    @asking
    def waiting(self, name: str) -> ModelVersion | None:
        """The version that is proven better than the present champion and waits for approval, the latest; None if none does."""
        state = self._state(name)
        return next((version for version, entry in reversed(_waiting(state)) if _is_current(state, entry)), None)

    @asking
    def approve(self, name: str, version: str | None, reason: str) -> ModelVersion:
        """Make the version that waits for approval, or the waiting `version`, the champion; the ledger keeps the `reason`.

        Raises AskedWrongly if it does not wait, the reason is empty, or another version became champion since it was judged,
        BundleError if its bundle is not the one that was judged.
        """
        with self.alone(name):
            self._refuse_unknown(name)
            settled = self._settle(self._state(name))
            if settled and settled.kind == "approval" and version in (None, settled.version):
                return self.find(name, settled.version)  # it was cut short, and is finished now
            state = self._state(name)
            judged, proven = _pick(name, state, version, reason)
            if not _is_current(state, proven):
                raise AskedWrongly(
                    f"version {judged.version} of {name} was compared with {_called(proven.champion_before)}, and "
                    f"{_called(state.champion)} is champion now; the next retraining compares with that one"
                )
            with tempfile.TemporaryDirectory(prefix="headstart-approve-") as folder:
                self.pull(name, judged.version, Path(folder) / "bundle")
            verdict = Verdict(True, (f"approved by hand: {reason.strip()}",), {}, (), proven.metric, proven.recipe)
            verdict = replace(verdict, superior=proven.superior)
            self._client.set_model_version_tag(name, judged.version, mlflow_tags.VERDICT, telling.verdict_tag(verdict))
            self._decide(self._entry("approval", judged, verdict, state.champion, judged.version, state.history))
        return self.find(name, judged.version)

    @asking
    def reject(self, name: str, version: str | None, reason: str) -> ModelVersion:
        """Let the version that waits for approval, or the waiting `version`, wait no more; it is never promoted by itself.

        Raises AskedWrongly if it does not wait, or the reason is empty.
        """
        with self.alone(name):
            self._refuse_unknown(name)
            state = self._state(name)
            judged, proven = _pick(name, state, version, reason)
            verdict = Verdict(False, (f"rejected by hand: {reason.strip()}",), {}, (), proven.metric, proven.recipe)
            self._keep(self._entry("rejection", judged, verdict, state.champion, state.champion, state.history))
            self._client.set_model_version_tag(name, judged.version, mlflow_tags.VERDICT, telling.verdict_tag(verdict))
            if "challenger" in judged.aliases:
                self._move(name, {"challenger": None})
            # From here on it waits no more: killed before this, the same call does it all again.
            self._client.set_model_version_tag(name, judged.version, mlflow_tags.WITHDRAWN, "true")
            self._client.delete_model_version_tag(name, judged.version, mlflow_tags.WAITS)
        return self.find(name, judged.version)

    def _refuse_unknown(self, name: str) -> None:
        if not self.versions(name):
            self.find(name, "champion")

    @asking
    def set_challenger(self, name: str, version: str) -> ModelVersion:
        """Make the version the challenger: registered and judged, not promoted. One that was withdrawn is none."""
        found = self.find(name, version)
        if not found.is_withdrawn:
            self._move(name, {"challenger": found.version})
        return self.find(name, version)

    @asking
    def describe(self, version: ModelVersion, card: str) -> None:
        """Make a card the version's: whole among the files of its run, as far as it fits as its description in MLflow."""
        if version.run_id:
            self._client.log_text(version.run_id, card, card_file(version))
        self._client.update_model_version(version.name, version.version, telling.fitting(card, card_file(version)))
        if self._aliases(version.name).get("champion") == version.version:
            self._describe(version.name, version.version)

    @asking
    def rollback(self, name: str, to: str | None = None, reason: str = "") -> ModelVersion:
        """Make the previous champion, or the earlier champion `to`, the champion again; the ledger keeps the `reason`.

        The version taken back is tagged withdrawn, and never promoted by itself. With a reason `to` may be one that was taken
        back; if the last decision did that, it is undone, and the present champion is not taken back. Raises AskedWrongly if
        there is no previous champion, or `to` is none that may come back.
        """
        with self.alone(name):
            self.find(name, "champion")
            settled = self._settle(self._state(name))
            if settled and (settled.kind, to) in (
                (ROLLBACK, None),
                (ROLLBACK, settled.champion_after),
                (UNDONE, settled.champion_after),
            ):
                return self.find(name, "champion")  # it was cut short, and is finished now
            champion, previous = self.find(name, "champion"), self.current(name).get("previous")
            if to is not None:
                previous = self._former_champion(name, to, champion.version, reason)
            if previous is None or previous == champion:
                raise AskedWrongly(f"{name} has no previous champion to go back to; version {champion.version} stays champion")
            self._decide(self._rollback(self._state(name), champion, previous, f": {reason}" if reason else ""))
        return self.find(name, "champion")

    def _rollback(self, state: State, champion: ModelVersion, former: ModelVersion, why: str) -> LedgerEntry:
        made, before, after = state.made, champion.version, former.version
        if made and (made.kind, made.champion_before, made.champion_after) == (ROLLBACK, after, before):
            reasons = (f"the rollback to version {before} was undone by hand{why}; version {after} is champion again",)
            return self._entry(UNDONE, former, Verdict(False, reasons), before, after, state.history)
        reasons = (f"version {before} was taken back by hand{why}; version {after} is champion again",)
        return self._entry(ROLLBACK, champion, Verdict(False, reasons), before, after, state.history)

    def _former_champion(self, name: str, version: str, champion: str, reason: str) -> ModelVersion:
        """The version, if it was champion before. Raises AskedWrongly, with those that were, or if it needs a reason."""
        once = {entry.champion_after for entry in self.history(name)} - {champion}
        former = {v.version: v for v in self.versions(name) if v.version in once}
        names = ", ".join(former) or "none"
        if version not in former:
            raise AskedWrongly(f"version {version} of {name} is no earlier champion that may come back; allowed: {names}")
        if former[version].is_withdrawn and not reason:
            raise AskedWrongly(
                f"version {version} of {name} was taken back; to bring it back say why, in words that the ledger keeps: "
                f"headstart models rollback {name} --to {version} --reason TEXT"
            )
        return former[version]


def _waiting(state: State) -> list[tuple[ModelVersion, LedgerEntry]]:
    """The versions that wait for approval, each with the entry that says that it is proven, oldest first.

    One that became champion in another way, and was taken back, waits no more.
    """
    entries = {entry.id: entry for entry in state.history}
    usable = (version for version in state.versions.values() if not version.is_withdrawn)
    versions = sorted(usable, key=lambda version: int(version.version))
    tagged = ((version, entries.get(version.tags.get(mlflow_tags.WAITS, ""))) for version in versions)
    return [(version, entry) for version, entry in tagged if entry]


def _is_current(state: State, proven: LedgerEntry) -> bool:
    return proven.champion_before == state.champion


def _pick(name: str, state: State, version: str | None, reason: str) -> tuple[ModelVersion, LedgerEntry]:
    """The version that waits, by default the latest; raises AskedWrongly if it does not, or there is no reason."""
    if not reason.strip():
        raise AskedWrongly("the reason is empty; say why, in words that the ledger keeps: --reason TEXT")
    waiting = _waiting(state)
    found = [pair for pair in waiting if version in (None, pair[0].version)]
    if not found:
        which = f"version {version} of {name} does not wait" if version else f"no version of {name} waits"
        names = ", ".join(one.version for one, _ in waiting) or "none"
        raise AskedWrongly(f"{which} for approval; waiting: {names} (a plan with promotion.manual lets proven ones wait)")
    return found[-1]


def _called(champion: str | None) -> str:
    return f"version {champion}" if champion else "no champion"
