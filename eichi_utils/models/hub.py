"""Find a model's components in a plain folder or in a cache of the Hugging Face hub, and download the missing ones.

Nothing is loaded here and torch is not imported: a page asks before the first job which models are there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import tqdm

from diffusers_helper.checkpoints.files import CheckpointError, weight_files
from eichi_utils.files.paths import DEFAULT_MODELS
from eichi_utils.models.description import Description, read_description
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests.request import SIZES, Request

# Base error of the HTTP library that huggingface_hub uses, which is requests in some releases and httpx in others.
ConnectionTrouble: type[Exception] = HfHubHTTPError.__bases__[0]


@dataclass(frozen=True)
class Place:
    """Name where the hub keeps a component.

    folder: in the repository, "" for its root. gigabytes: size of the download, about.
    """

    repository: str
    folder: str
    gigabytes: float = 0.0


HUNYUAN, REDUX = "hunyuanvideo-community/HunyuanVideo", "lllyasviel/flux_redux_bfl"
PLACES = {
    "framepack": Place("lllyasviel/FramePackI2V_HY", "", 25.8),
    "framepack_f1": Place("lllyasviel/FramePack_F1_I2V_HY_20250503", "", 25.8),
    "vae": Place(HUNYUAN, "vae", 0.5),
    "text_encoder": Place(HUNYUAN, "text_encoder", 15.0),
    "tokenizer": Place(HUNYUAN, "tokenizer"),
    "text_encoder_2": Place(HUNYUAN, "text_encoder_2", 0.2),
    "tokenizer_2": Place(HUNYUAN, "tokenizer_2"),
    "image_encoder": Place(REDUX, "image_encoder", 0.9),
    "feature_extractor": Place(REDUX, "feature_extractor"),
}
# Names of the transformers' folders in a plain models folder, the preferred first; F1's own may be absent if one serves both.
LOCAL_FOLDERS = {"framepack": ("transformer",), "framepack_f1": ("transformer_f1", "transformer")}
SHARED = tuple(name for name in PLACES if name not in LOCAL_FOLDERS)
# Stems of the names of weight files, and names of the files of components without weights (a tokenizer needs one of the two).
STEMS = {
    **dict.fromkeys(("framepack", "framepack_f1", "vae"), "diffusion_pytorch_model"),
    **dict.fromkeys(("text_encoder", "text_encoder_2", "image_encoder"), "model"),
}
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
PREPROCESSOR_FILE = "preprocessor_config.json"
# Size families offered for the hub's models; smaller ones are offered for models whose description has them.
HUB_SIZES = tuple(size for size in SIZES if size >= 384)


class DownloadStopped(Exception):
    """Signal that a download was ended because it is no longer wanted."""


@dataclass(frozen=True)
class ModelFiles:
    """Find and download the files of one model.

    models: a plain folder with `transformer`, `vae`, ... inside, or a hub cache folder; None is the cache that the hub's
    variables name, or this program's own.
    """

    models: Path | None = None

    @property
    def own_folder(self) -> bool:
        """Tell whether `models` is a plain folder rather than a hub cache."""
        names = (*SHARED, *LOCAL_FOLDERS["framepack_f1"])
        return self.models is not None and any((self.models / name).is_dir() for name in names)

    @property
    def cache(self) -> Path:
        """Return the folder of the hub cache: the given one, else what the hub's variables name, else this program's own."""
        if self.models is not None:
            return self.models
        home = os.environ.get("HF_HUB_CACHE") or (os.environ["HF_HOME"] + "/hub" if os.environ.get("HF_HOME") else "")
        return Path(home) if home else DEFAULT_MODELS

    def describe(self) -> Description:
        """Return the folder's description, which is empty for the hub's models. Raises UserError if it cannot be understood."""
        return read_description(self.models) if self.models is not None else Description()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the size families to offer. Raises UserError if the description cannot be understood."""
        return self.describe().sizes or HUB_SIZES

    def folder_problems(self) -> tuple[Problem, ...]:
        """Return a problem if the given folder does not exist."""
        if self.models is None or self.models.is_dir():
            return ()
        return (Problem("models", "models_missing", {"folder": str(self.models)}),)

    def problems(self, request: Request) -> tuple[Problem, ...]:
        """Return what keeps these models from carrying out a request that is right in itself."""
        if missing := self.folder_problems():
            return missing
        try:
            sizes = self.describe().sizes or (HUB_SIZES if self.models is None else ())
        except UserError as error:
            return error.problems
        return size_problems(request, sizes) if sizes else ()

    def missing(self, checkpoint: str) -> list[Place]:
        """Return the components to download before this checkpoint can run; none if complete, or with a plain models folder."""
        return self.missing_of(checkpoint, *SHARED)

    def missing_of(self, *names: str) -> list[Place]:
        """Return those of the named components that have to be downloaded; none with a plain models folder."""
        if self.own_folder:
            return []
        return [PLACES[name] for name in names if self._is_missing(name)]

    def shares_transformer(self, checkpoint: str) -> bool:
        """Tell whether F1 has to use the standard transformer, because a plain models folder has no other.

        It has not if the folder's description says that the transformer serves F1 too. Raises UserError as `describe`.
        """
        if checkpoint != "framepack_f1" or self.models is None or not self.own_folder:
            return False
        if (self.models / "transformer_f1").is_dir():
            return False
        return checkpoint not in self.describe().checkpoints

    def folder(self, name: str) -> Path:
        """Return the folder of a component. Raises CheckpointError if there is none."""
        if self.models is not None and self.own_folder:
            candidates = [self.models / local for local in LOCAL_FOLDERS.get(name, (name,))]
        else:
            candidates = self._cached_folders(PLACES[name])
        for folder in candidates:
            if folder.is_dir():
                return folder
        raise CheckpointError("file_missing", file=str(candidates[0] if candidates else PLACES[name].repository))

    def download(self, place: Place, wanted: Callable[[], bool] = lambda: True) -> bool:
        """Download one component, and return True; an interrupted download is continued.

        Ends early and returns False as soon as `wanted()` is false. Raises UserError if the hub cannot be reached.
        """
        pattern = f"{place.folder}/*" if place.folder else "*"
        if not wanted():
            return False
        try:
            snapshot_download(
                place.repository, allow_patterns=[pattern], cache_dir=self.cache, tqdm_class=_progress_while(wanted)
            )
        except DownloadStopped:
            return False
        except (HfHubHTTPError, ConnectionTrouble, LocalEntryNotFoundError, OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            values = {"repository": place.repository, "folder": str(self.cache), "reason": reason}
            raise UserError([Problem("models", "download_failed", values)]) from None
        return True

    def present_bytes(self, place: Place) -> int:
        """Return the bytes of a component's files that are in the hub cache."""
        folder = next((folder for folder in self._cached_folders(place) if folder.is_dir()), None)
        return 0 if folder is None else sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    def interrupted_bytes(self, repository: str) -> int:
        """Return the bytes of interrupted downloads from a repository, which the next download continues."""
        return sum(file.stat().st_size for file in (self._repository_folder(repository) / "blobs").glob("*.incomplete"))

    def _repository_folder(self, repository: str) -> Path:
        return self.cache / f"models--{repository.replace('/', '--')}"

    def _cached_folders(self, place: Place) -> list[Path]:
        snapshots = self._repository_folder(place.repository) / "snapshots"
        if not snapshots.is_dir():
            return []
        newest_first = sorted(snapshots.iterdir(), key=lambda folder: folder.stat().st_mtime, reverse=True)
        return [folder / place.folder for folder in newest_first]

    def _is_missing(self, name: str) -> bool:
        """Tell whether a component lacks a file. Damaged files count as present: the pool's check reports them."""
        try:
            folder = self.folder(name)
            if name in STEMS:
                weight_files(folder, STEMS[name])
        except CheckpointError as error:
            return error.key == "file_missing"
        if name in STEMS:
            return not (folder / "config.json").is_file()
        files = (PREPROCESSOR_FILE,) if name == "feature_extractor" else TOKENIZER_FILES
        return not any((folder / file).is_file() for file in files)


def size_problems(request: Request, sizes: tuple[int, ...]) -> tuple[Problem, ...]:
    """Return a problem if a model was not made for the request's size. sizes: the model's size families.

    A size that no model has is reported by the check of the request itself.
    """
    if request.size in sizes or request.size not in SIZES:
        return ()
    return (Problem("size", "size_not_of_model", {"value": request.size, "sizes": ", ".join(map(str, sizes))}),)


def _progress_while(wanted: Callable[[], bool]) -> type[tqdm]:
    """Return a progress bar class for the hub's downloads that raises DownloadStopped once `wanted()` is false.

    The hub's library updates the bar after every piece of a file, so that a download ends soon.
    """

    class Progress(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            if not wanted():
                raise DownloadStopped
            return super().update(n)

    return Progress
