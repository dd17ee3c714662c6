"""What keeps a tab honest and its form whole where the server behind it is another one, or does not answer.

Each event says which page it comes from (`http.page_build`). Gradio itself would take the page away and load it anew after one
event that got no answer, and everything that was typed would be lost.
"""

from __future__ import annotations

import json

from locales import Translator
from webui.http.page_build import HEADER

# Told to the document once the form is filled; see `frame.OPENED`.
FILLED = "eichi-filled"

# Goes before everything else of the page.
JS = """
(() => {
  const own = BUILD, words = WORDS, KEPT = 'eichi-kept', RELOADED = 'eichi-reloaded';
  let touched = false, other = false, bar = null;

  // Boxes of the form's fields, hidden ones too. Lists to choose from take no text, and what LoRA there are is shown elsewhere.
  const BOXES = '.eichi-form :is(textarea, input[type=text], input[type=number])';
  const boxes = () => [...document.querySelectorAll(BOXES)].map(box => [nameOf(box), box]).filter(([name]) => name);
  function nameOf(box) {
    if (box.getAttribute('role') === 'listbox' || box.closest('.eichi-name')) return '';
    const field = box.closest('[class*="field-"]'), hidden = box.closest('[id$="-json"]');
    if (field) return [...field.classList].find(name => name.startsWith('field-'));
    return hidden && hidden.id !== 'loras-json' ? hidden.id : '';
  }

  // What can be closed. There are no boxes in it while it is.
  const parts = () => [...document.querySelectorAll('.eichi-form [id]:has(> .label-wrap)')];
  const isOpen = part => part.querySelector(':scope > .label-wrap').classList.contains('open');
  const turn = part => part.querySelector(':scope > .label-wrap').click();
  const pause = milliseconds => new Promise(done => setTimeout(done, milliseconds));

  async function keep() {
    const closed = parts().filter(part => !isOpen(part)).map(part => part.id), kept = {};
    parts().filter(part => !isOpen(part)).forEach(turn);
    await pause(500);
    for (const [name, box] of boxes()) kept[name] ??= box.value;
    sessionStorage.setItem(KEPT, JSON.stringify({ kept, closed }));
  }

  async function putBack() {
    const { kept, closed } = JSON.parse(sessionStorage.getItem(KEPT) || '{"kept": {}, "closed": []}');
    sessionStorage.removeItem(KEPT);
    const names = Object.keys(kept);
    if (!names.length) return;
    // Whether all stands there, and stood there before.
    const put = () => {
      const seen = new Set(), changed = [];
      for (const [name, box] of boxes()) {
        if (!(name in kept) || seen.has(name)) continue;
        seen.add(name);
        if (box.value === kept[name]) continue;
        changed.push(name);
        touched = true;
        box.value = kept[name];
        for (const kind of ['input', 'change']) box.dispatchEvent(new Event(kind, { bubbles: true }));
      }
      return !changed.length && seen.size === names.length;
    };
    // Meanwhile nobody types, and Start does not take what stands there before.
    const forms = [...document.querySelectorAll('.eichi-form')];
    forms.forEach(form => { form.inert = true; });
    parts().filter(part => !isOpen(part)).forEach(turn);
    // An answer to what was asked before may take a value back, and the page may have no such box at all.
    for (let wait = 0, settled = 0; wait < 40 && settled < 6; wait++) {
      settled = put() ? settled + 1 : 0;
      await pause(100);
    }
    parts().filter(part => isOpen(part) && closed.includes(part.id)).forEach(turn);
    forms.forEach(form => { form.inert = false; });
  }

  async function reload() {
    try {
      if (touched) await keep();
      sessionStorage.setItem(RELOADED, Date.now());
    } catch (error) {
      // No room, or not allowed: the button was pressed all the same.
    }
    location.reload();
  }

  function say(sentence, button) {
    if (bar?.dataset.says === sentence) return;
    bar?.remove();
    bar = document.createElement('div');
    bar.className = 'eichi-tab';
    bar.setAttribute('role', 'alert');
    bar.dataset.says = bar.textContent = sentence;
    if (button) {
      const press = document.createElement('button');
      press.textContent = words.reload;
      press.addEventListener('click', reload);
      bar.append(press);
    }
    (document.querySelector('.gradio-container') || document.body).append(bar);
  }

  // By itself only where nothing is lost, and not again and again, as where two servers share an address.
  function stale() {
    other = true;
    const recently = Date.now() - Number(sessionStorage.getItem(RELOADED) || 0) < 60000;
    if (touched || recently) say(words.other, true);
    else reload();
  }

  // Whether the server that answered still has this tab's page.
  function isOf(build) {
    other = build !== own;
    if (other) stale();
    else { bar?.remove(); bar = null; }
    return !other;
  }

  // What the server answers where a function fails: everything stays as it is.
  function unchanged(event) {
    const call = window.gradio_config.dependencies.find(call => call.id === event.fn_index);
    return Response.json({ data: (call?.outputs || []).map(() => ({ __type__: 'update' })), is_generating: false });
  }

  const send = window.fetch;
  window.fetch = async function (address, settings) {
    const path = new URL(address.url ?? address, location.href).pathname;
    if (!/\\/gradio_api\\/(run|api)\\//.test(path)) return send.call(window, address, settings);
    const headers = new Headers(settings?.headers);
    headers.set('HEADER', own);
    try {
      const answer = await send.call(window, address, { ...settings, headers });
      if (answer.status !== 409) return answer;
      stale();
    } catch (error) {
      if (!other) say(words.silent, false);
    }
    return unchanged(JSON.parse(settings?.body || '{}'));
  };

  for (const kind of ['input', 'change', 'paste', 'drop', 'click'])
    document.addEventListener(kind, event => {
      const at = kind === 'click' ? event.target.closest?.('button, label') : event.target;
      if (at?.closest?.('.eichi-form') && !at.closest('.label-wrap')) touched = true;
    }, true);
  document.addEventListener('FILLED', () => requestAnimationFrame(putBack), { once: true });
  window.eichiTab = { isOf };
})();
"""


def script(t: Translator, build: str) -> str:
    """Return the script of a page in that language. build: see `page_build.build_of`."""
    words = {name: t(f"page.tab.{name}") for name in ("other", "reload", "silent")}
    # Nothing in it may end the element that the script stands in.
    told = json.dumps(words, ensure_ascii=False).replace("<", "\\u003c")
    js = JS.replace("FILLED", FILLED).replace("HEADER", HEADER)
    return js.replace("BUILD", json.dumps(build)).replace("WORDS", told)
