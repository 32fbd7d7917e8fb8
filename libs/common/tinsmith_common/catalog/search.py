"""Conditions of a session search, as SQL."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, false, or_

from tinsmith_common.catalog.tables import SessionRow

_ROWS: Any = SessionRow


@dataclass(frozen=True)
class SessionQuery:
    """What a session must be. None asks nothing, and so does an empty tuple of words.

    name_words: each is somewhere in the display name, in any case; or `session_id` is the session's.
    projects:   None among them stands for no project.
    statuses:   kind and, for `client_finished`, the reasons that count (none: all).
    after:      creation time and id of the last session seen; older ones follow.
    """

    owner: str
    session_id: str | None = None
    name_words: tuple[str, ...] = ()
    projects: tuple[str | None, ...] | None = None
    user_metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    statuses: tuple[tuple[str, tuple[str, ...]], ...] | None = None
    after: tuple[datetime, str] | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """All of these hold for a match."""
        where: list[ColumnElement[bool]] = [_ROWS.owner == self.owner]
        if self.session_id is not None or self.name_words:
            where.append(or_(*self._identity()))
        if self.projects is not None:
            named = [project for project in self.projects if project is not None]
            anonymous = _ROWS.project_id.is_(None) if None in self.projects else false()
            where.append(or_(_ROWS.project_id.in_(named), anonymous))
        where += [_has_metadata(key, value) for key, value in self.user_metadata.items()]
        if self.statuses is not None:
            where.append(or_(*(_has_status(kind, reasons) for kind, reasons in self.statuses)))
        if self.after is not None:
            at, last = self.after
            where.append(or_(_ROWS.created_at < at, and_(_ROWS.created_at == at, _ROWS.id < last)))
        return where

    def _identity(self) -> list[ColumnElement[bool]]:
        ways: list[ColumnElement[bool]] = []
        if self.session_id is not None:
            ways.append(_ROWS.id == self.session_id)
        if self.name_words:
            ways.append(
                and_(*(_ROWS.display_name.icontains(word, autoescape=True) for word in self.name_words))
            )
        return ways


def _has_metadata(key: str, value: str) -> ColumnElement[bool]:
    # A quote would end the key inside SQLite's JSON path.
    return false() if '"' in key else _ROWS.user_metadata[key].as_string() == value


def _has_status(kind: str, reasons: tuple[str, ...]) -> ColumnElement[bool]:
    reason = _ROWS.finish_reason
    if kind == "client_finished":
        return reason.in_(reasons) if reasons else reason.is_not(None)
    if kind == "failed":
        return and_(reason.is_(None), _ROWS.failure.is_not(None))
    if kind == "active":
        return and_(_ROWS.closed_at.is_(None), reason.is_(None), _ROWS.failure.is_(None))
    return false()  # nothing here cancels a session
