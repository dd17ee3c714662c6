// Handle the form as a whole: close it until it is filled, and keep its values over a reload of the page.
const KEPT = 'eichi-kept';
// Milliseconds after which a form that is not filled opens all the same.
const LONGEST_CLOSED = 10_000;
// Text and number boxes of the form, hidden ones too; `nameOf` leaves some of them out.
const BOXES = '.eichi-form :is(textarea, input[type=text], input[type=number])';

let touched = false;
let filled = false;

const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

function setInert(inert) {
  for (const form of document.querySelectorAll('.eichi-form')) form.inert = inert;
}

/** Close the form until it is filled, because filling it would overwrite what the user types before. */
export function close() {
  setInert(true);
  setTimeout(open, LONGEST_CLOSED);
}

/** Open the form, which is filled now; dispatch `eichi-filled` at the document; restore what the form held before a reload. */
export function open() {
  setInert(false);
  if (filled) return;
  filled = true;
  document.dispatchEvent(new Event('eichi-filled'));
  requestAnimationFrame(restore);
}

/** Tell whether the user has used any control of the form since the page was loaded. */
export const isTouched = () => touched;

/** Watch from now on whether the user uses the form (`isTouched`). */
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

// Return the name under which a box's value is kept, or '' for a box that is not kept: lists of choices, names to save under,
// and the LoRA slots, which `loras.js` keeps.
function nameOf(box) {
  if (box.getAttribute('role') === 'listbox' || box.closest('.eichi-name')) return '';
  const field = box.closest('[class*="field-"]');
  const hidden = box.closest('[id$="-json"]');
  if (field) return [...field.classList].find((name) => name.startsWith('field-'));
  return hidden && hidden.id !== 'loras-json' ? hidden.id : '';
}

const namedBoxes = () => [...document.querySelectorAll(BOXES)].map((box) => [nameOf(box), box]).filter(([name]) => name);

// Return the form's groups that can be closed. A closed group has no boxes in the document.
const parts = () => [...document.querySelectorAll('.eichi-form [id]:has(> .label-wrap)')];
const isOpen = (part) => part.querySelector(':scope > .label-wrap').classList.contains('open');
const toggle = (part) => part.querySelector(':scope > .label-wrap').click();

function openAll() {
  for (const part of parts()) if (!isOpen(part)) toggle(part);
}

/** Store the boxes' values for the next load of the page in this tab. */
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

// Put kept values into their boxes; return whether all boxes were there and already had their values.
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
  // Closed meanwhile, so that nobody types, and Start cannot submit the values from before.
  setInert(true);
  openAll();
  // Repeat until all values have stayed for a while: an answer to an earlier event may overwrite one. Give up after some
  // seconds, because the page may not have all of the boxes.
  for (let wait = 0, settled = 0; wait < 40 && settled < 6; wait++) {
    settled = putBack(kept) ? settled + 1 : 0;
    await pause(100);
  }
  for (const part of parts()) if (isOpen(part) && closed.includes(part.id)) toggle(part);
  setInert(false);
}
