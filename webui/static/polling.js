// How a tab follows a job: a small question every half second, which the server answers without gradio (`live/polling.py`). Only
// where something else than progress and preview changed does the tab ask through gradio, which costs twenty times as much.
import { page } from './page.js';
import { isOwnBuild } from './tab.js';

const tab = Math.random().toString(36).slice(2);
const listeners = new Set();

/** Have `listener` called with each answer. */
export function onAnswer(listener) {
  listeners.add(listener);
}

/** Ask again and again while the tab is seen. The element's value is the version of the jobs that the tab was shown. */
export function poll({ element, props, trigger, watch }) {
  let shown = null;
  let timer = 0;
  let asked = 0;

  function take(answer) {
    // Another page's are not for this tab, and a question through gradio would be refused.
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
      // An answer that was overtaken by a newer question is old.
      if (answer && own === asked && element.isConnected) {
        wait = answer.wait;
        take(answer);
      }
    } catch {
      // The server starts anew, or the network is gone for a while.
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
