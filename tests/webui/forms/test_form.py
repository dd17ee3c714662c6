"""Test that the form and the request are equal: every field both ways, limits from the metadata, problems in words."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import gradio as gr
import pytest

from eichi_utils.files.pictures import fitted_size
from eichi_utils.models.catalogue import Models
from eichi_utils.requests.kinds import Choice, Picture
from eichi_utils.requests.loras import MOST_LORAS, Lora
from eichi_utils.requests.modes import MODES
from eichi_utils.requests.request import to_json
from eichi_utils.requests.single import Control
from locales import Translator, table
from tests.eichi_utils.helpers import latent_file
from webui import endframe_ichi, endframe_ichi_f1, frame, oneframe_ichi
from webui.context import Context
from webui.forms import words
from webui.forms.form import Form
from webui.forms.uploads import keep_pictures
from webui.panels import start_panel
from webui.panels.model_panel import ModelPanel
from webui.panels.start_panel import StartPanel

pytestmark = pytest.mark.slow

PAGES = {"reverse": endframe_ichi.page, "forward": endframe_ichi_f1.page, "single": oneframe_ichi.page}
# Fields of the request that no page shows yet.
NOT_YET: set[str] = set()
PLAIN = {"model", "image", "prompt", "seed", "seconds", "steps", "guidance_scale", "step_cache"}
# Unlike every default.
OTHER = {
    "prompt": "a cat yawns",
    "negative_prompt": "blurry",
    "seed": 2**53 - 1,
    "steps": 7,
    "model": "miniature",
    "size": 160,
    "guidance_scale": 4.5,
    "cfg_scale": 2.5,
    "guidance_rescale": 0.25,
    "step_cache": "none",
    "cache_threshold": 0.2,
    "seconds": 12.5,
    "window": 4.5,
    "crf": 30,
    "shift": 3.5,
    "precision": "int8",
    "vae_tile": 256,
    "batch": 3,
    "output_folder": "cats",
    "keep_section_videos": True,
    "section_stills": True,
    "save_frames": "last",
    "save_latents": True,
    "append_trim_start": 1,
    "append_trim_end": 2,
    "film_trim_end": 3,
    "join_latents": 9,
    "section_prompts": {0: "she bows", 11: 'She turns: "oh"!'},
    "section_prompt_mode": "extend",
    "section_lora_scales": {0: 0.0, 2: 0.33},
    "loras": tuple(Lora("small/mini.safetensors", strength) for strength in (-1.25, 2.0, 0.0, 0.333)),
    "merge_loras": True,
    "loop": True,
    "end_strength": 0.5,
    "padding": 1.5,
    "influence": 101.5,
    "influence_sections": "all",
    "vae_cache": True,
    "image_index": 2,
    "target_index": 6,
    "rope_value": 12,
    "context_1x": False,
    "context_2x": False,
    "context_4x": False,
}


@dataclasses.dataclass
class Built:
    blocks: gr.Blocks
    form: Form
    start: StartPanel
    context: Context

    def values(self, **own) -> dict:
        """Return the values of the components of a new page, with some of the request's fields changed."""
        values = {component: component.value for component in self.form.components}
        for name, value in own.items():
            entry = self.form.entries[name]
            values |= zip(entry.components, entry.write(value), strict=True)
        return values


@pytest.fixture
def page(jobs, tmp_path, monkeypatch, unserved):
    def build(mode: str, language: str = "en", plain: bool = False, models: Models | None = None) -> Built:
        made = {}

        class Noted(Form):
            def __init__(self, *args):
                super().__init__(*args)
                made["form"] = self

        class NotedStart(StartPanel):
            def __init__(self, *args):
                super().__init__(*args)
                made["start"] = self

        monkeypatch.setattr(frame, "Form", Noted)
        monkeypatch.setattr(frame, "StartPanel", NotedStart)
        links = {name: f"/{name}" for name in MODES}
        context = Context(
            jobs,
            Translator(language),
            mode,
            tmp_path,
            tmp_path / "uploads",
            links=links,
            plain=plain,
            models=models or Models(tmp_path),
            settings=tmp_path / "settings",
            presets=tmp_path / "presets",
            # As if the photo had been uploaded.
            more_uploads=(Path(gr.__file__).parent / "media_assets",),
        )
        return Built(PAGES[mode](context), made["form"], made["start"], context)

    return build


@pytest.mark.parametrize("mode", MODES)
def test_every_field_is_on_the_page(page, mode):
    fields = {field.name for field in dataclasses.fields(MODES[mode])}
    assert set(page(mode).form.entries) == fields - NOT_YET


@pytest.mark.parametrize("mode", MODES)
def test_every_shown_input_belongs_to_a_field(page, mode):
    built = page(mode)
    aids = {"zip-how", "prompts-name", "favourites-name", "settings-on-start", "settings-alarm"}
    aids |= {"quick", "section-number", "section-picture", "section-prompt", "copy-overwrite", "folder-path", "latents-chosen"}
    aids |= {"section-lora-scale", "section-landed", "section-late", "lora-preset"}
    aids |= {"settings-log", "settings-log-folder", "settings-log-path", "settings-uploads-days", "settings-uploads-gb"}
    aids |= {f"lora-{part}-{number}" for part in ("file", "strength") for number in range(MOST_LORAS)}
    inputs = (gr.Textbox, gr.Number, gr.Slider, gr.Radio, gr.Dropdown, gr.Checkbox, gr.Image)
    shown = {block for block in built.blocks.blocks.values() if isinstance(block, inputs)}
    assert {block for block in shown - built.form.components if block.elem_id not in aids} == set()


@pytest.mark.parametrize("mode", MODES)
def test_every_picture_can_be_dropped_and_pasted(page, mode):
    """The existing page's keyframes took no pictures from the clipboard."""
    pictures = [block for block in page(mode).blocks.blocks.values() if isinstance(block, gr.Image)]
    assert len(pictures) >= {"reverse": 3, "forward": 1, "single": 8}[mode]
    assert all(picture.sources == ["upload", "clipboard"] for picture in pictures)


@pytest.mark.parametrize("mode", MODES)
def test_a_tab_holds_no_connection_and_gradios_queue_rests(page, mode):
    """Each tab held one of a browser's six connections to a server, so that the page did not load from the sixth tab on."""
    blocks = page(mode).blocks
    assert blocks.get_config_file()["connect_heartbeat"] is False
    assert blocks._queue.sleep_when_free == blocks._queue.progress_update_sleep_when_free == frame.QUEUE_PAUSE
    # What is asked through the queue would wait for it.
    assert all(call.queue is False for call in blocks.fns.values() if call.fn is not None)


@pytest.mark.parametrize("mode", MODES)
def test_a_new_page_asks_for_the_defaults(page, mode):
    built = page(mode)
    request, _ = built.form.read(built.values())
    assert request == MODES[mode]()


@pytest.mark.parametrize("mode", MODES)
def test_round_trip_of_every_field(page, mode, tower, tmp_path, lora_folder):
    form = page(mode).form
    own = {name: value for name, value in OTHER.items() if name in form.entries}
    pictures = {name: tower for name in form.entries if isinstance(form.field_kind(name), Picture)}
    controls = (Control(tower, 3, tower), Control(tower, 16)) if mode == "single" else None
    own |= pictures | ({"controls": controls} if controls else {})
    if "append_latents" in form.entries:
        own |= {"append_latents": latent_file(tmp_path / "a.safetensors", 6, *fitted_size(tower, own["size"]))}
    if mode == "reverse":
        (tmp_path / "uploads").mkdir()
        kept = str(shutil.copy(tower, tmp_path / "uploads" / "kept.jpg"))
        own |= {"keyframes": {2: kept}}
    assert set(own) == set(form.entries), "a field without a value to try"
    request = MODES[mode](**own)
    assert all(getattr(request, name) != form.default(name) for name in own)
    again, problems = form.read(form.write(request))
    assert to_json(again) == to_json(request) and problems == ()


def test_round_trip_of_automatic_choices(page):
    single, reverse = page("single").form, page("reverse").form
    for value in (None, True, False):
        request = MODES["single"](context_1x=value)
        assert single.read(single.write(request))[0] == request
    for request, form in (
        (MODES["single"](target_index=0), single),
        (MODES["reverse"](padding=0.0), reverse),
    ):
        assert form.read(form.write(request))[0] == request


@pytest.mark.parametrize("mode", MODES)
def test_limits_are_the_requests(page, mode):
    form = page(mode).form
    checked = 0
    for name, entry in form.entries.items():
        kind, component = form.field_kind(name), entry.components[0]
        if isinstance(component, (gr.Slider, gr.Number)):
            assert (component.minimum, component.maximum) == (kind.min, kind.max), name
            checked += 1
        elif isinstance(kind, Choice):
            offered = [value for _, value in component.choices]
            assert offered == list(form.choices(name)) and set(offered) <= set(kind.choices), name
            checked += 1
    assert checked >= 8


@pytest.mark.parametrize("mode", MODES)
def test_plain_has_only_what_the_original_page_had(page, mode):
    form = page(mode, plain=True).form
    assert set(form.entries) == {name for name in PLAIN if form.has(name)}


def test_wrong_values_are_problems_and_nothing_is_submitted(page, jobs, tower):
    built = page("reverse")
    values = built.values(image=tower, prompt="a cat") | {
        built.form.entries["seed"].components[0]: "many",
        built.form.entries["seconds"].components[0]: 500,
        built.form.entries["steps"].components[0]: None,
    }
    request, problems = built.form.read(values)
    assert request is None
    assert {problem.field for problem in problems} == {"seed", "seconds", "steps"}
    shown = built.start.submit(values)
    assert jobs.all() == ()
    for name in ("seed", "seconds", "steps"):
        assert table("en")[f"page.field.{name}"] in shown[built.start.problems]
    assert shown[built.start.start]["interactive"] is False


def test_start_submits_what_the_form_says(page, jobs, tower):
    built = page("forward")
    built.start.submit(built.values(image=tower, prompt="a cat", seconds=2.0))
    (job,) = jobs.all()
    assert (job.request.mode, job.request.prompt, job.request.seconds) == ("forward", "a cat", 2.0)
    assert job.request.seed >= 0
    assert job.asked.seed == -1


def test_a_double_click_makes_one_film(page, jobs, tower, monkeypatch):
    """The second click used to queue the film again, with another seed; a deliberate repetition still does."""
    built = page("reverse")
    values = built.values(image=tower, prompt="a cat")
    built.start.submit(values)
    built.start.submit(values)
    assert len(jobs.all()) == 1
    built.start.submit(built.values(image=tower, prompt="a dog"))
    assert len(jobs.all()) == 2
    monkeypatch.setattr(start_panel, "DOUBLE_CLICK_SECONDS", 0.0)
    built.start.submit(built.values(image=tower, prompt="a dog"))
    assert len(jobs.all()) == 3


def test_uploads_are_kept(page, jobs, tower):
    """A film's metadata used to name gradio's temporary files, which are gone after a while, and the request with them."""
    built = page("single")
    controls = (Control(tower, 10, tower),)
    built.start.submit(built.values(image=tower, prompt="a cat", controls=controls))
    (job,) = jobs.all()
    paths = {job.request.image, job.request.controls[0].image, job.request.controls[0].mask}
    (kept,) = (Path(path) for path in paths)
    assert kept.parent == built.context.uploads and kept.name.endswith("tower.jpg")
    assert kept.read_bytes() == Path(tower).read_bytes()
    again = keep_pictures(job.request, built.context.uploads)
    assert again == job.request and list(built.context.uploads.iterdir()) == [kept]
    # Shown on a page it is copied to gradio's folder, and comes back from there under its longer name.
    shown = Path(shutil.copy(kept, built.context.outputs))
    back = keep_pictures(dataclasses.replace(job.request, image=str(shown)), built.context.uploads)
    assert back == job.request and list(built.context.uploads.iterdir()) == [kept]


@pytest.mark.slow
@pytest.mark.parametrize("text,value", [("", -1), (" ", -1), ("-1", -1), ("42", 42), ("４２", 42), ("1e3x", "1e3x")])
def test_seed_box(page, text, value):
    built = page("reverse")
    entry = built.form.entries["seed"]
    assert entry.read(text) == value


@pytest.fixture
def nothing_there(tmp_path, monkeypatch) -> Models:
    """Simulate a computer without the real models."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return Models()


@pytest.mark.parametrize(("mode", "has"), [("reverse", False), ("forward", True), ("single", False)])
def test_only_f1_offers_cached_decoding(page, mode, has):
    """A film that grows at its front has no past that the decoder could remember."""
    built = page(mode)
    labels = {getattr(block, "label", None) for block in built.blocks.blocks.values()}
    assert (built.form.t("page.field.vae_cache") in labels) is ("vae_cache" in built.form.entries) is has


@pytest.mark.parametrize("mode", PAGES)
def test_picture_prompt_and_length_come_before_everything_else(page, mode):
    """Model and examples came first, and a newcomer's four things were below the first screen."""
    form = page(mode).form
    first = [name for name in ("image", "prompt", "seconds") if form.has(name)]
    places = [form.entries[name].components[0]._id for name in (*first, "model", "size", "seed", "steps")]
    assert places == sorted(places)


@pytest.mark.slow
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_page_without_models_begins_with_the_miniature(page, nothing_there, mode, plain, tower):
    """Without the real models the page begins with the miniature's settings, also those that a plain page hides."""
    built = page(mode, plain=plain, models=nothing_there)
    request, problems = built.form.read(built.values(image=tower, prompt="The camera zooms in."))
    assert (request.model, request.size, request.steps) == ("miniature", 128, 15) and problems == ()
    assert "128 × 128" not in words.summary(built.form.t, request, problems)
    real, _ = built.form.read(built.values(image=tower, prompt="x", model="framepack"))
    assert real.size == (640 if plain else 128)
    labels = dict((value, label) for label, value in built.form.entries["model"].components[0].choices)
    assert "42 GB" in labels["framepack"] and "128" in labels["miniature"] and "192" in labels["miniature"]


def test_a_size_of_another_model_is_said_beside_its_field(page, nothing_there, tower):
    built = page("reverse", models=nothing_there)
    _request, problems = built.form.read(built.values(image=tower, prompt="x", size=640))
    assert [(problem.field, problem.key) for problem in problems] == [("size", "size_not_of_model")]
    assert words.problem_list(built.form.t, problems).count("Resolution: 640") == 1
    built.start.submit(built.values(image=tower, prompt="x", size=640))
    assert built.context.jobs.all() == ()


def test_steps_follow_the_model_unless_they_were_typed(page, nothing_there):
    panel = ModelPanel(page("reverse", models=nothing_there).context, Form(MODES["reverse"], Translator("en"), nothing_there))
    assert panel.recommend_steps("framepack", 15, False) == 25 and panel.recommend_steps("miniature", 25, False) == 15
    assert panel.recommend_steps("framepack", 8, False) == panel.recommend_steps("miniature", 8, False) == 8
    # 25 is what FramePack recommends, and also what somebody may have typed.
    assert panel.recommend_steps("miniature", 25, True) == 25
