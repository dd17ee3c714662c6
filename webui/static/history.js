// Show the jobs that have ended: how and why each ended, and its result.
import { make, showList } from './dom.js';

// The width in pixels up to which a window is a phone's, which has no room for a list that opens by itself.
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
  // The list opens by itself if there is room and a job did not finish, until the user opens or closes it.
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
