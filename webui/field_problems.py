"""What is wrong with a field, shown at the field itself: one HTML element that is never seen and writes beside the others.

A field's component has the class `field-NAME`; `keyframes/3` and `controls/0/mask` are shown at the nearest place that has one.
"""

from __future__ import annotations

HTML = "<span></span>"

# Gradio draws what is inside a closed group only when it is opened, so the page is watched.
JS = """
let waiting = false;
function place(field) {
  const parts = field.split('/');
  for (let count = parts.length; count; count--) {
    const found = document.querySelector('.field-' + CSS.escape(parts.slice(0, count).join('-')));
    if (found) return found;
  }
  return null;
}
function show() {
  waiting = false;
  const wrong = props.value || {}, wanted = new Map();
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
