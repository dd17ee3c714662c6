// The form as a whole: closed until it is filled, and kept over a reload of the page.
const KEPT = 'eichi-kept';
// Milliseconds after which a form that is not filled opens all the same.
const LONGEST_CLOSED = 10_000;
// Boxes of the form's fields, hidden ones too. Lists to choose from take no text, and what LoRA there are is shown elsewhere.
const BOXES = '.eichi-form :is(textarea, input[type=text], input[type=number])';

let touched = false;
let filled = false;

const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

function setInert(inert) {
  for (const form of document.querySelectorAll('.eichi-form')) form.inert = inert;
}

/** Let the form take nothing until it is filled: what somebody types before would be lost in it. */
export function close() {
  setInert(true);
  setTimeout(open, LONGEST_CLOSED);
}

/** Let the form, which is filled now, be used; say so to the document; and give it back what it held before a reload. */
export function open() {
  setInert(false);
  if (filled) return;
  filled = true;
  document.dispatchEvent(new Event('eichi-filled'));
  requestAnimationFrame(restore);
}

/** Tell whether anything of the form was used since the page was loaded. */
export const isTouched = () => touched;

/** Take note of the form's use from now on. */
export function noteTouches() {
  for (const kind of ['input', 'change', 'paste', 'drop', 'click']) {
    document.addEventListener(
      kind,
      (event) => {
        const at = kind === 'click' ? event.target.closest?.('button, label') : event.target;
        if (at?.closest?.('.eichi-form') && !at.closest('.label-wrap')) touched = true;
      },
      true,
    );
  }
}

// Return the name that a box is kept by; none for what is no field of its own.
function nameOf(box) {
  if (box.getAttribute('role') === 'listbox' || box.closest('.eichi-name')) return '';
  const field = box.closest('[class*="field-"]');
  const hidden = box.closest('[id$="-json"]');
  if (field) return [...field.classList].find((name) => name.startsWith('field-'));
  return hidden && hidden.id !== 'loras-json' ? hidden.id : '';
}

const namedBoxes = () => [...document.querySelectorAll(BOXES)].map((box) => [nameOf(box), box]).filter(([name]) => name);

// What can be closed of the form. There are no boxes in it while it is.
const parts = () => [...document.querySelectorAll('.eichi-form [id]:has(> .label-wrap)')];
const isOpen = (part) => part.querySelector(':scope > .label-wrap').classList.contains('open');
const toggle = (part) => part.querySelector(':scope > .label-wrap').click();

function openAll() {
  for (const part of parts()) if (!isOpen(part)) toggle(part);
}

/** Keep what the boxes hold for the next load of the page in this tab. */
export async function keep() {
  const closed = parts()
    .filter((part) => !isOpen(part))
    .map((part) => part.id);
  openAll();
  await pause(500);
  const kept = {};
  for (const [name, box] of namedBoxes()) kept[name] ??= box.value;
  sessionStorage.setItem(KEPT, JSON.stringify({ kept, closed }));
}

// Put kept values into their boxes; whether all stands there, and stood there before.
function putBack(kept) {
  const seen = new Set();
  let changed = false;
  for (const [name, box] of namedBoxes()) {
    if (!(name in kept) || seen.has(name)) continue;
    seen.add(name);
    if (box.value === kept[name]) continue;
    changed = true;
    touched = true;
    box.value = kept[name];
    for (const kind of ['input', 'change']) box.dispatchEvent(new Event(kind, { bubbles: true }));
  }
  return !changed && seen.size === Object.keys(kept).length;
}

async function restore() {
  const { kept, closed } = JSON.parse(sessionStorage.getItem(KEPT) || '{"kept": {}, "closed": []}');
  sessionStorage.removeItem(KEPT);
  if (!Object.keys(kept).length) return;
  // Meanwhile nobody types, and Start does not take what stands there before.
  setInert(true);
  openAll();
  // An answer to what was asked before may take a value back, and the page may have no such box at all.
  for (let wait = 0, settled = 0; wait < 40 && settled < 6; wait++) {
    settled = putBack(kept) ? settled + 1 : 0;
    await pause(100);
  }
  for (const part of parts()) if (isOpen(part) && closed.includes(part.id)) toggle(part);
  setInert(false);
}
