// The jobs that have ended: how each ended and why, and what it left.
import { make, showList } from './dom.js';

// Pixels up to which a page is a phone's, which has no room for a list that opens by itself.
const NARROW = 800;

function line(job) {
  const item = make('li', job.state);
  const name = make('span', 'name', job.name);
  name.title = job.name;
  item.append(make('span', 'end', `${job.mark} ${job.end}`));
  item.append(...job.why.map((why) => make('p', 'why', why)));
  item.append(name, make('span', 'facts', job.facts));
  if (job.file) {
    item.append(Object.assign(make('a', 'result', job.file.name), { href: job.file.url, target: '_blank' }));
  }
  return item;
}

export function showHistory({ element, props, watch }) {
  const details = element.querySelector('details');
  const summary = element.querySelector('summary');
  // It opens by itself where there is room and something did not finish, until somebody has opened or closed it.
  let isChosen = false;
  summary.addEventListener('click', () => {
    isChosen = true;
  });

  function show() {
    const { jobs = [], title = '' } = props.value || {};
    details.hidden = !jobs.length;
    summary.textContent = title;
    showList(element.querySelector('ol'), jobs, (job, place) => JSON.stringify([place, job]), line);
    if (!isChosen) details.open = window.innerWidth > NARROW && jobs.some((job) => job.state !== 'finished');
  }

  show();
  watch('value', show);
}
