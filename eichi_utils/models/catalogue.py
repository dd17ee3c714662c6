"""The models a request can name, which of them this machine has, and which one a user means who names none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from eichi_utils.files.paths import MINIATURE, is_same
from eichi_utils.models.description import Example
from eichi_utils.models.hub import ModelFiles
from eichi_utils.models.requirements import files_problems
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests.request import MODELS, Request


@dataclass(frozen=True)
class Models:
    """folder: what `--models` names, the place of "framepack"; None is the hub cache. miniature: the small model's folder."""

    folder: Path | None = None
    miniature: Path = MINIATURE

    @property
    def names(self) -> tuple[str, ...]:
        """The models to choose from, the real one first."""
        return ("framepack", "miniature") if self.miniature.is_dir() else ("framepack",)

    def files(self, name: str) -> ModelFiles:
        """Return where a model's files are: the miniature's folder, or the folder or cache of the others."""
        return ModelFiles(self.miniature if name == "miniature" else self.folder)

    def gigabytes(self, checkpoint: str) -> float:
        """How much of the real model has to be downloaded, about; 0 when it is there."""
        return sum(place.gigabytes for place in self.files("framepack").missing(checkpoint))

    def files_for(self, request: Request) -> ModelFiles:
        """Return the files of the request's model. Raises UserError if it is the miniature, and that is not there."""
        if request.model == "miniature" and request.model not in self.names:
            raise UserError([Problem("model", "miniature_missing", {"folder": str(self.miniature)})])
        return self.files(request.model)

    def default(self, checkpoint: str) -> str:
        """The model for a user who names none: the real one where it is or where a folder says so, else the miniature."""
        if self.folder is not None and is_same(self.folder, self.miniature):
            return "miniature"
        if self.folder is not None or "miniature" not in self.names or not self.files("framepack").missing(checkpoint):
            return "framepack"
        return "miniature"

    def sizes(self, name: str) -> tuple[int, ...]:
        """Size families to offer; those of the hub's models where the description is damaged, which `problems` says."""
        try:
            return self.files(name).sizes
        except UserError:
            return ModelFiles().sizes

    def recommended(self, name: str, kind: type[Request]) -> Mapping[str, Any]:
        """The mode's fields that the model has a better default for, with their values; `model` is one of them."""
        known = {field.name for field in fields(kind)}
        try:
            values = self.files(name).describe().recommended
        except UserError:
            values = {}
        return {"model": name, **{field: value for field, value in values.items() if field in known}}

    def examples(self, name: str) -> tuple[Example, ...]:
        """Return a model's examples; none where its description cannot be read."""
        try:
            return self.files(name).describe().examples
        except UserError:
            return ()

    def problems(self, request: Request) -> tuple[Problem, ...]:
        """Return what keeps the request's model from carrying it out, as far as it can be seen without loading anything."""
        if request.model not in MODELS:
            # Said of the field itself.
            return ()
        try:
            return files_problems(request, self.files_for(request))
        except UserError as error:
            return error.problems
