"""Translates qdrant-client's filters, queries and write operations into those of the engine in this process.

Only what the read model uses is translated; anything else raises TypeError, never a filter that matches otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime
from functools import lru_cache
from typing import Any

import qdrant_edge as edge
from qdrant_client import models

from streams.read_model.qdrant.points import IndexSchema, Selected, StoredPoint, Update, Write

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
    return [_translated(one) for one in (found if isinstance(found, list) else [found])]


def _translated(part: Any) -> Any:
    """Return a condition, or what a field is compared with."""
    translate = _TRANSLATIONS.get(type(part))
    if translate is None:
        raise TypeError(f"{part!r} is not translated")
    return translate(part)


def _field(condition: models.FieldCondition) -> edge.FieldCondition:
    given = condition.model_fields_set - {"key"}
    if given not in ({"match"}, {"range"}):
        raise TypeError(f"condition {condition!r} is not translated")
    return edge.FieldCondition(condition.key, **{name: _translated(getattr(condition, name)) for name in given})


def _value(match_: models.MatchValue) -> edge.MatchValue:
    if isinstance(match_.value, bool):
        raise TypeError("the engine in this process matches no booleans: use a number or a keyword")
    return edge.MatchValue(match_.value)


def _ends(between: models.Range | models.DatetimeRange) -> dict[str, Any]:
    return {name: getattr(between, name) for name in ("gt", "gte", "lt", "lte")}


def _time(end: datetime | date | None) -> str | None:
    if end is None:
        return None
    moment = end if isinstance(end, datetime) else datetime(end.year, end.month, end.day)
    return moment.isoformat() if moment.tzinfo is not None else f"{moment.isoformat()}Z"


# By type: matching a pattern asks each of the client's classes whether it is the object's, which takes 1 µs.
_TRANSLATIONS: Mapping[type, Callable[[Any], Any]] = {
    models.Filter: to_filter,
    models.HasIdCondition: lambda condition: edge.HasIdCondition({str(one) for one in condition.has_id}),
    models.IsEmptyCondition: lambda condition: edge.IsEmptyCondition(condition.is_empty.key),
    models.FieldCondition: _field,
    models.MatchValue: _value,
    models.MatchAny: lambda match_: edge.MatchAny([str(value) for value in match_.any]),
    models.MatchText: lambda match_: edge.MatchText(match_.text),
    models.MatchPhrase: lambda match_: edge.MatchPhrase(match_.phrase),
    models.Range: lambda between: edge.RangeFloat(**_ends(between)),
    models.DatetimeRange: lambda between: edge.RangeDateTime(
        **{name: _time(end) for name, end in _ends(between).items()}
    ),
}


def to_payload_selector(selected: Selected) -> Any:
    """Return the engine's selection of payload keys."""
    if isinstance(selected, bool):
        return selected
    if isinstance(selected, models.PayloadSelectorExclude):
        return edge.PayloadSelector.Exclude(list(selected.exclude))
    return _including(tuple(selected))


@lru_cache(maxsize=64)
def _including(keys: tuple[str, ...]) -> Any:
    return edge.PayloadSelector.Include(list(keys))


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
    return [operation for write in writes for operation in _operations(write)]


def _operations(write: Write) -> Iterator[edge.UpdateOperation]:
    if isinstance(write, Update):
        where = to_filter(write.where)
        if write.removed:
            yield edge.UpdateOperation.delete_vectors_by_filter(where, list(write.removed))
        if write.vectors:
            moved = edge.PointVectors(write.image_id, _vectors(write.vectors))
            yield edge.UpdateOperation.update_vectors([moved], condition=where)
        yield edge.UpdateOperation.set_payload_by_filter(where, dict(write.payload))
    else:
        yield _operation(write)


def _operation(write: Write) -> edge.UpdateOperation:
    match write:
        case models.UpsertOperation(upsert=models.PointsList() as upsert):
            points = [edge.Point(str(point.id), _vectors(point.vector), point.payload) for point in upsert.points]
            condition = to_filter(upsert.update_filter) if upsert.update_filter is not None else None
            mode = _UPDATE_MODES[upsert.update_mode or models.UpdateMode.UPSERT]
            return edge.UpdateOperation.upsert_points(points, condition=condition, update_mode=mode)
        case models.SetPayloadOperation(set_payload=models.SetPayload(filter=models.Filter() as where) as change):
            return edge.UpdateOperation.set_payload_by_filter(to_filter(where), change.payload, key=change.key)
        case models.DeleteOperation(delete=models.FilterSelector(filter=where)):
            return edge.UpdateOperation.delete_points_by_filter(to_filter(where))
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
