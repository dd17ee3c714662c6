// What is wrong with a field, shown at the field itself (class `field-NAME`), or at the nearest place that has one.
//
// What is dropped on a picture's place (class `eichi-picture`) and is no picture, by its kind and its name, is refused here,
// before gradio empties the place and says so in English at the window's edge. What is pasted comes from here as if it were
// dropped: gradio empties the place before it looks whether the clipboard holds a picture.
import { make } from './dom.js';

const PASTE = 'button[aria-label="Paste from clipboard"]';

const suffixOf = (file) => file.name.slice(file.name.lastIndexOf('.')).toLowerCase();
const isNamedPicture = (file) => file.type.startsWith('image/');

function placeOf(field) {
  const parts = field.split('/');
  for (let count = parts.length; count; count--) {
    const found = document.querySelector(`.field-${CSS.escape(parts.slice(0, count).join('-'))}`);
    if (found) return found;
  }
  return null;
}

// What is shown or opened at a place.
function contentOf(place) {
  const cell = place.closest('.eichi-editor')?.querySelector('[data-section]');
  return [place.querySelector('img')?.src, cell?.dataset.section].join();
}

function stop(event) {
  event.preventDefault();
  event.stopImmediatePropagation();
}

function drop(place, file) {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(file);
  const dropped = new DragEvent('drop', { bubbles: true, cancelable: true, dataTransfer });
  place.querySelector('.upload-container').dispatchEvent(dropped);
}

// The picture in the clipboard, or a sentence.
async function readClipboard(words) {
  if (!navigator.clipboard?.read) return words.clipboard_refused;
  try {
    for (const item of await navigator.clipboard.read()) {
      const type = item.types.find((name) => name.startsWith('image/') && !name.includes('svg'));
      // A name of its own, by which the timeline knows the upload.
      if (type) return new File([await item.getType(type)], `clipboard_${Date.now()}.${type.slice(6)}`, { type });
    }
  } catch (error) {
    if (error.name === 'NotAllowedError') return words.clipboard_refused;
  }
  return words.no_picture_in_clipboard;
}

function writeAt(place, text) {
  let line = place.querySelector(':scope > .eichi-wrong');
  if (!line) {
    line = make('p', 'eichi-wrong');
    place.append(line);
  }
  if (line.textContent !== text) line.textContent = text;
}

/** suffixes: of pictures, which browsers need not know. words: what is said here without the server. */
export function showFieldProblems({ props, watch }, { suffixes, words }) {
  // Place -> what was said of the file refused there, until something else is shown or opened at it.
  const refused = new Map();
  const pasting = new Set();
  let isWaiting = false;

  function refuse(place, text, content) {
    refused.set(place, { text, content });
    showSoon();
  }

  function onFiles(event) {
    const place = event.target.closest?.('.eichi-picture');
    const input = event.type === 'change' ? event.target : null;
    const files = [...((input ? input.files : event.dataTransfer?.files) || [])];
    if (!place || !files.length) return;
    refused.delete(place);
    const wrong = files.find((file) => !suffixes.includes(suffixOf(file)) && !isNamedPicture(file));
    // Browsers name the kind of few of them, and gradio takes only what is named a picture.
    const renamed = wrong ? null : files.find((file) => !isNamedPicture(file));
    if (renamed) {
      stop(event);
      if (input) input.value = '';
      drop(place, new File([renamed], renamed.name, { type: `image/${suffixOf(renamed).slice(1)}` }));
    } else if (wrong) {
      stop(event);
      if (input) input.value = '';
      else event.target.dispatchEvent(new DragEvent('dragleave', { bubbles: true }));
      refuse(
        place,
        words.not_a_picture.replace('{file}', () => wrong.name),
        contentOf(place),
      );
    }
    showSoon();
  }

  async function onPaste(event) {
    const place = event.target.closest?.('.eichi-picture');
    if (!place || !event.target.closest(PASTE)) return;
    stop(event);
    if (pasting.has(place)) return;
    pasting.add(place);
    const before = contentOf(place);
    const found = await readClipboard(words);
    pasting.delete(place);
    // Another cell of the timeline may be open by now.
    if (!place.isConnected || contentOf(place) !== before) return;
    refused.delete(place);
    if (typeof found === 'string') refuse(place, found, before);
    else drop(place, found);
  }

  // Place -> all that is to be said there.
  function wanted() {
    const said = new Map();
    for (const [place, { text, content }] of refused) {
      if (place.isConnected && contentOf(place) === content) said.set(place, text);
      else refused.delete(place);
    }
    for (const [field, text] of Object.entries(props.value || {})) {
      const place = placeOf(field);
      if (place) said.set(place, said.has(place) ? `${said.get(place)} ${text}` : text);
    }
    return said;
  }

  function show() {
    isWaiting = false;
    // The chooser of files would hide those whose kind the system does not know.
    for (const input of document.querySelectorAll('.eichi-picture input[type=file]')) {
      if (!input.accept.includes(suffixes[0])) input.accept = ['image/*', ...suffixes].join();
    }
    const said = wanted();
    for (const old of document.querySelectorAll('.eichi-wrong')) if (!said.has(old.parentElement)) old.remove();
    for (const [place, text] of said) writeAt(place, text);
  }

  function showSoon() {
    if (isWaiting) return;
    isWaiting = true;
    setTimeout(show, 50);
  }

  for (const kind of ['drop', 'change']) document.addEventListener(kind, onFiles, true);
  document.addEventListener('click', onPaste, true);
  // Gradio draws what is inside a closed group only when it is opened, so the page is watched.
  const form = document.querySelector('.eichi-form') || document.body;
  new MutationObserver(showSoon).observe(form, { childList: true, subtree: true });
  show();
  watch('value', show);
}
