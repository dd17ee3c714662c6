"""List the models that a request can name, and choose the default one by what this machine has."""

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
    """Find the files of the two models.

    folder: of the real model, "framepack", as `--models` names it; None is the hub cache. miniature: the small model's folder.
    """

    folder: Path | None = None
    miniature: Path = MINIATURE

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the models to choose from, the real one first; the miniature only if its folder exists."""
        return ("framepack", "miniature") if self.miniature.is_dir() else ("framepack",)

    def files(self, name: str) -> ModelFiles:
        """Return where a model's files are: in the miniature's folder, or for any other name in the real model's."""
        return ModelFiles(self.miniature if name == "miniature" else self.folder)

    def gigabytes(self, checkpoint: str) -> float:
        """Return about how many gigabytes of the real model have to be downloaded for a checkpoint; 0 if it is there."""
        return sum(place.gigabytes for place in self.files("framepack").missing(checkpoint))

    def files_for(self, request: Request) -> ModelFiles:
        """Return the files of the request's model. Raises UserError if it is the miniature, and that is not there."""
        if request.model == "miniature" and request.model not in self.names:
            raise UserError([Problem("model", "miniature_missing", {"folder": str(self.miniature)})])
        return self.files(request.model)

    def default(self, checkpoint: str) -> str:
        """Return the name of the model for a user who names none.

        It is the real one if its files are there, if a folder was named for it, or if there is no miniature; else the
        miniature.
        """
        if self.folder is not None and is_same(self.folder, self.miniature):
            return "miniature"
        if self.folder is not None or "miniature" not in self.names or not self.files("framepack").missing(checkpoint):
            return "framepack"
        return "miniature"

    def sizes(self, name: str) -> tuple[int, ...]:
        """Return the size families to offer for a model; if its description is damaged, which `problems` reports, the hub's."""
        try:
            return self.files(name).sizes
        except UserError:
            return ModelFiles().sizes

    def recommended(self, name: str, kind: type[Request]) -> Mapping[str, Any]:
        """Return the values that a model recommends for fields of a mode's requests (`kind`), and its name as `model`."""
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
            # The check of the field itself reports this.
            return ()
        try:
            return files_problems(request, self.files_for(request))
        except UserError as error:
            return error.problems
