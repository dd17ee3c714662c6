// Show what is wrong with a field at the field itself (class `field-NAME`), or at the nearest element that has such a class.
//
// A file dropped on a place for a picture (class `eichi-picture`) that is no picture, by its media type and its name, is
// refused here, before gradio empties the place and shows an English message at the window's edge. Pasting is handled here too,
// as a drop, because gradio empties the place before it looks whether the clipboard holds a picture.
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

// Return a text that identifies what a place shows now: the picture, and the open section of the timeline.
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

// Return the picture in the clipboard as a file, or a sentence that says why there is none.
async function readClipboard(words) {
  if (!navigator.clipboard?.read) return words.clipboard_refused;
  try {
    for (const item of await navigator.clipboard.read()) {
      const type = item.types.find((name) => name.startsWith('image/') && !name.includes('svg'));
      // A unique name, by which the timeline recognises the upload.
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

/**
 * Show the problems, and refuse files that are no pictures.
 * suffixes: of all accepted picture files, also those that browsers do not know. words: sentences shown without the server.
 */
export function showFieldProblems({ props, watch }, { suffixes, words }) {
  // Place -> the sentence about the file refused there, kept until the place shows something else.
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
    // Browsers know the media types of few formats, and gradio takes only files whose type begins with "image/".
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
    // Another section of the timeline may be open by now.
    if (!place.isConnected || contentOf(place) !== before) return;
    refused.delete(place);
    if (typeof found === 'string') refuse(place, found, before);
    else drop(place, found);
  }

  // Return place -> all sentences to show there.
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
    // Otherwise the file dialog would hide picture files whose type the system does not know.
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
  // Gradio creates the contents of a closed group only when it is opened, so the page is watched for new elements.
  const form = document.querySelector('.eichi-form') || document.body;
  new MutationObserver(showSoon).observe(form, { childList: true, subtree: true });
  show();
  watch('value', show);
}
