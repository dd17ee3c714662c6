"""List the three modes by name. A new mode is a request class with a plan, and a page."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from eichi_utils.requests import request as requests
from eichi_utils.requests.forward import ForwardRequest
from eichi_utils.requests.kinds import Kind, kinds_of
from eichi_utils.requests.request import Request
from eichi_utils.requests.reverse import ReverseRequest
from eichi_utils.requests.single import SingleRequest

MODES: Mapping[str, type[Request]] = MappingProxyType(
    {kind.mode: kind for kind in (ReverseRequest, ForwardRequest, SingleRequest)}
)


@cache
def all_kinds() -> Mapping[str, Kind]:
    """Return the kind of every field of every mode by name, for documents that may lack their mode or some fields."""
    return MappingProxyType({name: kind for request in MODES.values() for name, kind in kinds_of(request).items()})


def from_json(document: Any) -> Request:
    """Return the request of a JSON document of any mode; see `eichi_utils.requests.request.from_json`."""
    return requests.from_json(document, MODES)
