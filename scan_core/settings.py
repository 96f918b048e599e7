"""What the settings of all subpackages share. Values are in ``params.yaml``: no default changes a result."""

from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Momentum = Annotated[float, Field(ge=0, lt=1)]  # weight of the old value in an average
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
TwoOrMore = Annotated[int, Field(ge=2)]
Pixels = Annotated[int, Field(ge=8, le=1024)]  # per side


class Settings(BaseModel):
    """Frozen and strict: an unknown key, a wrong type or a value out of range is an error at the start of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def variants(union: Any) -> dict[str, type[Settings]]:
    """Tag to class, for a union of settings such as ``Pretext``; empty for any other type.

    The first field of each class is its tag: ``method`` or ``kind``.
    """
    union = get_args(union)[0] if get_origin(union) is Annotated else union
    classes = [each for each in get_args(union) if isinstance(each, type) and issubclass(each, Settings)]
    return {get_args(next(iter(each.model_fields.values())).annotation)[0]: each for each in classes}
