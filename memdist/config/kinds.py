"""What settings are made of: kinds of values, and the base of every group."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, le=10**6)]
Widths = Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(min_length=1, max_length=16)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _absolute(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("a path without a NUL character")
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:  # ~name, and nobody here is called that
        raise ValueError(
            "a path that starts at the home of somebody whom this machine knows; write it in full"
        ) from error


Folder = Annotated[Path, AfterValidator(_absolute)]


def runtime(default: Any, **constraints: Any) -> Any:
    """Declare a field that may change between the legs of one run."""
    return Field(default, json_schema_extra={"runtime": True}, **constraints)


class Settings(BaseModel):
    """Base of every group of settings: frozen, no unknown keys, a docstring for each field."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )
