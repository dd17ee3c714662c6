// The jobs that wait: a line for each, with buttons that say what was clicked on which job.
import { make, makeButton } from './dom.js';

const SIGNS = Object.freeze({ up: '\u2191', down: '\u2193', remove: '\u00d7' });

export function showQueue({ element, props, trigger, watch }) {
  function line(job, place, count, labels) {
    const item = make('li');
    item.append(make('span', 'name', job.name), make('span', 'facts', job.facts));
    for (const [action, sign] of Object.entries(SIGNS)) {
      const button = makeButton(action, sign, () => trigger('click', { job: job.id, action }));
      button.title = labels[action];
      button.setAttribute('aria-label', `${labels[action]}: ${job.name}`);
      button.disabled = (action === 'up' && place === 0) || (action === 'down' && place === count - 1);
      item.append(button);
    }
    return item;
  }

  function show() {
    const { jobs = [], title = '', labels } = props.value || {};
    element.querySelector('.title').hidden = !jobs.length;
    element.querySelector('.title').textContent = title;
    const lines = jobs.map((job, place) => line(job, place, jobs.length, labels));
    element.querySelector('ol').replaceChildren(...lines);
  }

  show();
  watch('value', show);
}
