"""The ledger, and the aliases that its decisions move; a crash is made up for, and what another hand moved is written down."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flows import mlflow_tags
from flows.errors import HeadstartError
from flows.mlflow_connection import asking
from flows.model_version import ModelVersion
from flows.places import Root, StoredFile, open_place
from flows.places.locks import locks_of
from flows.records import Verdict
from flows.registry import ledger, telling
from flows.registry.catalog import Catalog
from flows.registry.ledger import MOVED, LedgerEntry, champion_at

# The kinds of decisions that make an earlier champion the champion again, by taking the present one back, or by undoing that.
ROLLBACK, UNDONE = "rollback", "rollback undone"
TICK_SECONDS = 0.001


@dataclass(frozen=True)
class State:
    """A model's versions by their numbers, and its ledger, oldest entry first."""

    versions: Mapping[str, ModelVersion]
    history: tuple[LedgerEntry, ...]

    @property
    def champion(self) -> str | None:
        """The version that is champion in the registry."""
        return next((number for number, version in self.versions.items() if "champion" in version.aliases), None)

    @property
    def made(self) -> LedgerEntry | None:
        """The last decision that made a champion."""
        return champion_at(self.history, math.inf)


class Bookkeeping(Catalog):
    """A catalog with a ledger; the place `ledgers` keeps a copy of each model's as a file, `asked_by` enters every new entry."""

    def __init__(self, address: str, ledgers: Root, asked_by: str = "") -> None:
        super().__init__(address)
        self.ledgers, self.asked_by = open_place(ledgers), asked_by

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Hold for the block the lock under which a model's aliases move; it dies with its process.

        It holds among the processes that share the ledgers' place: MLflow has no lock, nor a compare-and-set of aliases.
        """
        with locks_of(self.ledgers).hold(f"{name}.lock"):
            yield

    @asking
    def history(self, name: str) -> tuple[LedgerEntry, ...]:
        """Every decision on a model, oldest first, from the tags in MLflow and the file together."""
        state = self._state(name)
        if not state.versions and not state.history:
            self.find(name, "champion")
        return state.history

    @asking
    def works_in_use(self) -> set[str]:
        """The keys of the works whose versions, of any model, have an alias or wait for approval."""
        versions = [version for model in self.models() for version in self.versions(model.name)]
        used = (v for v in versions if v.aliases or (mlflow_tags.WAITS in v.tags and not v.is_withdrawn))
        return {version.work_key for version in used}

    def _state(self, name: str) -> State:
        versions = self.versions_by_number(name)
        model = self._registered(name)
        tags = [tag for tags in (model.tags if model else {}, *(v.tags for v in versions.values())) for tag in tags.items()]
        tagged = [LedgerEntry.from_text(value) for tag, value in tags if tag.startswith(mlflow_tags.LEDGER_PREFIX)]
        return State(versions, ledger.merge([*tagged, *ledger.read(self._ledger_file(name))]))

    @asking
    def moved_by_hand(self, name: str) -> LedgerEntry | None:
        """What the ledger should say if the champion is not the one of its last decision, nor a crash explains it; not kept."""
        state = self._state(name)
        return None if self._under_way(state) else self._moved(state)

    def _moved(self, state: State) -> LedgerEntry | None:
        told, champion = state.made.champion_after if state.made else None, state.champion
        judged = state.versions.get(champion or told or "")
        if champion == told or judged is None:
            return None
        names = [f"version {version}" if version else "nobody" for version in (champion, told)]
        words = f"the alias champion was moved by another hand: it points at {names[0]}, the last decision at {names[1]}"
        return self._entry(MOVED, judged, Verdict(False, (words,)), told, champion, state.history)

    @asking
    def settle(self, name: str, besides: str = "") -> LedgerEntry | None:
        """Make ledger and aliases agree, as after a crash, or after the champion was moved by another hand.

        A decision whose aliases were not all moved is finished, but a verdict on the work `besides`, which is being judged again.
        A champion from another hand stays and is written into the ledger. Returns the entry, None if there was nothing to do.
        """
        with self.alone(name):
            state = self._state(name)
            return self._settle(state, besides) if state.versions else None

    def _settle(self, state: State, besides: str = "") -> LedgerEntry | None:
        if state.made and self._under_way(state):
            if state.made.kind == "verdict" and state.made.work_key == besides:
                return None
            self._carry_out(state.made)
            return state.made
        if moved := self._moved(state):
            self._keep(moved)
        return moved

    def _under_way(self, state: State) -> bool:
        """Whether the last decision's aliases were being moved when its process died, and nobody moved the champion since."""
        made = state.made
        if made is None or state.champion not in (made.champion_before, made.champion_after):
            return False
        return bool(self._client.get_registered_model(made.name).tags.get(mlflow_tags.UNDER_WAY) == made.id)

    def _decide(self, entry: LedgerEntry) -> None:
        """Keep a decision that changes the champion, and move the aliases; killed in between, `settle` finishes it."""
        self._client.set_registered_model_tag(entry.name, mlflow_tags.UNDER_WAY, entry.id)
        self._keep(entry)
        self._carry_out(entry)

    def _carry_out(self, entry: LedgerEntry) -> None:
        name, before, after = entry.name, entry.champion_before, str(entry.champion_after)
        if is_rollback := entry.kind == ROLLBACK:
            self._client.set_model_version_tag(name, str(before), mlflow_tags.WITHDRAWN, "true")
        elif self._aliases(name).get("challenger") == after:
            self._move(name, {"challenger": None})
        if before:
            self._move(name, {"previous": after if is_rollback else before})
        self._move(name, {"champion": after})
        self._client.delete_model_version_tag(name, after, mlflow_tags.WAITS)
        if entry.kind in (ROLLBACK, UNDONE):
            self._client.delete_model_version_tag(name, after, mlflow_tags.WITHDRAWN)
        self._describe(name, after)
        if is_rollback:
            self._move(name, {"previous": self._champion_before(name, after)})
        self._client.delete_registered_model_tag(name, mlflow_tags.UNDER_WAY)

    def _keep(self, entry: LedgerEntry) -> None:
        """Write an entry as a tag of its version, or else of the model if that is registered, and into the file."""
        tag, model = mlflow_tags.LEDGER_PREFIX + entry.id, None if entry.version else self._registered(entry.name)
        if entry.version and tag not in self.find(entry.name, entry.version).tags:
            self._client.set_model_version_tag(entry.name, entry.version, tag, entry.to_text(telling.TAG_CHARS))
        elif model and tag not in model.tags:
            self._client.set_registered_model_tag(entry.name, tag, entry.to_text(telling.TAG_CHARS))
        ledger.append(self._ledger_file(entry.name), entry)

    def _ledger_file(self, name: str) -> StoredFile:
        return StoredFile(self.ledgers, f"{name}.jsonl")

    def _describe(self, name: str, champion: str) -> None:
        """Make the champion's description the model's, unless a person wrote that."""
        model = self._client.get_registered_model(name)
        if telling.is_ours(model.description, model.tags):
            version = self._client.get_model_version(name, champion)
            text = telling.describe_model(champion, version.description or "")
            self._client.set_registered_model_tag(name, mlflow_tags.DESCRIPTION_HASH, telling.hash_of(text))
            self._client.update_registered_model(name, text)

    def _move(self, name: str, moves: Mapping[str, str | None]) -> None:
        """Point each alias at its version, or nowhere, and read them again to be sure: MLflow has no compare-and-set."""
        for alias, version in moves.items():
            if version is None:
                self._client.delete_registered_model_alias(name, alias)
            else:
                self._client.set_registered_model_alias(name, alias, version)
        aliases = self._aliases(name)
        if wrong := {alias: aliases.get(alias) for alias, version in moves.items() if aliases.get(alias) != version}:
            raise HeadstartError(f"another process moved the aliases of {name} just now: wanted {dict(moves)}, found {wrong}")

    def _champion_before(self, name: str, version: str) -> str | None:
        """The champion that the version replaced when it was promoted; None if that was withdrawn since."""
        usable = {v.version for v in self.versions(name) if not v.is_withdrawn}
        promotions = [e for e in self.history(name) if e.promoted and e.version == version and e.champion_before in usable]
        return promotions[-1].champion_before if promotions else None

    def _entry(
        self,
        kind: str,
        judged: ModelVersion,
        verdict: Verdict,
        before: str | None,
        after: str | None,
        history: tuple[LedgerEntry, ...],
    ) -> LedgerEntry:
        """An entry that is made now. Decisions after a move by another hand differ from the same ones before it."""
        moves = [entry.id for entry in history if entry.kind == MOVED]
        # A clock that was ahead, or is behind on another machine, does not put a decision before the one that it follows.
        now = max(time.time(), history[-1].time + TICK_SECONDS if history else 0.0)
        entry = LedgerEntry(
            kind=kind,
            name=judged.name,
            version=judged.version,
            time=now,
            promoted=verdict.promoted,
            reasons=tuple(verdict.reasons),
            champion_before=before,
            champion_after=after,
            data_version=judged.data_version,
            variant_id=judged.variant_id,
            work_key=judged.work_key,
            figures=dict(verdict.figures),
            findings=verdict.findings,
            metric=verdict.metric,
            recipe=verdict.recipe,
            asked_by=self.asked_by,
            git_commit=judged.git_commit,
            level_spent=verdict.level_spent,
            superior=verdict.superior,
            waits=verdict.waits,
            fresh=verdict.fresh,
            after_move=moves[-1] if moves else "",
        )
        return entry.distinct(history)
