"""Which model makes the film, and pictures with prompts that suit it. With the model change sizes and steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component

from eichi_utils.request import Request
from webui.context import QUIET, Context
from webui.form import Form, size_labels

EXAMPLES_HTML = '<p class="title"></p><div class="row"></div>'

EXAMPLES_CSS = """
.title { margin: 0 0 4px; font-size: 12px; color: var(--body-text-color-subdued); }
.row { display: flex; gap: 8px; overflow-x: auto; }
button { display: flex; flex: 1 0 88px; flex-direction: column; justify-content: flex-start; max-width: 120px;
  margin: 0 !important; padding: 4px; border-radius: 8px; cursor: pointer; text-align: left; font-size: 12px; font-weight: 400;
  line-height: 1.35; color: var(--body-text-color); background: var(--background-fill-secondary);
  border: 1px solid var(--border-color-primary); }
button:hover, button:focus-visible { border-color: var(--color-accent); }
img { display: block; width: 100%; aspect-ratio: 4 / 3; object-fit: cover; border-radius: 4px; margin-bottom: 4px; }
[hidden] { display: none !important; }
"""

EXAMPLES_JS = """
function show() {
  const value = props.value || {}, examples = value.examples || [];
  element.querySelector('.title').hidden = element.querySelector('.row').hidden = !examples.length;
  element.querySelector('.title').textContent = value.title || '';
  element.querySelector('.row').replaceChildren(...examples.map((example, index) => {
    const button = document.createElement('button'), picture = document.createElement('img');
    button.type = 'button';
    picture.src = example.url; picture.alt = '';
    button.append(picture, example.prompt);
    button.addEventListener('click', () => trigger('click', { index }));
    return button; }));
}
show();
watch('value', show);
"""


class ModelPanel:
    """The choice of a model, what it means, and its examples; wired once the page has its fields."""

    def __init__(self, context: Context, form: Form):
        self.context, self.form, self.t = context, form, context.t
        model = form.default("model")
        self.radio = form.choice("model", self._labels(), elem_id="model", elem_classes="eichi-chips")
        self.hint = gr.HTML(self._hint(model), elem_id="model-hint")
        self.examples = gr.HTML(
            self._examples(model),
            html_template=EXAMPLES_HTML,
            css_template=EXAMPLES_CSS,
            js_on_load=EXAMPLES_JS,
            elem_id="examples",
        )
        # The size that each model was last asked for, so that looking at another model loses nothing.
        self.chosen = gr.State({name: self._usual(name, "size") for name in context.models.names})

    @property
    def outputs(self) -> list[Component]:
        """What `shown` may return, besides the form's fields."""
        return [self.hint, self.examples, self.chosen]

    def wire(self, look: Callable[..., Any], outputs: list[Component]) -> None:
        """look: called with the form's values after another model is chosen, to judge them by it. outputs: what it returns."""
        size, steps = self._field("size"), self._field("steps")
        # One field after the other: an event of the one would still be sent with the other's old value.
        changed = [self.hint, self.examples] + ([] if size is None else [size])
        chosen = self.radio.input(self.choose, {self.radio, self.chosen}, changed, **QUIET)
        advised = chosen.then(self.advise, [self.radio, steps], steps, **QUIET)
        advised.then(look, self.form.components, outputs, **QUIET)
        if size is not None:
            size.input(self.remember, [self.radio, size, self.chosen], self.chosen, **QUIET)
        filled = [self._field("image"), self._field("prompt")]
        self.examples.click(self.take, self.radio, filled, **QUIET)

    def choose(self, values: Mapping[Component, Any]) -> dict[Component, Any]:
        """Another model: its sizes, the last one of them that was asked for, and its examples."""
        model, size = values[self.radio], self._field("size")
        updates = {self.hint: self._hint(model), self.examples: self._examples(model)}
        return updates | ({} if size is None else {size: self._sizes(model, values[self.chosen][model])})

    def advise(self, model: str, steps: Any) -> Any:
        """The model's recommended steps, unless the user had asked for others than a model recommends."""
        usual = [self._usual(name, "steps") for name in self.context.models.names]
        return self._usual(model, "steps") if steps in usual else steps

    def remember(self, model: str, size: int, chosen: Mapping[str, int]) -> dict[str, int]:
        return {**chosen, model: size}

    def take(self, model: str, event: gr.EventData) -> tuple[str, str]:
        """Picture and prompt of the example that was clicked."""
        example = self.context.models.examples(model)[event._data["index"]]
        return example.picture, example.prompt

    def news(self, model: str) -> dict[Component, Any]:
        """What may have changed since the server started: a model has been downloaded."""
        labels = self._labels()
        choices = [(labels[name], name) for name in self.form.choices("model")]
        return {self.radio: gr.update(choices=choices, value=model), self.hint: self._hint(model)}

    def shown(self, request: Request) -> dict[Component, Any]:
        """What goes with a request that is written into the form."""
        size = self._field("size")
        updates = {
            **self.news(request.model),
            self.examples: self._examples(request.model),
            self.chosen: {**self.chosen.value, request.model: request.size},
        }
        return updates | ({} if size is None else {size: self._sizes(request.model, request.size)})

    def _field(self, name: str) -> Component | None:
        entry = self.form.entries.get(name)
        return entry.components[0] if entry else None

    def _usual(self, model: str, field: str) -> Any:
        kind = self.form.kind
        return self.context.models.recommended(model, kind).get(field, getattr(kind, field))

    def _sizes(self, model: str, size: int) -> Any:
        """The family of the model; a size from elsewhere stays in sight, so that it can be said what is wrong with it."""
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
        return {"framepack": real, "miniature": t("page.model.miniature", smallest=sizes[0], largest=sizes[-1])}

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
