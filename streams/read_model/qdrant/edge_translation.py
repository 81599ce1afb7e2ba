"""Translates qdrant-client's filters, queries and write operations into those of the engine in this process.

Only what the read model uses is translated; anything else raises TypeError, never a filter that matches otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

import qdrant_edge as edge
from qdrant_client import models

from streams.read_model.qdrant.points import IndexSchema, Selected, StoredPoint, Write

_UPDATE_MODES = {
    models.UpdateMode.UPSERT: edge.UpdateMode.Upsert,
    models.UpdateMode.INSERT_ONLY: edge.UpdateMode.InsertOnly,
    models.UpdateMode.UPDATE_ONLY: edge.UpdateMode.UpdateOnly,
}
_SCHEMAS = {
    models.PayloadSchemaType.KEYWORD: edge.PayloadSchemaType.Keyword,
    models.PayloadSchemaType.INTEGER: edge.PayloadSchemaType.Integer,
    models.PayloadSchemaType.DATETIME: edge.PayloadSchemaType.Datetime,
}
_TOKENIZERS = {
    models.TokenizerType.WHITESPACE: edge.TokenizerType.Whitespace,
    models.TokenizerType.WORD: edge.TokenizerType.Word,
}
_DIRECTIONS = {models.Direction.ASC: edge.Direction.Asc, models.Direction.DESC: edge.Direction.Desc}


def to_filter(where: models.Filter) -> edge.Filter:
    """Return the engine's filter."""
    if where.min_should is not None:
        raise TypeError("min_should is not translated")
    return edge.Filter(
        must=_conditions(where.must), should=_conditions(where.should), must_not=_conditions(where.must_not)
    )


def _conditions(found: Any) -> list[Any] | None:
    if found is None:
        return None
    return [_condition(one) for one in (found if isinstance(found, list) else [found])]


def _condition(condition: Any) -> Any:
    match condition:
        case models.Filter():
            return to_filter(condition)
        case models.HasIdCondition():
            return edge.HasIdCondition({str(one) for one in condition.has_id})
        case models.IsEmptyCondition():
            return edge.IsEmptyCondition(condition.is_empty.key)
        case models.FieldCondition(key=key, match=match_, range=None) if match_ is not None:
            return edge.FieldCondition(key, match=_match(match_))
        case models.FieldCondition(key=key, match=None, range=between) if between is not None:
            return edge.FieldCondition(key, range=_range(between))
    raise TypeError(f"condition {condition!r} is not translated")


def _match(match_: Any) -> Any:
    match match_:
        case models.MatchValue(value=bool()):
            raise TypeError("the engine in this process matches no booleans: use a number or a keyword")
        case models.MatchValue(value=value):
            return edge.MatchValue(value)
        case models.MatchAny(any=values):
            return edge.MatchAny([str(value) for value in values])
        case models.MatchText(text=text):
            return edge.MatchText(text)
        case models.MatchPhrase(phrase=phrase):
            return edge.MatchPhrase(phrase)
    raise TypeError(f"match {match_!r} is not translated")


def _range(between: models.Range | models.DatetimeRange) -> Any:
    ends = {name: getattr(between, name) for name in ("gt", "gte", "lt", "lte")}
    if isinstance(between, models.DatetimeRange):
        return edge.RangeDateTime(**{name: _time(end) for name, end in ends.items()})
    return edge.RangeFloat(**ends)


def _time(end: datetime | date | None) -> str | None:
    if end is None:
        return None
    moment = end if isinstance(end, datetime) else datetime(end.year, end.month, end.day)
    return moment.isoformat() if moment.tzinfo is not None else f"{moment.isoformat()}Z"


def to_payload_selector(selected: Selected) -> Any:
    """Return the engine's selection of payload keys."""
    if isinstance(selected, models.PayloadSelectorExclude):
        return edge.PayloadSelector.Exclude(list(selected.exclude))
    return selected if isinstance(selected, bool) else edge.PayloadSelector.Include(list(selected))


def to_order(order_by: models.OrderBy | None) -> edge.OrderBy | None:
    """Return the engine's order."""
    if order_by is None:
        return None
    start_from = order_by.start_from
    if isinstance(start_from, date):
        raise TypeError("only a number to start from is translated")
    return edge.OrderBy(order_by.key, _DIRECTIONS[order_by.direction or models.Direction.ASC], start_from)


def to_query(request: models.QueryRequest) -> edge.QueryRequest:
    """Return the engine's query, without payload."""
    prefetch = request.prefetch or []
    return edge.QueryRequest(
        limit=request.limit or 10,
        query=_scoring(request.query, request.using),
        prefetches=[_prefetch(one) for one in (prefetch if isinstance(prefetch, list) else [prefetch])],
        filter=to_filter(request.filter) if request.filter is not None else None,
        score_threshold=request.score_threshold,
        with_payload=False,
        with_vector=False,
    )


def _prefetch(prefetch: models.Prefetch) -> edge.Prefetch:
    return edge.Prefetch(
        limit=prefetch.limit or 10,
        query=_scoring(prefetch.query, prefetch.using),
        filter=to_filter(prefetch.filter) if prefetch.filter is not None else None,
        score_threshold=prefetch.score_threshold,
    )


def _scoring(query: Any, using: str | None) -> Any:
    match query:
        case models.SparseVector() | list():
            return edge.Query.Nearest(_vector(query), using=using)
        case models.FormulaQuery(formula=models.SumExpression(sum=parts), defaults=defaults):
            names = [part for part in parts if isinstance(part, str)]
            if len(names) < len(parts):
                raise TypeError("only a sum of scores is translated")
            terms = [edge.Expression.Variable(name) for name in names]
            return edge.Formula(edge.Expression.Sum(terms), defaults=dict(defaults or {}))
    raise TypeError(f"query {query!r} is not translated")


def to_index(schema: IndexSchema) -> Any:
    """Return the engine's schema of an index."""
    match schema:
        case models.PayloadSchemaType():
            return _SCHEMAS[schema]
        case models.KeywordIndexParams():
            return edge.KeywordIndexParams(is_tenant=schema.is_tenant)
        case models.TextIndexParams():
            return edge.TextIndexParams(
                tokenizer=_TOKENIZERS[schema.tokenizer] if schema.tokenizer is not None else None,
                min_token_len=schema.min_token_len,
                lowercase=schema.lowercase,
                phrase_matching=schema.phrase_matching,
            )
    raise TypeError(f"index {schema!r} is not translated")


def to_operations(writes: Sequence[Write]) -> list[edge.UpdateOperation]:
    """Return the engine's operations of writes, in order."""
    filters = _Filters()
    return [_operation(write, filters) for write in writes]


class _Filters:
    """Translates each filter once: the operations of one change have the same, and it costs as much as they do."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[models.Filter, edge.Filter]] = {}  # with the filter, so that its id stays its own

    def of(self, where: models.Filter | None) -> edge.Filter:
        if where is None:
            raise TypeError("only writes by filter are translated")
        if id(where) not in self._known:
            self._known[id(where)] = where, to_filter(where)
        return self._known[id(where)][1]


def _operation(write: Write, filters: _Filters) -> edge.UpdateOperation:
    match write:
        case models.UpsertOperation(upsert=models.PointsList() as upsert):
            points = [edge.Point(str(point.id), _vectors(point.vector), point.payload) for point in upsert.points]
            condition = filters.of(upsert.update_filter) if upsert.update_filter is not None else None
            mode = _UPDATE_MODES[upsert.update_mode or models.UpdateMode.UPSERT]
            return edge.UpdateOperation.upsert_points(points, condition=condition, update_mode=mode)
        case models.SetPayloadOperation(set_payload=change):
            return edge.UpdateOperation.set_payload_by_filter(filters.of(change.filter), change.payload, key=change.key)
        case models.UpdateVectorsOperation(update_vectors=update):
            moved = [edge.PointVectors(str(point.id), _vectors(point.vector)) for point in update.points]
            return edge.UpdateOperation.update_vectors(moved, condition=filters.of(update.update_filter))
        case models.DeleteVectorsOperation(delete_vectors=deletion):
            return edge.UpdateOperation.delete_vectors_by_filter(filters.of(deletion.filter), list(deletion.vector))
        case models.DeleteOperation(delete=models.FilterSelector(filter=where)):
            return edge.UpdateOperation.delete_points_by_filter(filters.of(where))
    raise TypeError(f"operation {write!r} is not translated")


def _vectors(vectors: Any) -> dict[str, Any]:
    return {name: _vector(vector) for name, vector in vectors.items()}


def _vector(vector: models.SparseVector | Sequence[float]) -> Any:
    if isinstance(vector, models.SparseVector):
        return edge.SparseVector(indices=vector.indices, values=vector.values)
    return list(vector)


def to_point(record: edge.Record) -> StoredPoint:
    """Return a point that the engine has read."""
    vectors: Any = record.vector
    return StoredPoint(str(record.id), record.payload or {}, vectors or {})
