"""Add a film's LoRA: a switch, a slot for each file with its strength and a description of the file, and saved sets.

The slots' values are JSON in a hidden box, and their components only show it. This is needed because gradio's hidden components
send no events when a request fills them, and because a late answer of the server must not undo what the user moved meanwhile.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from eichi_utils.files.safe_reading import parse_json
from eichi_utils.models.lora_fit import fit, report_remarks, shapes_in
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests.loras import MOST_LORAS, STRONGEST, Lora, is_below, shown_name
from eichi_utils.user_data.lora_library import about, found, keep_upload, look_through
from eichi_utils.user_data.presets import lora_presets
from webui.context import QUIET, Context, event_of
from webui.forms import fields, words
from webui.forms.form import Form
from webui.gradio_compat import Block
from webui.panels.named_panel import unknown
from webui.static_files import IN_BROWSER, call

SHOWN = 3
# The most files that a message names; the others are only counted.
LISTED = 3
EMPTY = {"file": "", "strength": Lora.strength}


@dataclass(frozen=True)
class Slot:
    """Hold the components of one slot. group: the column that is shown or hidden as a whole."""

    group: gr.Column
    file: gr.Dropdown
    strength: fields.Slider
    remove: gr.Button
    card: gr.HTML


class LoraPanel:
    """Add the LoRA group to a page and handle its events.

    scale: the timeline's slider of a single section's LoRA strength, None without one; it is shown while LoRA are on.
    """

    def __init__(self, context: Context, form: Form, page: gr.Blocks, scale: Component | None = None):
        self.context, self.form, self.t = context, form, context.t
        t = context.t
        self.presets = lora_presets(context.presets)
        # Hidden, so it has no label.
        self.box = gr.Textbox("[]", elem_id="loras-json", visible="hidden", show_label=False)
        self.seen = gr.State(None)
        self.filled = gr.State([])
        with gr.Accordion(t("page.lora"), open=False, elem_id="loras") as self.accordion:
            self.switch = gr.Checkbox(False, label=t("page.lora.switch"), elem_id="lora-switch")
            with gr.Column(visible=False, elem_id="lora-slots", elem_classes="eichi-loras") as self.column:
                self.slots = [self._slot(number) for number in range(MOST_LORAS)]
                with gr.Row():
                    self.add = gr.Button(t("page.lora.add"), size="sm", min_width=80, elem_id="lora-add")
                    self.scan = gr.Button(t("page.lora.rescan"), size="sm", min_width=80, elem_id="lora-rescan")
                    self.upload = gr.UploadButton(
                        t("page.lora.upload"), size="sm", min_width=80, file_count="multiple", elem_id="lora-upload"
                    )
                form.switch("merge_loras", elem_id="merge_loras")
            with gr.Row(equal_height=False):
                self.preset = gr.Dropdown(
                    self._preset_names(),
                    value=None,
                    allow_custom_value=True,
                    label=t("page.lora.preset"),
                    info=t("page.lora.preset.info"),
                    elem_id="lora-preset",
                    elem_classes=[fields.NAME_CLASS],
                )
                with gr.Column(min_width=120, scale=0):
                    self.load = gr.Button(t("page.lora.preset.load"), size="sm", elem_id="lora-preset-load")
                    self.save = gr.Button(t("page.lora.preset.save"), size="sm", elem_id="lora-preset-save")
                    self.delete = gr.Button(t("page.lora.preset.delete"), size="sm", elem_id="lora-preset-delete")
            self.said = gr.HTML(elem_id="lora-said")
        form.add("loras", self.switch, self.box, read=self._read, write=self._write)
        self._wire(page, scale)

    def _slot(self, number: int) -> Slot:
        t = self.t
        with gr.Column(visible=number < SHOWN, elem_id=f"lora-{number}", elem_classes="eichi-lora") as group:
            with gr.Row(equal_height=False):
                file = gr.Dropdown(
                    self._choices(),
                    value="",
                    allow_custom_value=True,
                    label=t("page.lora.slot", number=number + 1),
                    min_width=220,
                    scale=3,
                    elem_id=f"lora-file-{number}",
                )
                strength = fields.Slider(
                    minimum=-STRONGEST,
                    maximum=STRONGEST,
                    value=Lora.strength,
                    step=0.05,
                    label=t("page.lora.strength"),
                    min_width=140,
                    scale=2,
                    elem_id=f"lora-strength-{number}",
                )
                remove = gr.Button(
                    "\u00d7", size="sm", min_width=32, scale=0, elem_id=f"lora-remove-{number}", elem_classes="eichi-remove"
                )
            card = gr.HTML(elem_id=f"lora-card-{number}")
        return Slot(group, file, strength, remove, card)

    def _wire(self, page: gr.Blocks, scale: Component | None) -> None:
        for number, slot in enumerate(self.slots):
            place = {"number": number, "count": max(SHOWN, number + 1), "empty": EMPTY}
            strength = [slot.strength, slot.file, self.box]
            slot.file.input(inputs=strength, outputs=self.box, js=call("loras.setFile", place), **IN_BROWSER)
            # The slider's reset button, and leaving its box, change it without an `input` event.
            slot.strength.change(inputs=strength, outputs=self.box, js=call("loras.setStrength", place), **IN_BROWSER)
            slot.remove.click(inputs=self.box, outputs=self.box, js=call("loras.removeSlot", place), **IN_BROWSER)
        mode = self.form.kind.mode
        self.box.change(inputs=self.box, js=call("loras.remember", mode), **IN_BROWSER)
        again = {"inputs": self.box, "outputs": self.box, "js": call("loras.remembered", mode), **IN_BROWSER}
        self.form.after_load.append(lambda loaded: loaded.then(**again))
        limits = {"count": SHOWN, "most": MOST_LORAS, "empty": EMPTY}
        self.add.click(inputs=self.box, outputs=self.box, js=call("loras.addSlot", limits), **IN_BROWSER)
        model = self.form.entries["model"].components[0]
        shown = {self.switch, self.box, self.seen, self.filled, model}
        shown |= {part for slot in self.slots for part in (slot.file, slot.strength)}
        outputs = [self.accordion, self.column, self.add, self.seen, self.filled]
        outputs += [part for slot in self.slots for part in (slot.group, slot.file, slot.strength, slot.card)]
        changes = [self.switch.change, self.box.change, event_of(model, "change")]
        looked = gr.on(changes, self.on_change, shown, outputs, trigger_mode="always_last", **QUIET)
        # Look again, as in `StartPanel.wire`, because the answer to an older change can come last.
        looked.then(self.on_change, shown, outputs, trigger_mode="always_last", **QUIET)
        known = [*outputs, self.preset]
        for scanned in (
            gr.on([self.switch.input, page.load], self.refresh_files, None, known, **QUIET),
            self.scan.click(self.report_files, None, [*known, self.said], **QUIET),
        ):
            scanned.then(self.on_change, shown, outputs, trigger_mode="always_last", **QUIET)
        self.upload.upload(self.on_upload, [self.upload, self.box], [self.box, self.said, *self._files], **QUIET)
        told = [self.preset, self.said]
        self.load.click(self.apply_preset, self.preset, [self.switch, self.box, self.said], **QUIET)
        self.save.click(self.save_preset, [self.preset, self.box], told, **QUIET)
        self.delete.click(self.delete_preset, self.preset, told, **QUIET)
        if scale is not None:
            self.switch.change(lambda on: gr.update(visible=on), self.switch, scale, **QUIET)

    @property
    def _files(self) -> list[gr.Dropdown]:
        return [slot.file for slot in self.slots]

    def on_change(self, values: Mapping[Component, Any]) -> dict[Block, Any]:
        """Return the updates that show the box's slots, where something else than the user filled it, and the files' cards.

        If a component differs from the box although the box has not changed, the user has just moved it: it is left alone, and
        the box will follow.
        """
        on = bool(values[self.switch])
        slots = self._slots(values[self.box])
        files = [slot["file"] for slot in slots]
        model = values[self.form.entries["model"].components[0]]
        now = [on, files, model]
        filled = [[slot["file"], slot["strength"]] for slot in slots]
        updates: dict[Block, Any] = {self.seen: now, self.filled: filled}
        theirs, before = self._theirs(values[self.box]), values[self.filled]
        for number, (slot, wanted) in enumerate(zip(self.slots, slots, strict=False)):
            if number in theirs or (number < len(before) and filled[number] == before[number]):
                continue
            if (values[slot.file] or "") != wanted["file"]:
                updates[slot.file] = wanted["file"]
            if not _same(values[slot.strength], wanted["strength"]):
                updates[slot.strength] = wanted["strength"]
        if now != values[self.seen]:
            chosen = sum(map(bool, files)) if on else 0
            label = self.t("page.lora.count", count=chosen) if chosen else self.t("page.lora")
            updates |= {self.accordion: gr.update(label=label), self.column: gr.update(visible=on)}
            updates[self.add] = gr.update(interactive=len(slots) < MOST_LORAS)
            for number, slot in enumerate(self.slots):
                updates[slot.group] = gr.update(visible=number < len(slots))
                updates[slot.card] = self._card(files[number], model) if on and number < len(files) else ""
        return updates

    def refresh_files(self) -> dict[Component, Any]:
        """Return the updates of the lists of files and sets; the choices stay, and their cards are made anew."""
        choices = self._choices()
        files = {file: gr.update(choices=choices) for file in self._files}
        return {**files, self.preset: gr.update(choices=self._preset_names()), self.seen: None}

    def report_files(self) -> dict[Component, Any]:
        """Return the updates of `refresh_files`, and a message: how many files were found, and which were left out and why."""
        there = look_through()
        said = self._note(self.t("page.lora.found", count=len(there.files)))
        if there.pickles:
            shown = ", ".join(there.pickles[:LISTED]) + (", …" if len(there.pickles) > LISTED else "")
            text = self.t("page.lora.passed_over", count=len(there.pickles), files=shown)
            why = words.problem_sentence(self.t, Lora(there.pickles[0]).check("loras/0")[0])
            said += self._note(text) + self._note(why)
        return {**self.refresh_files(), self.said: said}

    def on_upload(self, uploads: Sequence[str] | None, text: str) -> dict[Component, Any]:
        """Keep uploaded files in the LoRA folder, and put them into the first free slots.

        uploads: their paths. text: the box's JSON. Files that cannot be kept, or have no free slot, are named in a message.
        """
        slots, problems, beyond = self._slots(text), [], []
        for upload in uploads or ():
            try:
                name = keep_upload(Path(upload))
            except UserError as error:
                problems += error.problems
                continue
            free = next((slot for slot in slots if not slot["file"]), None)
            if free is None and len(slots) >= MOST_LORAS:
                beyond.append(name)
                continue
            if free is None:
                slots.append(free := {"strength": Lora.strength})
            free["file"] = name
        choices = {file: gr.update(choices=self._choices()) for file in self._files}
        said = self._note(self.t("page.lora.no_slot", files=", ".join(beyond))) if beyond else ""
        return {**choices, self.box: json.dumps(slots), self.said: said + self._sentences(problems)}

    def apply_preset(self, name: str | None) -> dict[Component, Any]:
        """Put the saved set of this name into the slots, and switch LoRA on."""
        try:
            values, notes = self.presets.read()
        except UserError as error:
            return {self.said: self._sentences(error.problems)}
        name = str(name or "")
        if name not in values:
            return {self.said: self._sentences([unknown(name.strip())])}
        return {self.switch: True, self.box: json.dumps(values[name]), self.said: self._sentences(notes)}

    def save_preset(self, name: str | None, text: str) -> dict[Component, Any]:
        """Save the slots that have a file as a set of this name. text: the box's JSON."""
        name = str(name or "").strip()
        chosen = [slot for slot in self._slots(text) if slot["file"]]
        try:
            if not chosen:
                raise UserError([Problem("presets", "lora_set_empty")])
            notes = self.presets.save(name, chosen)
        except UserError as error:
            return {self.said: self._sentences(error.problems)}
        said = self._sentences(notes) or self._note(self.t("page.lora.preset.saved", name=name))
        return {self.preset: gr.update(choices=self._preset_names(), value=name), self.said: said}

    def delete_preset(self, name: str | None) -> dict[Component, Any]:
        """Delete the saved set of this name; the slots stay as they are."""
        name = str(name or "")
        try:
            if not name.strip():
                raise UserError([unknown("")])
            notes = self.presets.delete(name)
        except UserError as error:
            return {self.said: self._sentences(error.problems)}
        said = self._sentences(notes) or self._note(self.t("page.lora.preset.deleted", name=name))
        return {self.preset: gr.update(choices=self._preset_names(), value=None), self.said: said}

    def _read(self, on: bool, text: str) -> Any:
        """Return the field's value: no LoRA while the switch is off, else the slots that have a file.

        A text that is no list of slots is passed on unchanged; the request's own parsing refuses it.
        """
        if not on:
            return []
        try:
            slots = parse_json(text or "[]")
        except ValueError:
            return text
        if not isinstance(slots, list) or not all(isinstance(slot, dict) for slot in slots):
            return slots
        chosen = [{name: part for name, part in slot.items() if name != "theirs"} for slot in slots if slot.get("file")]
        return [{**slot, "file": self._ours(slot["file"])} for slot in chosen]

    def _write(self, loras: Sequence[Lora]) -> tuple[bool, Any]:
        if not loras:
            # Only the switch goes off; the slots keep their files.
            return False, gr.skip()
        slots = [{"file": lora.file, "strength": lora.strength} for lora in loras]
        return True, json.dumps(slots)

    def _ours(self, file: Any) -> Any:
        """Return the file that a browser may name: below the LoRA folder or in a job's request; of others only the name."""
        if not isinstance(file, str) or is_below(file):
            return file
        known = {lora.file for job in self.context.jobs.all() for lora in job.request.loras}
        return file if file in known else Path(file.replace("\\", "/")).name

    def _slots(self, text: str) -> list[dict[str, Any]]:
        """Return the slots of the box's JSON, at least SHOWN of them; malformed ones are empty."""
        try:
            read = parse_json(text or "[]")
        except ValueError:
            read = []
        slots = [slot if isinstance(slot, dict) else {} for slot in (read if isinstance(read, list) else [])]
        slots += [{}] * (SHOWN - len(slots))
        return [{"file": self._ours(slot.get("file") or ""), "strength": slot.get("strength", Lora.strength)} for slot in slots]

    def _theirs(self, text: str) -> set[int]:
        """Return the numbers of the slots that the user changed last (marked "theirs" by `static/loras.js`)."""
        try:
            read = parse_json(text or "[]")
        except ValueError:
            return set()
        slots = read if isinstance(read, list) else []
        return {number for number, slot in enumerate(slots) if isinstance(slot, dict) and slot.get("theirs") is True}

    def _choices(self) -> list[tuple[str, str]]:
        return [(self.t("page.lora.none"), ""), *((name, name) for name in found())]

    def _preset_names(self) -> list[tuple[str, str]]:
        try:
            return [(name, name) for name in self.presets.read()[0]]
        except UserError:
            # The problem is shown when a set is loaded.
            return []

    def _card(self, file: Any, model: str) -> str:
        """Describe a slot's file as HTML: its picture, its trigger words, and how much of it fits the model or why it fails."""
        if not file or not isinstance(file, str):
            return ""
        lora, models = Lora(file), self.context.models
        shapes = shapes_in(models.files(model), self.form.kind.checkpoint)
        wrong = lora.check("loras/0")
        judged = fit(lora, shapes)
        lines = []
        if problem := judged.problem or (wrong[0] if wrong else None):
            lines.append(f'<p class="wrong">{escape(words.problem_sentence(self.t, problem))}</p>')
        elif report := judged.report:
            ranks = ", ".join(map(str, report.ranks)) or "-"
            facts = {"format": report.format, "ranks": ranks, "applied": report.applied, "layers": report.layers}
            lines.append(self._note(self.t("page.lora.report", **facts)))
            remarks = report_remarks(shown_name(lora.path), report)
            lines += [f'<p class="notice">{escape(words.notice_sentence(self.t, remark))}</p>' for remark in remarks]
        known = about(lora.path)
        if known.words:
            lines.insert(0, f'<p class="words">{escape(self.t("page.lora.words", words=known.words))}</p>')
        picture = f'<img alt="" src="data:image/webp;base64,{b64encode(known.picture).decode()}">' if known.picture else ""
        return f'<div class="eichi-lora-card">{picture}<div>{"".join(lines)}</div></div>'

    def _sentences(self, problems: Sequence[Problem]) -> str:
        return "".join(f'<p class="wrong">{escape(words.problem_sentence(self.t, problem))}</p>' for problem in problems)

    def _note(self, text: str) -> str:
        return f'<p class="eichi-hint">{escape(text)}</p>'


def _same(shown: Any, wanted: Any) -> bool:
    """Tell whether a slider's rounded number is the wanted one; then no update is sent, which could undo a move of the user."""
    if isinstance(shown, (int, float)) and isinstance(wanted, (int, float)):
        return math.isclose(shown, wanted, abs_tol=1e-6)
    return shown == wanted
