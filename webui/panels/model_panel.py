"""Add the choice of the model and its examples, and adapt sizes and steps when another model is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from filecmp import cmp
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component

from eichi_utils.requests.request import Request
from webui.context import QUIET, Context, event_of
from webui.forms.action_result import clicked, may_be_held
from webui.forms.form import Form, size_labels
from webui.gradio_compat import Block
from webui.static_files import element

# The number that a click on Undo carries in place of an example's number.
UNDO = -1


class ModelPanel:
    """Add the choice of a model, a hint about it, and its examples; call `wire` once the page has all its fields."""

    def __init__(self, context: Context, form: Form):
        self.context, self.form, self.t = context, form, context.t
        model = form.default("model")
        self.radio = form.choice("model", self._labels(), elem_id="model", elem_classes="eichi-chips")
        self.hint = gr.HTML(self._hint(model), elem_id="model-hint")
        self.examples = element("examples", self._examples(model), "showExamples", {"undo": UNDO}, elem_id="examples")
        # Model -> the size last chosen for it, which comes back when the model is chosen again.
        self.chosen = gr.State({name: self._usual(name, "size") for name in context.models.names})
        # (picture, prompt) that an example replaced; None if there is nothing to undo.
        self.replaced = gr.State(None)
        self.asked_steps = gr.State(False)

    @property
    def outputs(self) -> list[Component]:
        """Return the components that `updates_for` may change, besides the form's fields."""
        return [self.hint, self.examples, self.chosen, self.asked_steps]

    def wire(self, on_change: Callable[..., Any], outputs: Sequence[Block]) -> None:
        """Connect the events. on_change: checks the form's values after another model is chosen. outputs: its outputs."""
        size, steps = self._field("size"), self.form.entries["steps"].components[0]
        # Size and steps change one after the other: changed at once, an event of one would carry the other's old value.
        changed = [self.hint, self.examples] + ([] if size is None else [size])
        chosen = event_of(self.radio, "input")(self.on_model, {self.radio, self.chosen}, changed, **QUIET)
        event_of(steps, "input")(lambda: True, None, self.asked_steps, **QUIET)
        advised = chosen.then(self.recommend_steps, [self.radio, steps, self.asked_steps], steps, **QUIET)
        advised.then(on_change, self.form.components, outputs, **QUIET)
        if size is not None:
            event_of(size, "input")(self.remember_size, [self.radio, size, self.chosen], self.chosen, **QUIET)
        filled = [self.form.entries[name].components[0] for name in ("image", "prompt")]
        state = [self.examples, self.replaced]
        self.examples.click(self.apply_example, [self.radio, *filled, self.replaced], [*filled, *state], **QUIET)

    def on_model(self, values: Mapping[Component, Any]) -> dict[Component, Any]:
        """Return the updates for a newly chosen model: its hint, its examples, and its sizes with the one last chosen."""
        model, size = values[self.radio], self._field("size")
        if model not in self.context.models.names:
            return {self.hint: gr.skip()}
        updates = {self.hint: self._hint(model), self.examples: self._examples(model)}
        return updates | ({} if size is None else {size: self._sizes(model, values[self.chosen][model])})

    def recommend_steps(self, model: str, steps: Any, asked: bool) -> Any:
        """Return the model's recommended steps, or `steps` if the user chose them, here or in a request written into the form.

        asked: whether the user did.
        """
        usual = [self._usual(name, "steps") for name in self.context.models.names]
        return self._usual(model, "steps") if steps in usual and not asked else steps

    def remember_size(self, model: str, size: int, chosen: Mapping[str, int]) -> dict[str, int]:
        """Return the last chosen sizes by model, with this one added."""
        return {**chosen, model: size} if model in self.context.models.names else dict(chosen)

    def apply_example(self, model: str, image: str | None, prompt: str, replaced: tuple | None, event: gr.EventData) -> tuple:
        """Return picture and prompt of the clicked example, or with Undo those that examples replaced.

        replaced: (picture, prompt) that examples replaced before, or None. Returns (picture, prompt, value of the examples'
        element, new `replaced`).
        """
        number = clicked(event, "index")
        if number == UNDO:
            return (*(replaced or (image, prompt)), self._examples(model), None)
        examples = self.context.models.examples(model)
        if not isinstance(number, int) or not 0 <= number < len(examples):
            return (image, prompt, gr.skip(), replaced)
        prompt = prompt or ""
        own_prompt = prompt.strip() and prompt not in [example.prompt for example in examples]
        if own_prompt or (image and not any(cmp(image, example.picture, shallow=False) for example in examples)):
            replaced = (image, prompt) if may_be_held(prompt) else None
        undo = self.t("page.examples.undo") if replaced else ""
        return examples[number].picture, examples[number].prompt, {**self._examples(model), "undo": undo}, replaced

    def refresh(self, model: str) -> dict[Component, Any]:
        """Return the updates of the models' labels and hint, which change when a model has been downloaded."""
        labels = self._labels()
        choices = [(labels[name], name) for name in self.form.choices("model")]
        return {self.radio: gr.update(choices=choices, value=model), self.hint: self._hint(model)}

    def updates_for(self, request: Request) -> dict[Component, Any]:
        """Return the panel's updates for a request that is written into the form."""
        size = self._field("size")
        updates = {
            **self.refresh(request.model),
            self.examples: self._examples(request.model),
            self.chosen: {**self.chosen.value, request.model: request.size},
            self.asked_steps: request.steps != self._usual(request.model, "steps"),
        }
        return updates | ({} if size is None else {size: self._sizes(request.model, request.size)})

    def _field(self, name: str) -> Component | None:
        entry = self.form.entries.get(name)
        return entry.components[0] if entry else None

    def _usual(self, model: str, field: str) -> Any:
        kind = self.form.kind
        return self.context.models.recommended(model, kind).get(field, getattr(kind, field))

    def _sizes(self, model: str, size: int) -> Any:
        """Return the update of the list of sizes: the model's, and `size` itself, whose problem is shown if it is another."""
        sizes = sorted({*self.context.models.sizes(model), size})
        return gr.update(choices=[(label, value) for value, label in size_labels(sizes).items()], value=size)

    def _labels(self) -> dict[str, str]:
        t, models = self.t, self.context.models
        sizes = models.sizes("miniature")
        if models.folder is not None:
            real = t("page.model.folder", name="FramePack", folder=models.folder.name)
        elif gigabytes := models.gigabytes(self.form.kind.checkpoint):
            real = t("page.model.framepack_download", gigabytes=f"{gigabytes:.0f}")
        else:
            real = t("page.model.framepack")
        return {"framepack": real, "miniature": t("page.model.miniature_sizes", smallest=sizes[0], largest=sizes[-1])}

    def _hint(self, model: str) -> str:
        gigabytes = self.context.models.gigabytes(self.form.kind.checkpoint)
        if model == "miniature":
            text = self.t("page.model.miniature_hint")
        elif gigabytes:
            text = self.t("page.model.download_hint", gigabytes=f"{gigabytes:.0f}")
        else:
            return ""
        return f'<p class="eichi-hint">{escape(text)}</p>'

    def _examples(self, model: str) -> dict[str, Any]:
        examples = self.context.models.examples(model)
        cells = [{"url": self.context.url(example.picture), "prompt": example.prompt} for example in examples]
        return {"title": self.t("page.examples") if cells else "", "examples": cells}
