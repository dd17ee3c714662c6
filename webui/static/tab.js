// Protect a tab and its form's values if the server is restarted with another build of the page, or does not answer.
//
// Each event names the build of its page (`http/page_build.py`). Gradio itself would reload the page after one event without an
// answer, and everything that the user typed would be lost.
import { make, makeButton } from './dom.js';
import { isTouched, keep } from './form.js';
import { page } from './page.js';

const RELOADED = 'eichi-reloaded';
// Milliseconds within which a page does not reload itself twice, as when two servers share an address.
const RECENTLY = 60_000;
const EVENTS = /\/gradio_api\/(run|api)\//;

let isForeign = false;
let bar = null;

async function reload() {
  try {
    if (isTouched()) await keep();
    sessionStorage.setItem(RELOADED, Date.now());
  } catch {
    // The session storage is full or not allowed. Reload without keeping the values.
  }
  location.reload();
}

function say(sentence, withButton) {
  if (bar?.dataset.says === sentence) return;
  bar?.remove();
  bar = make('div', 'eichi-tab', sentence);
  bar.setAttribute('role', 'alert');
  bar.dataset.says = sentence;
  if (withButton) bar.append(makeButton('', page.words.reload, reload));
  (document.querySelector('.gradio-container') || document.body).append(bar);
}

// Reload the page by itself if nothing would be lost and it has not just done so; else show a button to reload.
function showAnotherPage() {
  isForeign = true;
  const reloadedRecently = Date.now() - Number(sessionStorage.getItem(RELOADED) || 0) < RECENTLY;
  if (isTouched() || reloadedRecently) say(page.words.other, true);
  else reload();
}

/** Tell whether a build, which the server has for this page, is this tab's; if not, reload or offer to. */
export function isOwnBuild(build) {
  isForeign = build !== page.build;
  if (isForeign) {
    showAnotherPage();
  } else {
    bar?.remove();
    bar = null;
  }
  return !isForeign;
}

// Return an answer to an event that changes nothing, as the server sends it when a function fails.
function unchanged(event) {
  const call = window.gradio_config.dependencies.find((dependency) => dependency.id === event.fn_index);
  return Response.json({ data: (call?.outputs || []).map(() => ({ __type__: 'update' })), is_generating: false });
}

/** Replace `fetch`, so that each gradio event names its page's build and gets an answer even if the server sends none. */
export function guardEvents() {
  const send = window.fetch;
  window.fetch = async (address, settings) => {
    const path = new URL(address.url ?? address, location.href).pathname;
    if (!EVENTS.test(path)) return send.call(window, address, settings);
    const headers = new Headers(settings?.headers);
    headers.set(page.build_header, page.build);
    try {
      const answer = await send.call(window, address, { ...settings, headers });
      if (answer.status !== 409) return answer;
      showAnotherPage();
    } catch {
      if (!isForeign) say(page.words.silent, false);
    }
    return unchanged(JSON.parse(settings?.body || '{}'));
  };
}
