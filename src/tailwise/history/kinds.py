"""Types of columns that check what comes out: SQLite keeps any value in any column, and a store may be edited."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from tailwise.core.typed import is_finite
from tailwise.history import sql
from tailwise.history.sql import TypeDecorator

if TYPE_CHECKING:
    Base = TypeDecorator[Any]
else:
    Base = TypeDecorator


class _Checked(Base):
    """A type of SQLAlchemy whose values are of one kind of Python's. Another is a `ValueError` where it is read."""

    kinds: ClassVar[tuple[type, ...]]

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        """See SQLAlchemy."""
        # PostgreSQL keeps its columns' types, and adds whole numbers up to a Decimal.
        if value is None or dialect.name != "sqlite" or (type(value) in self.kinds and self.fits(value)):
            return value
        raise ValueError(f"{str(value)[:40]!r} stands where {self.kinds[0].__name__} was expected")

    def fits(self, value: Any) -> bool:  # noqa: ARG002 - a hook
        """Whether a value of the kind is one that is written."""
        return True


class Integer(_Checked):
    """A whole number."""

    impl = sql.Integer
    cache_ok = True
    kinds = (int,)


class BigInteger(_Checked):
    """A whole number of 64 bits."""

    impl = sql.BigInteger
    cache_ok = True
    kinds = (int,)


class Float(_Checked):
    """A number that is finite."""

    impl = sql.Float
    cache_ok = True
    kinds = (float, int)

    def fits(self, value: float) -> bool:
        """See `_Checked`."""
        return is_finite(value)


class String(_Checked):
    """A text without zeros, which no path may hold."""

    impl = sql.String
    cache_ok = True
    kinds = (str,)

    def fits(self, value: str) -> bool:
        """See `_Checked`."""
        return "\0" not in value


class Text(String):
    """A long one."""

    impl = sql.Text
    cache_ok = True


class LargeBinary(_Checked):
    """Bytes."""

    impl = sql.LargeBinary
    cache_ok = True
    kinds = (bytes,)
