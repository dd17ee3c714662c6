"""What is wrong with a field, shown at the field itself: one HTML element that is never seen and writes beside the others.

A field's component has the class `field-NAME`; `keyframes/3` and `controls/0/mask` are shown at the nearest place that has one.

What is dropped on a picture's place (class `eichi-picture`) and is no picture, by its kind and its name, is refused here,
before gradio empties the place and says so in English at the window's edge. What is pasted comes from here as if it were
dropped: gradio empties the place before it looks whether the clipboard holds a picture.
"""

from __future__ import annotations

import json

from eichi_utils.files.picture_files import FORMAT_NAMES, SUFFIXES
from locales import Translator

HTML = "<span></span>"

# Gradio draws what is inside a closed group only when it is opened, so the page is watched.
JS = """
let waiting = false;
const SUFFIXES = [];
function place(field) {
  const parts = field.split('/');
  for (let count = parts.length; count; count--) {
    const found = document.querySelector('.field-' + CSS.escape(parts.slice(0, count).join('-')));
    if (found) return found;
  }
  return null;
}
// Place -> what was said of the file refused there, until something else is shown or opened at it.
const refused = new Map();
const content = at => {
  const cell = at.closest('.eichi-editor')?.querySelector('[data-section]');
  return [at.querySelector('img')?.src, cell?.dataset.section].join(); };
const suffix = file => file.name.slice(file.name.lastIndexOf('.')).toLowerCase();
function drop(at, file) {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(file);
  const dropped = new DragEvent('drop', { bubbles: true, cancelable: true, dataTransfer });
  at.querySelector('.upload-container').dispatchEvent(dropped);
}
function refuse(event) {
  const at = event.target.closest?.('.eichi-picture'), input = event.type === 'change' ? event.target : null;
  const files = [...(input ? input.files : event.dataTransfer?.files) || []];
  if (!at || !files.length) return;
  refused.delete(at);
  const wrong = files.find(file => !SUFFIXES.includes(suffix(file)) && !file.type.startsWith('image/'));
  // Browsers name the kind of few of them, and gradio takes only what is named a picture.
  const renamed = wrong ? null : files.find(file => !file.type.startsWith('image/'));
  if (renamed) {
    event.preventDefault();
    event.stopImmediatePropagation();
    if (input) input.value = '';
    drop(at, new File([renamed], renamed.name, { type: `image/${suffix(renamed).slice(1)}` }));
  } else if (wrong) {
    event.preventDefault();
    event.stopImmediatePropagation();
    if (input) input.value = '';
    else event.target.dispatchEvent(new DragEvent('dragleave', { bubbles: true }));
    refused.set(at, { text: NOT_A_PICTURE.replace('{file}', () => wrong.name), content: content(at) });
  }
  soon();
}
for (const kind of ['drop', 'change']) document.addEventListener(kind, refuse, true);
const PASTE = 'button[aria-label="Paste from clipboard"]', pasting = new Set();
async function pasted() {
  if (!navigator.clipboard?.read) return CLIPBOARD_REFUSED;
  try {
    for (const item of await navigator.clipboard.read()) {
      const type = item.types.find(type => type.startsWith('image/') && !type.includes('svg'));
      // A name of its own, by which the timeline knows the upload.
      if (type) return new File([await item.getType(type)], `clipboard_${Date.now()}.${type.slice(6)}`, { type });
    }
  } catch (error) {
    if (error.name === 'NotAllowedError') return CLIPBOARD_REFUSED;
  }
  return NO_PICTURE_IN_CLIPBOARD;
}
async function paste(event) {
  const at = event.target.closest?.('.eichi-picture');
  if (!at || !event.target.closest(PASTE)) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  if (pasting.has(at)) return;
  pasting.add(at);
  const before = content(at), found = await pasted();
  pasting.delete(at);
  // Another cell of the timeline may be open by now.
  if (!at.isConnected || content(at) !== before) return;
  refused.delete(at);
  if (typeof found === 'string') {
    refused.set(at, { text: found, content: before });
    soon();
  } else drop(at, found);
}
document.addEventListener('click', paste, true);
function show() {
  waiting = false;
  // The chooser of files would hide those whose kind the system does not know.
  for (const input of document.querySelectorAll('.eichi-picture input[type=file]')) {
    if (!input.accept.includes(SUFFIXES[0])) input.accept = ['image/*', ...SUFFIXES].join(); }
  const wrong = props.value || {}, wanted = new Map();
  for (const [at, said] of refused) {
    if (at.isConnected && content(at) === said.content) wanted.set(at, said.text);
    else refused.delete(at);
  }
  for (const [field, text] of Object.entries(wrong)) {
    const at = place(field);
    if (at) wanted.set(at, (wanted.has(at) ? wanted.get(at) + ' ' : '') + text);
  }
  for (const old of document.querySelectorAll('.eichi-wrong')) if (!wanted.has(old.parentElement)) old.remove();
  for (const [at, text] of wanted) {
    let line = at.querySelector(':scope > .eichi-wrong');
    if (!line) {
      line = document.createElement('p');
      line.className = 'eichi-wrong';
      at.append(line);
    }
    if (line.textContent !== text) line.textContent = text;
  }
}
function soon() { if (!waiting) { waiting = true; setTimeout(show, 50); } }
new MutationObserver(soon).observe(document.querySelector('.eichi-form') || document.body, { childList: true, subtree: true });
show();
watch('value', show);
"""


def js(t: Translator) -> str:
    """What the element does, in a page's language."""
    said = {
        "NO_PICTURE_IN_CLIPBOARD": t("page.paste.no_picture"),
        "CLIPBOARD_REFUSED": t("page.paste.refused"),
        "NOT_A_PICTURE": t("problem.picture_unknown_format", file="{file}", formats=FORMAT_NAMES),
    }
    script = JS.replace("const SUFFIXES = []", f"const SUFFIXES = {json.dumps(SUFFIXES)}")
    for name, text in said.items():
        script = script.replace(name, json.dumps(text))
    return script
