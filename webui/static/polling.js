// Follow a job by polling: a small request every half second, which the server answers without gradio (`live/polling.py`). Only
// if something else than progress and preview has changed does the tab ask through gradio, which costs twenty times as much.
import { page } from './page.js';
import { isOwnBuild } from './tab.js';

const tab = Math.random().toString(36).slice(2);
const listeners = new Set();

/** Call `listener` with each answer from now on. */
export function onAnswer(listener) {
  listeners.add(listener);
}

/** Poll while the tab is visible. The element's value is the version of the jobs that the tab shows. */
export function poll({ element, props, trigger, watch }) {
  let shown = null;
  let timer = 0;
  let asked = 0;

  function take(answer) {
    // Answers of another build of the page do not fit this tab, and its gradio events would be refused.
    if (!isOwnBuild(answer.build)) return;
    for (const listener of listeners) listener(answer);
    if (answer.version !== shown) {
      shown = answer.version;
      trigger('click');
    }
  }

  async function ask() {
    clearTimeout(timer);
    if (document.hidden) return;
    asked += 1;
    const own = asked;
    let wait = page.poll_milliseconds;
    try {
      const response = await fetch(`${page.poll_address}?tab=${tab}`);
      const answer = response.ok ? await response.json() : null;
      // Ignore an answer if a newer request has been sent since.
      if (answer && own === asked && element.isConnected) {
        wait = answer.wait;
        take(answer);
      }
    } catch {
      // The server is restarting or the network is down: poll again later.
    }
    if (own === asked && element.isConnected) timer = setTimeout(ask, wait);
  }

  document.addEventListener('visibilitychange', ask);
  watch('value', () => {
    shown = props.value;
    ask();
  });
  ask();
}
