// Show the jobs that wait: a line for each, with buttons to move or remove it.
import { make, makeButton, showList } from './dom.js';

const SIGNS = Object.freeze({ up: '\u2191', down: '\u2193', remove: '\u00d7' });

export function showQueue({ element, props, trigger, watch }) {
  function createLine(job) {
    const item = make('li');
    item.append(make('span', 'name', job.name), make('span', 'facts'));
    for (const [action, sign] of Object.entries(SIGNS)) {
      item.append(makeButton(action, sign, () => trigger('click', { job: job.id, action })));
    }
    return item;
  }

  function fillLine(item, job, place) {
    const { jobs, labels } = props.value;
    item.querySelector('.facts').textContent = job.facts;
    for (const action of Object.keys(SIGNS)) {
      const button = item.querySelector(`.${action}`);
      button.title = labels[action];
      button.setAttribute('aria-label', `${labels[action]}: ${job.name}`);
      button.disabled = (action === 'up' && place === 0) || (action === 'down' && place === jobs.length - 1);
    }
  }

  function show() {
    const { jobs = [], title = '' } = props.value || {};
    element.querySelector('.title').hidden = !jobs.length;
    element.querySelector('.title').textContent = title;
    showList(element.querySelector('ol'), jobs, (job) => job.id, createLine, fillLine);
  }

  show();
  watch('value', show);
}
