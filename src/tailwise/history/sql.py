"""What a history uses of SQLAlchemy, or what to install where it is absent."""

from __future__ import annotations

from tailwise.core.errors import UsageError
from tailwise.core.optional import how_to_get

try:
    from sqlalchemy import (
        DDL,
        URL,
        BigInteger,
        Column,
        ColumnElement,
        Connection,
        Engine,
        Float,
        ForeignKey,
        Index,
        Integer,
        LargeBinary,
        MetaData,
        Row,
        String,
        Table,
        Text,
        TypeDecorator,
        UniqueConstraint,
        case,
        create_engine,
        delete,
        event,
        func,
        inspect,
        make_url,
        select,
        text,
        update,
    )
    from sqlalchemy.exc import (
        ArgumentError,
        DBAPIError,
        InterfaceError,
        InvalidRequestError,
        NoSuchModuleError,
        OperationalError,
    )
except ModuleNotFoundError as error:
    _FIX = how_to_get("history")
    raise UsageError("a history takes SQLAlchemy, which is not installed", fix=_FIX) from error

__all__ = [
    "DDL", "URL", "ArgumentError", "BigInteger", "Column", "ColumnElement", "Connection", "DBAPIError", "Engine",
    "Float", "ForeignKey", "Index", "Integer", "InterfaceError", "InvalidRequestError", "LargeBinary", "MetaData",
    "NoSuchModuleError", "OperationalError", "Row", "String", "Table", "Text", "TypeDecorator", "UniqueConstraint",
    "case", "create_engine", "delete", "event", "func", "inspect", "make_url", "select", "text", "update",
]  # fmt: skip
