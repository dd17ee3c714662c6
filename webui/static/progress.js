// Show how far a job is: a bar, words, and a clock that goes on between two answers.
import { make } from './dom.js';
import { onAnswer } from './polling.js';

const twoDigits = (number) => String(number).padStart(2, '0');

function duration(seconds) {
  const all = Math.max(0, Math.floor(seconds));
  const hours = Math.floor(all / 3600);
  const minutes = Math.floor(all / 60) % 60;
  return `${hours ? `${hours}:${twoDigits(minutes)}` : minutes}:${twoDigits(all % 60)}`;
}

export function showProgress({ element }) {
  const find = (name) => element.querySelector(name);
  let value = {};
  let job = '';
  let highest = 0;
  let since = 0;

  function list(name, lines = []) {
    find(name).replaceChildren(...lines.map((line) => make('li', '', line)));
  }

  function tick() {
    const { text = '', elapsed = 0, left = 0, runs } = value.time || {};
    const more = runs ? (performance.now() - since) / 1000 : 0;
    const shown = text.replace('{elapsed}', duration(elapsed + more)).replace('{left}', duration(left - more));
    if (find('.time').textContent !== shown) find('.time').textContent = shown;
  }

  function show(progress) {
    value = progress;
    since = performance.now();
    const done = find('.done');
    // The bar never shrinks during a job; for a new job it is reset without an animation.
    done.style.transition = value.job === job ? '' : 'none';
    if (value.job !== job) {
      job = value.job;
      highest = 0;
    }
    highest = Math.max(highest, value.fraction || 0);
    done.style.width = `${(100 * highest).toFixed(1)}%`;
    find('.bar').setAttribute('aria-valuenow', Math.round(100 * highest));
    find('.bar').hidden = !value.bar;
    find('.percent').textContent = value.bar ? `${Math.floor(100 * highest)} %` : '';
    tick();
    for (const name of ['where', 'mode']) find(`.${name}`).textContent = value[name] || '';
    list('.notices', value.notices);
    list('.problems', value.problems);
    element.dataset.state = value.state || '';
  }

  onAnswer((answer) => show(answer.progress));
  setInterval(tick, 250);
}
