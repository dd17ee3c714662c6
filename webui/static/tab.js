// What keeps a tab honest and its form whole where the server behind it is another one, or does not answer.
//
// Each event says which page it comes from (`http/page_build.py`). Gradio itself would take the page away and load it anew after
// one event that got no answer, and everything that was typed would be lost.
import { make, makeButton } from './dom.js';
import { isTouched, keep } from './form.js';
import { page } from './page.js';

const RELOADED = 'eichi-reloaded';
// Milliseconds within which no page reloads itself twice, as where two servers share an address.
const RECENTLY = 60_000;
const EVENTS = /\/gradio_api\/(run|api)\//;

let isForeign = false;
let bar = null;

async function reload() {
  try {
    if (isTouched()) await keep();
    sessionStorage.setItem(RELOADED, Date.now());
  } catch {
    // No room, or not allowed: the button was pressed all the same.
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

// By itself only where nothing is lost, and not again and again.
function showAnotherPage() {
  isForeign = true;
  const reloadedRecently = Date.now() - Number(sessionStorage.getItem(RELOADED) || 0) < RECENTLY;
  if (isTouched() || reloadedRecently) say(page.words.other, true);
  else reload();
}

/** Tell whether the server, whose page is of that build, still has this tab's page. */
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

// What the server answers where a function fails: everything stays as it is.
function unchanged(event) {
  const call = window.gradio_config.dependencies.find((dependency) => dependency.id === event.fn_index);
  return Response.json({ data: (call?.outputs || []).map(() => ({ __type__: 'update' })), is_generating: false });
}

/** From now on each event names its page, and none is without an answer. */
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
