"""Call the handlers of a page and its panels as a browser does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import gradio as gr
import pytest

from locales import table
from tests.webui.forms.test_form import Built
from tests.webui.forms.test_form import page as page
from webui.forms.form_updates import FormUpdates
from webui.panels.metadata_panel import MetadataPanel, SectionPromptOffer
from webui.panels.presets_panel import FavouritesPanel, PromptsPanel
from webui.panels.sections_panel import SectionsPanel
from webui.panels.settings_panel import SettingsPanel

Page = Callable[..., "Whole"]


@dataclasses.dataclass
class Whole:
    """Hold a page, its panels and the values of its components, which updates change as in a browser."""

    built: Built
    panels: dict[str, Any]
    holds: dict[Any, Any]

    def __getattr__(self, name: str) -> Any:
        return self.panels[name]

    @property
    def form_updates(self) -> FormUpdates:
        return FormUpdates(self.built.form, self.panels["favourites"].form_updates.model)

    @property
    def request(self) -> Any:
        return self.form_updates.current(self.holds)

    def fill(self, **fields: Any) -> None:
        self.holds |= self.built.values(**fields)

    def see(self, updates: dict) -> str:
        """Apply a handler's updates; returns what it said, all lines of it."""
        said = [update["lines"] for update in updates.values() if isinstance(update, dict) and "lines" in update]
        for component, update in updates.items():
            if isinstance(update, dict) and update.get("__type__") == "update":
                if "value" not in update:
                    continue
                update = update["value"]
            self.holds[component] = update
        return "\n".join(text for lines in said for _, text in lines)

    def undo(self, panel: Any) -> None:
        self.see(panel.undo(self.holds[panel.outcome.about]))


@pytest.fixture
def whole(page, monkeypatch: pytest.MonkeyPatch) -> Page:
    def build(mode: str = "reverse", **settings: Any) -> Whole:
        panels: dict[str, Any] = {}
        names = {
            SectionsPanel: "zip",
            MetadataPanel: "metadata",
            FavouritesPanel: "favourites",
            PromptsPanel: "prompts",
            SettingsPanel: "settings",
            SectionPromptOffer: "section",
        }
        with monkeypatch.context() as patched:
            for kind, name in names.items():

                def noted(self, *args, _real=kind.__init__, _name=name, **own):
                    _real(self, *args, **own)
                    panels["offer" if _name == "metadata" and self.picture else _name] = self

                patched.setattr(kind, "__init__", noted)
            built = page(mode, **settings)
        return Whole(built, panels, built.values())

    return build


def clicked(action: str) -> gr.EventData:
    return gr.EventData(None, {"action": action})


def sentence(key: str) -> str:
    """Return the longest part of a problem's English sentence that has no placeholder."""
    return max(table("en")[f"problem.{key}"].replace("}", "{").split("{")[::2], key=len)
